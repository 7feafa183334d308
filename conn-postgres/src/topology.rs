//! Which of several hosts is the primary, and which replicas are fresh enough: what was seen of them, and
//! what follows from it.
//!
//! ```text
//!            all were looked at            a look, or a connection of ours, says that it is gone,
//!   Unknown ───────────────────▶ Primary ─────────────────────────────────────────────┐
//!   (one is asked as it opens)      ▲    a standby or read-only; a higher timeline      ▼
//!                                   └─────────────────────────────────────────────── None: writers wait
//!                                      a look begun since then shows one that takes writes
//! ```
//!
//! Of two that claim to be the primary, the one with the higher timeline is it; one whose timeline is behind
//! the highest ever seen is of the past, even alone. A server that does not tell its timeline counts as 0: it
//! loses against any that does, but alone it is not refused. Whoever was the primary and is it no longer has
//! the epoch of its connections raised, so idle ones are closed and lent ones close as they come back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resilience_core::Deadline;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use crate::endpoints::Origin;
use crate::error::Unreachable;
use crate::role::{Misfit, Role, Rules, TargetSessionAttrs};
use crate::wal::WalPosition;

/// Between two looks at a server while all is well, ± 10 %.
const SLOW: Duration = Duration::from_secs(1);
/// The same while there is no primary, or somebody waits for a replica.
const FAST: Duration = Duration::from_millis(15);
/// What share of an outage may pass between two looks: a long one is prolonged by no more than this, and a
/// server that stays away is not asked 66 times a second for ever.
const SHARE_OF_OUTAGE: u32 = 200;
/// Positions of the primary that are remembered, to tell how far behind a replica is: as exactly as one part
/// in half as many of the lag that is allowed.
const MOST_SAMPLES: usize = 128;

/// What one look at a server has shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Sight {
    pub(crate) role: Role,
    /// 0: it did not say.
    pub(crate) timeline: u32,
    /// How far a primary has written, or a standby has replayed; `None`: it did not say.
    pub(crate) position: Option<WalPosition>,
}

/// How one look at a server has ended.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    Seen(Sight),
    /// It is there, and did not let us in or did not tell. What was known of it stands.
    Answered(Arc<sqlx::Error>),
    /// Nothing came in time. What was known of it stands, but nothing is confirmed.
    Silent(Arc<sqlx::Error>),
    /// It is not there, or goes away.
    Gone(Arc<sqlx::Error>),
}

/// What is known of all hosts. Nobody looks at them unless there are several and it matters.
#[derive(Debug)]
pub(crate) struct Topology {
    rules: Rules,
    is_watched: AtomicBool,
    leads_writers: AtomicBool,
    view: Mutex<View>,
    /// Rises with everything that is seen.
    version: watch::Sender<u64>,
    /// Calls for a look at once.
    call: Notify,
    /// Who waits for a replica to catch up.
    waiting: AtomicUsize,
    turn: AtomicUsize,
}

impl Topology {
    pub(crate) fn new(rules: Rules) -> Self {
        Self {
            rules,
            is_watched: AtomicBool::new(false),
            leads_writers: AtomicBool::new(false),
            view: Mutex::default(),
            version: watch::Sender::new(0),
            call: Notify::new(),
            waiting: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// These are the hosts from now on.
    pub(crate) fn follow(&self, origins: &[Arc<Origin>]) {
        let mut view = self.lock();
        let mut known = std::mem::take(&mut view.members);
        view.members = origins
            .iter()
            .map(|origin| match known.iter().position(|it| Arc::ptr_eq(&it.origin, origin)) {
                Some(index) => known.swap_remove(index),
                None => Member::new(origin),
            })
            .collect();
        view.attrs = Some(self.rules.attrs(origins.len()));
        let is_watched = self.rules.need_a_scout(origins.len());
        let leads = is_watched && view.attrs().means_the_primary();
        self.leads_writers.store(leads, Ordering::Release);
        self.is_watched.store(is_watched, Ordering::Release);
        view.elect(Instant::now());
        drop(view);
        self.publish();
    }

    /// What a host must be to take connections, where it is asked as one is opened.
    pub(crate) fn attrs(&self) -> TargetSessionAttrs {
        self.lock().attrs()
    }

    /// Whether the hosts are to be looked at.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }

    /// Whether connections are opened to the primary alone.
    pub(crate) fn leads_writers(&self) -> bool {
        self.leads_writers.load(Ordering::Acquire)
    }

    /// Whether idle connections may lead to different kinds of hosts.
    pub(crate) fn splits_reads(&self) -> bool {
        self.is_watched() && self.rules.read_from == crate::role::ReadFrom::PreferReplica
    }

    /// Rises with each sign of trouble.
    pub(crate) fn alarms(&self) -> u64 {
        self.lock().alarms
    }

    pub(crate) fn primary(&self) -> Option<Arc<Origin>> {
        self.lock().primary.clone()
    }

    pub(crate) fn is_primary(&self, origin: &Arc<Origin>) -> bool {
        self.lock().is_primary(origin)
    }

    /// Whether no primary has been found yet.
    pub(crate) fn is_new(&self) -> bool {
        self.lock().last_primary.is_none()
    }

    /// Something has gone wrong with `origin`: it is not taken for the primary until a look begun after this
    /// shows it to be, and that is soon.
    pub(crate) fn alarm(&self, origin: &Origin) {
        if self.is_watched() {
            self.lock().alarm(origin, Instant::now());
            self.publish();
            self.call.notify_waiters();
        }
    }

    /// Takes up what a look at `origin` has shown; it began at `started`, when there had been so many `alarms`.
    pub(crate) fn record(
        &self,
        origin: &Arc<Origin>,
        look: Look,
        alarms: u64,
        started: Instant,
    ) -> Outcome {
        let mut view = self.lock();
        let spacing = self.rules.max_replica_lag * 2 / MOST_SAMPLES as u32;
        let outcome = view.record(origin, look, alarms, started, spacing);
        drop(view);
        self.publish();
        outcome
    }

    /// How long to wait before the next look.
    pub(crate) fn pace(&self) -> Duration {
        let trouble = self.lock().trouble;
        match trouble {
            Some(since) => (since.elapsed() / SHARE_OF_OUTAGE).clamp(FAST, SLOW),
            None if self.waiting.load(Ordering::Relaxed) > 0 => FAST,
            None => SLOW.mul_f64(0.9 + 0.2 * fastrand::f64()),
        }
    }

    /// Ends when a look is called for. A call is heard from the moment this was made.
    pub(crate) fn called(&self) -> Notified<'_> {
        self.call.notified()
    }

    /// Calls for a look at every host.
    pub(crate) fn call(&self) {
        self.call.notify_waiters();
    }

    /// Waits by `deadline` until every host has been looked at once, or one is known to be the primary.
    pub(crate) async fn first_look(&self, deadline: Deadline) {
        self.until(deadline, |view| view.primary.is_some() || view.is_surveyed()).await;
    }

    /// Waits by `deadline` for a primary; says whether there is one.
    pub(crate) async fn primary_by(&self, deadline: Deadline) -> bool {
        self.until(deadline, |view| view.primary.is_some()).await
    }

    /// A replica to read from that has replayed `position`, each in turn; `None` if there is none now.
    pub(crate) fn replica(&self, position: WalPosition) -> Option<Arc<Origin>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.lock().replica(position, self.rules.max_replica_lag, Instant::now(), turn)
    }

    /// [`replica`](Self::replica), once there is one, by `deadline`.
    pub(crate) async fn replica_by(
        &self,
        position: WalPosition,
        deadline: Deadline,
    ) -> Option<Arc<Origin>> {
        let lag = self.rules.max_replica_lag;
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.call();
        let found = |view: &View| view.replica(position, lag, Instant::now(), 0).is_some();
        self.until(deadline, found).await;
        self.replica(position)
    }

    /// Why there is no primary, host by host.
    pub(crate) fn why(&self) -> Unreachable {
        let view = self.lock();
        let mut told = None;
        for member in &view.members {
            let error = member.why.clone().unwrap_or_else(|| Arc::new(view.misfit(member).into()));
            let endpoint = Arc::clone(&member.origin.label);
            told = Some(Unreachable::shared(endpoint, error).after(told));
        }
        told.unwrap_or_else(Unreachable::nowhere)
    }

    async fn until(&self, deadline: Deadline, condition: impl Fn(&View) -> bool) -> bool {
        let mut version = self.version.subscribe();
        let seen = async {
            while !condition(&self.lock()) {
                version.changed().await.expect("the sender is borrowed");
            }
        };
        timeout_at(deadline.instant(), seen).await.is_ok()
    }

    fn publish(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What has changed with a look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// There are connections to close.
    pub(crate) condemned: bool,
    /// The primary is another than the last.
    pub(crate) moved: bool,
}

/// The state behind it; told the time.
#[derive(Debug, Default)]
struct View {
    attrs: Option<TargetSessionAttrs>,
    members: Vec<Member>,
    primary: Option<Arc<Origin>>,
    last_primary: Option<Arc<Origin>>,
    /// The highest timeline of any primary that was ever seen.
    highest: u32,
    alarms: u64,
    /// Since when there is no primary, or it is silent.
    trouble: Option<Instant>,
    /// When the primary had written how far at the least.
    samples: VecDeque<(Instant, WalPosition)>,
}

#[derive(Debug)]
struct Member {
    origin: Arc<Origin>,
    is_looked_at: bool,
    sight: Option<Sight>,
    /// How the last look failed.
    why: Option<Arc<sqlx::Error>>,
    /// The number of the alarm after which nothing has been seen of it.
    doubted: Option<u64>,
    /// A replica has replayed all that was written by then.
    caught_up: Option<Instant>,
}

impl Member {
    fn new(origin: &Arc<Origin>) -> Self {
        Self {
            origin: Arc::clone(origin),
            is_looked_at: false,
            sight: None,
            why: None,
            doubted: None,
            caught_up: None,
        }
    }

    /// What is known of it and not in doubt.
    fn certain(&self) -> Option<&Sight> {
        self.sight.as_ref().filter(|_| self.doubted.is_none())
    }
}

impl View {
    fn attrs(&self) -> TargetSessionAttrs {
        self.attrs.unwrap_or(TargetSessionAttrs::Any)
    }

    fn is_primary(&self, origin: &Arc<Origin>) -> bool {
        self.primary.as_ref().is_some_and(|primary| Arc::ptr_eq(primary, origin))
    }

    fn is_surveyed(&self) -> bool {
        self.members.iter().all(|member| member.is_looked_at)
    }

    fn alarm(&mut self, origin: &Origin, now: Instant) {
        self.alarms += 1;
        let same = |member: &&mut Member| std::ptr::eq(&*member.origin, origin);
        let Some(member) = self.members.iter_mut().find(same) else { return };
        member.doubted = Some(self.alarms);
        if self.primary.as_ref().is_some_and(|primary| std::ptr::eq(&**primary, origin)) {
            self.primary = None;
            self.trouble.get_or_insert(now);
        }
    }

    fn record(
        &mut self,
        origin: &Arc<Origin>,
        look: Look,
        alarms: u64,
        started: Instant,
        spacing: Duration,
    ) -> Outcome {
        let same = |member: &&mut Member| Arc::ptr_eq(&member.origin, origin);
        let Some(member) = self.members.iter_mut().find(same) else { return Outcome::default() };
        member.is_looked_at = true;
        // What was seen before the alarm says nothing of how it is since.
        let is_fresh = member.doubted.is_none_or(|doubted| doubted <= alarms);
        let is_silent = matches!(look, Look::Silent(_));
        let mut condemned = false;
        match look {
            Look::Seen(_) | Look::Answered(_) if !is_fresh => return Outcome::default(),
            Look::Seen(sight) => {
                (member.sight, member.why, member.doubted) = (Some(sight), None, None)
            }
            Look::Answered(error) => (member.why, member.doubted) = (Some(error), None),
            Look::Silent(error) => member.why = Some(error),
            Look::Gone(error) => {
                member.why = Some(error);
                if member.sight.take().is_some() {
                    origin.condemn();
                    condemned = true;
                }
            }
        }
        match member.sight {
            Some(Sight { role, timeline, .. }) if !role.is_standby => {
                self.highest = self.highest.max(timeline);
                member.caught_up = None;
            }
            Some(Sight { position: Some(position), .. }) if !is_silent => {
                let caught_up = match self.samples.back() {
                    Some((_, last)) if position >= *last => Some(started),
                    _ => {
                        let replayed =
                            |(_, written): &&(Instant, WalPosition)| *written <= position;
                        self.samples.iter().rev().find(replayed).map(|(at, _)| *at)
                    }
                };
                member.caught_up = member.caught_up.max(caught_up);
            }
            _ => {}
        }
        let mut outcome = self.elect(started);
        outcome.condemned |= condemned;
        if self.is_primary(origin) {
            match is_silent {
                true => _ = self.trouble.get_or_insert(started),
                false => {
                    self.trouble = None;
                    self.sample(origin, started, spacing);
                }
            }
        }
        outcome
    }

    /// Decides who is the primary, and condemns who was.
    fn elect(&mut self, now: Instant) -> Outcome {
        if !self.attrs().means_the_primary() {
            // Where connections go to whoever fits, the first that is no standby tells how far the log is.
            let is_primary = |it: &&Member| it.certain().is_some_and(|it| !it.role.is_standby);
            let primary = self
                .members
                .iter()
                .filter(is_primary)
                .max_by_key(|it| it.sight.map(|it| it.timeline));
            self.primary = primary.map(|member| Arc::clone(&member.origin));
            return Outcome::default();
        }
        let elected = self.elected().cloned();
        let (before, mut outcome) = (self.primary.take(), Outcome::default());
        match &elected {
            Some(new) if !before.as_ref().is_some_and(|old| Arc::ptr_eq(old, new)) => {
                self.trouble = None
            }
            Some(_) => {}
            None if self.is_surveyed() => _ = self.trouble.get_or_insert(now),
            None => {}
        }
        let was_replaced =
            |old: &Arc<Origin>| elected.as_ref().is_none_or(|new| !Arc::ptr_eq(old, new));
        if let Some(old) = before.filter(&was_replaced) {
            old.condemn();
            outcome.condemned = true;
        }
        if let Some(new) = &elected {
            if let Some(old) = self.last_primary.replace(Arc::clone(new)).filter(was_replaced) {
                // It may have been reached again while nobody was the primary.
                old.condemn();
                self.samples.clear();
                outcome = Outcome { condemned: true, moved: true };
                tracing::info!(target: "shared_external::postgres", from = %old.label, to = %new.label, timeline = self.highest, "the primary is another");
            }
        }
        self.primary = elected;
        outcome
    }

    fn elected(&self) -> Option<&Arc<Origin>> {
        if self.last_primary.is_none() && !self.is_surveyed() {
            // Another may be there with a higher timeline.
            return None;
        }
        let timeline = |member: &&Member| {
            let sight = member.certain()?;
            let may_lead = self.attrs().fits(sight.role)
                && (sight.timeline == 0 || sight.timeline >= self.highest);
            may_lead.then_some(sight.timeline)
        };
        let is_last = |member: &Member| {
            self.last_primary.as_ref().is_some_and(|last| Arc::ptr_eq(last, &member.origin))
        };
        // Of equals the one that is it already, else the first: the last of the maxima in reverse.
        let candidates = self.members.iter().rev().filter_map(|it| Some((timeline(&it)?, it)));
        let best = candidates.max_by_key(|(timeline, member)| (*timeline, is_last(member)));
        best.map(|(_, member)| &member.origin)
    }

    fn sample(&mut self, origin: &Arc<Origin>, now: Instant, spacing: Duration) {
        let member = self.members.iter().find(|member| Arc::ptr_eq(&member.origin, origin));
        let Some(position) = member.and_then(|it| it.sight).and_then(|it| it.position) else {
            return;
        };
        let samples = &mut self.samples;
        let is_dense = match &*samples.make_contiguous() {
            // Nothing was written: who has replayed it is up to date as of now.
            [.., (_, last)] if *last == position => true,
            [.., (before, _), (last, _)] => last.saturating_duration_since(*before) < spacing,
            _ => false,
        };
        if is_dense {
            samples.pop_back();
        } else if samples.len() == MOST_SAMPLES {
            samples.pop_front();
        }
        samples.push_back((now, position));
    }

    fn replica(
        &self,
        position: WalPosition,
        max_lag: Duration,
        now: Instant,
        turn: usize,
    ) -> Option<Arc<Origin>> {
        let is_fit = |member: &&Member| {
            let Some(sight) = member.certain() else { return false };
            let lag = member.caught_up.map(|at| now.saturating_duration_since(at));
            sight.role.is_standby
                && lag.is_some_and(|lag| lag <= max_lag)
                // One of an earlier timeline may follow a primary of the past.
                && (sight.timeline == 0 || sight.timeline >= self.highest)
                && sight.position.is_some_and(|replayed| replayed >= position)
        };
        let fit = || self.members.iter().filter(is_fit);
        let count = fit().count();
        let member = fit().nth(turn.checked_rem(count)?)?;
        Some(Arc::clone(&member.origin))
    }

    fn misfit(&self, member: &Member) -> Misfit {
        match member.certain() {
            None => Misfit::Doubted,
            Some(Sight { role, .. }) if !self.attrs().fits(*role) => {
                Misfit::Role { role: *role, attrs: self.attrs() }
            }
            Some(Sight { timeline, .. }) if *timeline < self.highest => {
                Misfit::Past { timeline: *timeline, highest: self.highest }
            }
            Some(_) => Misfit::Doubted,
        }
    }
}
