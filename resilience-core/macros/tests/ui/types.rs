//! What only the compiler can see.

use resilience_core::{CircuitOpen, circuit_breaker, with_retry};

struct NotClone;

#[derive(Debug)]
enum MyError {
    Io,
}

#[circuit_breaker("a")]
async fn error_without_a_place_for_an_open_circuit() -> Result<(), MyError> {
    Err(MyError::Io)
}

type Reply = u32;

#[circuit_breaker("a")]
async fn returns_no_result() -> Reply {
    1
}

#[with_retry]
async fn argument_cannot_be_cloned(value: NotClone) -> Result<(), MyError> {
    drop(value);
    Ok(())
}

impl NotClone {
    #[with_retry]
    fn self_cannot_be_cloned(self) -> Result<Self, MyError> {
        Ok(self)
    }
}

#[with_retry(base_delay = "word".len())]
async fn delay_is_no_time() -> Result<(), MyError> {
    Ok(())
}

struct Service<const MAX: u32>;

impl<const MAX: u32> Service<MAX> {
    #[circuit_breaker("a", fail_max = MAX)]
    async fn settings_of_each_type(&self) -> Result<(), CircuitOpen> {
        Ok(())
    }
}

fn main() {}
