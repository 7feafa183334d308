//! Histories of a breaker, beside the plain model of it.
#![no_main]

#[path = "../../../../resilience-core/tests/support/breaker.rs"]
mod breaker;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| breaker::run(bytes));
