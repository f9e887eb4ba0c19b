//! The columns of labels, in a block that is intact otherwise.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store_fuzz::labels(bytes));
