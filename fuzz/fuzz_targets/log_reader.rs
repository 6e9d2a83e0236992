//! See `metastore::fuzz::log_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metastore::fuzz::log_reader(bytes));
