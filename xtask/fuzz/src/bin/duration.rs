//! Durations as settings hold them, beside exact arithmetic.
#![no_main]

#[path = "../../../../resilience-core/tests/support/duration.rs"]
mod duration;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| duration::run(bytes));
