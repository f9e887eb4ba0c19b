//! A block of a log: columns of any bytes, with checksums that fit.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store_fuzz::block(bytes));
