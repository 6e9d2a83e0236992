//! See `metastore::fuzz::bbolt_reader`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metastore::fuzz::bbolt_reader(bytes));
