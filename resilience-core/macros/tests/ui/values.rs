//! Literals out of range.

use resilience_core::{CircuitOpen, circuit_breaker, with_retry};

#[circuit_breaker("", fail_max = 5)]
async fn empty_name() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker(5)]
async fn name_is_a_number() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", fail_max = 0)]
async fn fail_max_is_zero() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", reset_timeout = 0)]
async fn reset_timeout_is_zero() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", reset_timeout = "60")]
async fn reset_timeout_is_a_text() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", success_threshold = 2.5)]
async fn success_threshold_is_a_fraction() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(max_retries = -1)]
async fn max_retries_is_negative() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(base_delay = -1.0)]
async fn base_delay_is_negative() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(base_delay = 90)]
async fn base_delay_is_above_the_default_of_max_delay() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(max_delay = 0.5)]
async fn max_delay_is_below_the_default_of_base_delay() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(exponential_base = 0.5)]
async fn exponential_base_shrinks() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(jitter = 1)]
async fn jitter_is_a_number() -> Result<(), CircuitOpen> {
    Ok(())
}

fn main() {}
