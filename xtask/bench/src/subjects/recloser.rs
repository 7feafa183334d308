//! `recloser` at work. It knows no failures in a row: it is closed with its window of 100.

use std::time::Duration;

use recloser::{AsyncRecloser, Error, Recloser};

use super::{HOUR, Refused, until};
use crate::case::Subject;

const NAME: &str = "recloser";

fn breaker() -> Recloser {
    Recloser::custom().closed_len(100).error_rate(0.5).open_wait(HOUR).build()
}

/// Closed, with a window of 100 calls.
pub fn closed() -> Subject {
    let breaker = breaker();
    Subject::calls(NAME, move |i| breaker.call(|| Ok::<_, Refused>(i)))
}

/// The same, around a ready future.
pub fn closed_async() -> Subject {
    let breaker = AsyncRecloser::from(breaker());
    Subject::polls(NAME, async move |i| breaker.call(async { Ok::<_, Refused>(i) }).await)
}

/// Open.
pub fn open() -> Subject {
    let breaker = Recloser::custom().closed_len(1).error_rate(0.5).open_wait(HOUR).build();
    let rejects = || matches!(breaker.call(|| Err::<u64, _>(Refused)), Err(Error::Rejected));
    until(rejects);
    Subject::calls(NAME, move |i| breaker.call(|| Ok::<_, Refused>(i)))
}

/// Half-open for as long as it is measured: its ring is never full.
pub fn half_open() -> Subject {
    let breaker = Recloser::custom()
        .closed_len(1)
        .half_open_len(1 << 28)
        .error_rate(0.5)
        .open_wait(Duration::from_millis(1))
        .build();
    until(|| matches!(breaker.call(|| Err::<u64, _>(Refused)), Err(Error::Rejected)));
    until(|| breaker.call(|| Ok::<_, Refused>(1)).is_ok());
    Subject::calls(NAME, move |i| breaker.call(|| Ok::<_, Refused>(i)))
}
