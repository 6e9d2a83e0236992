//! See `metastore::fuzz::txn_validation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metastore::fuzz::txn_validation(bytes));
