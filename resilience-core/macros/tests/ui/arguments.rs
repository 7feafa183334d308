//! Arguments that do not exist, or stand where they should not.

use resilience_core::{CircuitOpen, circuit_breaker, with_retry};

#[circuit_breaker]
async fn no_name() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker(fail_max = 5)]
async fn no_name_either() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", fail_maximum = 5)]
async fn misspelled() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", excluded_exceptions(CircuitOpen { .. }))]
async fn excluded_as_in_python() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(retryable_exceptions = [CircuitOpen])]
async fn retryable_as_in_python() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a", excluded = CircuitOpen)]
async fn patterns_without_parentheses() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(retryable())]
async fn no_pattern() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(max_retries(3))]
async fn value_in_parentheses() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(max_retries = 3, max_retries = 4)]
async fn twice() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker(fail_max = 3, "a")]
async fn name_in_second_place() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry(3)]
async fn retries_by_position() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a")]
#[with_retry(max_retry = 3)]
async fn the_other_attribute_s_error_is_told_once() -> Result<(), CircuitOpen> {
    Ok(())
}

fn main() {}
