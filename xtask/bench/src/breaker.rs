//! What a breaker costs a call, in each of its states and with each of its windows.

use std::hint::black_box;

use tokio::time::Instant;

use crate::case::{Case, Claim, Subject};
use crate::subjects::{circuitbreaker_rs, failsafe, ours, recloser, seatbelt, tower_resilience};

/// Every case.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        closed()
            .claim(Claim::Times(0.35, "failsafe"))
            .claim(Claim::AtMost(5.0))
            .allocates_nothing(),
        closed().threads(2).claim(Claim::Times(1.0, "failsafe")),
        closed().threads(4).claim(Claim::Compared("failsafe")),
        closed_async().claim(Claim::Compared("seatbelt")).allocates_nothing(),
        open().claim(Claim::Times(1.0, "recloser")),
        half_open().claim(Claim::Compared("recloser")),
    ];
    cases.splice(4..4, windows());
    cases
}

fn closed() -> Case {
    let subjects = vec![
        ours::closed(),
        failsafe::closed(),
        recloser::closed(),
        circuitbreaker_rs::closed(),
        seatbelt::closed(),
        tower_resilience::closed(),
    ];
    Case::new("breaker: closed + success, consecutive failures", subjects)
}

fn closed_async() -> Case {
    let subjects = vec![
        ours::closed_async(),
        recloser::closed_async(),
        seatbelt::closed(),
        tower_resilience::closed(),
    ];
    Case::new("breaker: closed + success, a ready future", subjects)
}

fn windows() -> Vec<Case> {
    Vec::new()
}

fn open() -> Case {
    let subjects = vec![ours::open(), recloser::open(), failsafe::open(), clock()];
    Case::new("breaker: open, reject", subjects)
}

fn half_open() -> Case {
    let subjects = vec![ours::half_open(), recloser::half_open()];
    Case::new("breaker: half-open, probe + success", subjects)
}

/// One look at the clock.
fn clock() -> Subject {
    Subject::calls("clock read", |_| black_box(Instant::now()))
}
