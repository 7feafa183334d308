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
        open().threads(2).claim(Claim::Compared("recloser")),
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
    let count = vec![ours::count_window(), recloser::closed(), tower_resilience::count_window()];
    let shared = || {
        let subjects = vec![ours::count_window(), recloser::closed()];
        Case::new("breaker: closed + success, window of 100 calls", subjects)
    };
    let time =
        vec![ours::time_window(), clock(), seatbelt::closed(), tower_resilience::time_window()];
    let slow = vec![ours::slow_calls(), clock(), tower_resilience::slow_calls()];
    vec![
        Case::new("breaker: closed + success, window of 100 calls", count)
            .claim(Claim::Times(0.6, "recloser"))
            .allocates_nothing(),
        shared().threads(2).claim(Claim::Compared("recloser")),
        shared().threads(4).claim(Claim::Compared("recloser")),
        Case::new("breaker: closed + success, window of time", time)
            .claim(Claim::Above(15.0, "clock read"))
            .allocates_nothing(),
        Case::new("breaker: closed + success, slow calls judged", slow)
            .claim(Claim::Compared("clock read"))
            .allocates_nothing(),
    ]
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
