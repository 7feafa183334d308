//! What cannot be wrapped.

use std::pin::Pin;

use resilience_core::{CircuitOpen, circuit_breaker, circuit_breaker as guarded, with_retry};

#[circuit_breaker("a")]
async fn returns_nothing() {}

#[with_retry]
fn returns_a_future() -> impl Future<Output = Result<(), CircuitOpen>> {
    async { Ok(()) }
}

#[with_retry]
fn returns_a_boxed_future() -> Pin<Box<dyn Future<Output = Result<(), CircuitOpen>> + Send>> {
    Box::pin(async { Ok(()) })
}

#[with_retry]
const fn is_const() -> Result<(), CircuitOpen> {
    Ok(())
}

#[circuit_breaker("a")]
struct NoFunction;

trait Client {
    #[with_retry]
    fn has_no_body(&self) -> Result<(), CircuitOpen>;
}

#[with_retry]
#[with_retry]
async fn retries_twice() -> Result<(), CircuitOpen> {
    Ok(())
}

#[with_retry]
#[guarded("a")]
async fn renamed() -> Result<(), CircuitOpen> {
    Ok(())
}

fn main() {}
