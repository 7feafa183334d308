//! What was heard and not yet taken: bounded, in order, with a gap where something is missing.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::defaults::LISTEN_BUFFER;

use super::Heard;

/// What was heard and not yet taken.
pub(super) struct Inbox {
    channels: Arc<[Arc<str>]>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heard: VecDeque<Heard>,
    /// What is missing after the last of `heard`.
    missing: Option<Missing>,
    trouble: Option<String>,
    ended: bool,
    waiting: Option<Waker>,
}

#[derive(Clone, Copy)]
struct Missing {
    since: Instant,
    until: Instant,
    dropped: u64,
}

impl From<Missing> for Heard {
    fn from(Missing { since, until, dropped }: Missing) -> Self {
        Self::Gap { since, lasted: until.saturating_duration_since(since), dropped }
    }
}

impl Inbox {
    pub(super) fn new(channels: Arc<[Arc<str>]>) -> Self {
        Self { channels, state: Mutex::default() }
    }

    pub(super) fn channels(&self) -> &[Arc<str>] {
        &self.channels
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Keeps a notification, or counts it as missing where there is no room.
    pub(super) fn put(&self, channel: &str, payload: &str, backend: u32, now: Instant) {
        self.change(|state| {
            // Room for the gap before it, too.
            let room = LISTEN_BUFFER - usize::from(state.missing.is_some());
            if state.heard.len() >= room {
                let missing = Missing { since: now, until: now, dropped: 0 };
                let missing = state.missing.get_or_insert(missing);
                (missing.until, missing.dropped) = (now, missing.dropped + 1);
                return;
            }
            state.heard.extend(state.missing.take().map(Heard::from));
            let known = self.channels.iter().find(|known| &***known == channel);
            let channel = known.map_or_else(|| channel.into(), Arc::clone);
            let payload = payload.to_owned();
            state.heard.push_back(Heard::Notification { channel, payload, backend });
        });
    }

    /// There is no connection, and why.
    pub(super) fn interrupt(&self, trouble: String) {
        self.lock().trouble = Some(trouble);
    }

    /// There is a connection again: what was sent after `since` may be missing.
    pub(super) fn resume(&self, since: Instant, now: Instant) {
        self.change(|state| {
            state.trouble = None;
            let before = state.missing;
            let since = before.map_or(since, |before| before.since.min(since));
            let dropped = before.map_or(0, |before| before.dropped);
            state.missing = Some(Missing { since, until: now, dropped });
        });
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        self.change(|state| state.ended = true);
    }

    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        let mut state = self.lock();
        let next = state.heard.pop_front();
        match next.or_else(|| state.missing.take().map(Heard::from)) {
            Some(heard) => Poll::Ready(Some(heard)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.lock();
            change(&mut state);
            state.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Listener")
            .field("channels", &self.channels)
            .field("trouble", &state.trouble)
            .field("waiting", &state.heard.len())
            .field("dropped", &state.missing.map_or(0, |missing| missing.dropped))
            .field("ended", &state.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn inbox() -> Inbox {
        Inbox::new([Arc::from("jobs")].into())
    }

    fn put(inbox: &Inbox, payload: usize) {
        inbox.put("jobs", &payload.to_string(), 1, Instant::now());
    }

    /// What can be taken without waiting: a notification as its payload, a gap as its length and its count.
    fn taken(inbox: &Inbox) -> Option<Result<usize, (Duration, u64)>> {
        let take = std::future::poll_fn(|cx| inbox.poll_take(cx));
        take.now_or_never()?.map(|heard| match heard {
            Heard::Notification { payload, .. } => Ok(payload.parse().unwrap()),
            Heard::Gap { lasted, dropped, .. } => Err((lasted, dropped)),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_receiver_costs_no_memory_and_is_told_how_many_it_missed() {
        let inbox = inbox();
        for payload in 0..LISTEN_BUFFER + 9 {
            put(&inbox, payload);
            advance(SECOND).await;
        }
        assert_eq!(inbox.lock().heard.len(), LISTEN_BUFFER);
        // A place for one is no place for it and for the gap before it.
        assert_eq!(taken(&inbox), Some(Ok(0)));
        put(&inbox, 5_000);
        assert_eq!(inbox.lock().heard.len(), LISTEN_BUFFER - 1);
        assert_eq!(taken(&inbox), Some(Ok(1)));
        put(&inbox, 6_000);
        assert_eq!(inbox.lock().heard.len(), LISTEN_BUFFER);
        for payload in 2..LISTEN_BUFFER {
            assert_eq!(taken(&inbox), Some(Ok(payload)));
        }
        assert_eq!(taken(&inbox), Some(Err((9 * SECOND, 10))));
        assert_eq!(taken(&inbox), Some(Ok(6_000)));
        assert_eq!(taken(&inbox), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_told_before_what_came_after_it_and_at_once_if_nothing_did() {
        let inbox = inbox();
        put(&inbox, 1);
        let since = Instant::now();
        advance(SECOND).await;
        inbox.interrupt("gone".to_owned());
        assert_eq!(inbox.trouble().as_deref(), Some("gone"));
        advance(SECOND).await;
        inbox.resume(since, Instant::now());
        assert_eq!(inbox.trouble(), None);
        put(&inbox, 2);
        assert_eq!(taken(&inbox), Some(Ok(1)));
        assert_eq!(taken(&inbox), Some(Err((2 * SECOND, 0))));
        assert_eq!(taken(&inbox), Some(Ok(2)));

        inbox.resume(Instant::now(), Instant::now());
        let again = Instant::now();
        advance(SECOND).await;
        inbox.resume(again, Instant::now());
        assert_eq!(taken(&inbox), Some(Err((SECOND, 0))), "two that nobody parts are one");
        assert_eq!(taken(&inbox), None);
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_the_end_comes_after_all_that_was_heard() {
        let inbox = Arc::new(inbox());
        let waiting = tokio::spawn({
            let inbox = Arc::clone(&inbox);
            async move { std::future::poll_fn(|cx| inbox.poll_take(cx)).await }
        });
        tokio::task::yield_now().await;
        put(&inbox, 1);
        assert!(matches!(waiting.await.unwrap(), Some(Heard::Notification { .. })));
        put(&inbox, 2);
        inbox.end();
        let take = || std::future::poll_fn(|cx| inbox.poll_take(cx));
        assert!(matches!(take().await, Some(Heard::Notification { .. })));
        assert_eq!(take().await, None);
        assert_eq!(take().await, None);
    }
}
