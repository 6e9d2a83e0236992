//! See `metastore::fuzz::record_codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metastore::fuzz::record_codec(bytes));
