//! See `metastore::fuzz::row_decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metastore::fuzz::row_decoder(bytes));
