//! Who is the primary, decided from what was seen: a state machine that is told the time.
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
use std::sync::Arc;

use tokio::time::Instant;

use crate::endpoints::Origin;
use crate::error::Unreachable;
use crate::role::{Misfit, Role, Rules, TargetSessionAttrs};
use crate::wal::WalPosition;

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

/// What has changed with a look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Outcome {
    /// There are connections to close.
    pub(crate) condemned: bool,
    /// The primary is another than the last.
    pub(crate) moved: bool,
}

/// What is known of all hosts, and what follows.
#[derive(Debug)]
pub(super) struct View {
    rules: Rules,
    members: Vec<Member>,
    pub(super) primary: Option<Arc<Origin>>,
    pub(super) last_primary: Option<Arc<Origin>>,
    /// The highest timeline of any primary that was ever seen.
    highest: u32,
    pub(super) alarms: u64,
    /// Since when there is no primary, or it is silent.
    pub(super) trouble: Option<Instant>,
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
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            members: Vec::new(),
            primary: None,
            last_primary: None,
            highest: 0,
            alarms: 0,
            trouble: None,
            samples: VecDeque::new(),
        }
    }

    /// These are the hosts from now on.
    pub(super) fn follow(&mut self, origins: &[Arc<Origin>], now: Instant) {
        let mut known = std::mem::take(&mut self.members);
        let member = |origin: &Arc<Origin>| match known
            .iter()
            .position(|it| Arc::ptr_eq(&it.origin, origin))
        {
            Some(index) => known.swap_remove(index),
            None => Member::new(origin),
        };
        self.members = origins.iter().map(member).collect();
        self.elect(now);
    }

    /// What a host must be.
    pub(super) fn attrs(&self) -> TargetSessionAttrs {
        self.rules.attrs(self.members.len())
    }

    /// Why there is no primary, host by host.
    pub(super) fn why(&self) -> Unreachable {
        let mut told = None;
        for member in &self.members {
            let error = member.why.clone().unwrap_or_else(|| Arc::new(self.misfit(member).into()));
            let endpoint = Arc::clone(&member.origin.label);
            told = Some(Unreachable::shared(endpoint, error).after(told));
        }
        told.unwrap_or_else(Unreachable::nowhere)
    }

    pub(super) fn is_primary(&self, origin: &Arc<Origin>) -> bool {
        self.primary.as_ref().is_some_and(|primary| Arc::ptr_eq(primary, origin))
    }

    /// Whether every host has been looked at.
    pub(super) fn is_surveyed(&self) -> bool {
        self.members.iter().all(|member| member.is_looked_at)
    }

    /// Something has gone wrong with `origin`.
    pub(super) fn alarm(&mut self, origin: &Origin, now: Instant) {
        self.alarms += 1;
        let same = |member: &&mut Member| std::ptr::eq(&*member.origin, origin);
        let Some(member) = self.members.iter_mut().find(same) else { return };
        member.doubted = Some(self.alarms);
        if self.primary.as_ref().is_some_and(|primary| std::ptr::eq(&**primary, origin)) {
            self.primary = None;
            self.trouble.get_or_insert(now);
        }
    }

    /// Takes up a look at `origin` that began at `started`, when there had been so many `alarms`.
    pub(super) fn record(
        &mut self,
        origin: &Arc<Origin>,
        look: Look,
        alarms: u64,
        started: Instant,
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
                (member.sight, member.why, member.doubted) = (Some(sight), None, None);
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
                    self.sample(origin, started);
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
                self.trouble = None;
            }
            Some(_) => {}
            None if self.is_surveyed() => _ = self.trouble.get_or_insert(now),
            None => {}
        }
        let is_it =
            |origin: &Arc<Origin>| elected.as_ref().is_some_and(|it| Arc::ptr_eq(it, origin));
        if let Some(old) = before.filter(|old| !is_it(old)) {
            old.condemn();
            outcome.condemned = true;
        }
        if let Some(new) = &elected
            && self.last_primary.as_ref().is_none_or(|last| !Arc::ptr_eq(last, new))
        {
            // Whoever takes itself for one may have been reached while nobody was known to be the primary.
            let is_standby = |it: &Member| it.sight.is_some_and(|sight| sight.role.is_standby);
            for other in self.members.iter().filter(|it| !is_it(&it.origin) && !is_standby(it)) {
                other.origin.condemn();
            }
            outcome.condemned = true;
            if let Some(old) = self.last_primary.replace(Arc::clone(new)) {
                old.condemn();
                outcome.moved = true;
                self.samples.clear();
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

    /// Remembers how far the primary had written when it was looked at.
    fn sample(&mut self, origin: &Arc<Origin>, now: Instant) {
        let spacing = self.rules.max_replica_lag * 2 / MOST_SAMPLES as u32;
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

    /// The replica whose `turn` it is, of those that lag behind by no more than is allowed and have replayed `position`.
    pub(super) fn replica(
        &self,
        position: WalPosition,
        now: Instant,
        turn: usize,
    ) -> Option<Arc<Origin>> {
        let is_fit = |member: &&Member| {
            let Some(sight) = member.certain() else { return false };
            let lag = member.caught_up.map(|at| now.saturating_duration_since(at));
            sight.role.is_standby
                && lag.is_some_and(|lag| lag <= self.rules.max_replica_lag)
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::role::ReadFrom;
    use crate::topology::tests::{gone, origins, primary, rules};

    const SECOND: Duration = Duration::from_secs(1);

    fn written(timeline: u32, position: u64) -> Look {
        let role = Role { is_standby: false, is_read_only: false };
        Look::Seen(Sight { role, timeline, position: Some(position.into()) })
    }

    fn standby(timeline: u32, position: u64) -> Look {
        let role = Role { is_standby: true, is_read_only: false };
        Look::Seen(Sight { role, timeline, position: Some(position.into()) })
    }

    fn silent() -> Look {
        Look::Silent(Arc::new(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    /// A view of that many hosts.
    fn view(count: u16) -> (View, Vec<Arc<Origin>>) {
        let (mut view, hosts) = (View::new(rules(ReadFrom::PreferReplica)), origins(count));
        view.follow(&hosts, Instant::now());
        (view, hosts)
    }

    fn see(view: &mut View, host: &Arc<Origin>, look: Look) -> Outcome {
        view.record(host, look, view.alarms, Instant::now())
    }

    fn port(origin: Option<&Arc<Origin>>) -> Option<u16> {
        origin.map(|origin| origin.endpoint.address.port())
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_primaries_the_higher_timeline_wins_in_whatever_order_they_are_seen() {
        for order in [[0, 1], [1, 0]] {
            let (mut view, hosts) = view(2);
            let timelines = [1, 2];
            see(&mut view, &hosts[order[0]], primary(timelines[order[0]]));
            assert_eq!(port(view.primary.as_ref()), None, "the other may have a higher timeline");
            see(&mut view, &hosts[order[1]], primary(timelines[order[1]]));
            assert_eq!(port(view.primary.as_ref()), Some(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failover_condemns_the_connections_to_the_old_primary_and_no_others() {
        let (mut view, hosts) = view(3);
        see(&mut view, &hosts[0], primary(1));
        see(&mut view, &hosts[1], standby(1, 0));
        see(&mut view, &hosts[2], standby(1, 0));
        assert_eq!(port(view.primary.as_ref()), Some(1));
        let epochs = || [0, 1, 2].map(|host: usize| hosts[host].epoch());
        assert_eq!(epochs(), [0, 0, 0]);
        // The old one has not gone: nothing failed.
        let outcome = see(&mut view, &hosts[1], primary(2));
        assert_eq!(outcome, Outcome { condemned: true, moved: true });
        assert_eq!(port(view.primary.as_ref()), Some(2));
        assert!(epochs()[0] > 0);
        assert_eq!(epochs()[1..], [0, 0]);
        assert_eq!(see(&mut view, &hosts[0], primary(1)), Outcome::default());
        assert_eq!(port(view.primary.as_ref()), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_opened_to_an_old_primary_before_the_first_look_is_condemned_too() {
        let (mut view, hosts) = view(2);
        // It was too slow for the first look, and connections were opened to it all the same.
        see(&mut view, &hosts[0], silent());
        see(&mut view, &hosts[1], primary(2));
        assert_eq!(port(view.primary.as_ref()), Some(2));
        assert!(hosts[0].epoch() > 0);
        assert_eq!(hosts[1].epoch(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_of_the_past_is_not_taken_for_want_of_another() {
        let (mut view, hosts) = view(2);
        see(&mut view, &hosts[0], primary(1));
        see(&mut view, &hosts[1], primary(2));
        see(&mut view, &hosts[1], gone());
        assert_eq!(port(view.primary.as_ref()), None);
        let why = view.why().to_string();
        assert!(
            why.contains("db:1: it is a primary of the past: its timeline is 1, and 2 was seen"),
            "{why}"
        );
        assert!(why.contains("db:2: connection refused"), "{why}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_tell_its_timeline_is_used_unless_one_does() {
        let (mut view, hosts) = view(2);
        see(&mut view, &hosts[0], primary(0));
        see(&mut view, &hosts[1], gone());
        assert_eq!(port(view.primary.as_ref()), Some(1));
        see(&mut view, &hosts[1], primary(1));
        assert_eq!(port(view.primary.as_ref()), Some(2));
        see(&mut view, &hosts[1], gone());
        assert_eq!(port(view.primary.as_ref()), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_alarm_only_what_was_looked_at_since_is_believed() {
        let (mut view, hosts) = view(2);
        see(&mut view, &hosts[0], primary(1));
        see(&mut view, &hosts[1], standby(1, 0));
        let before = view.alarms;
        view.alarm(&hosts[0], Instant::now());
        assert_eq!(port(view.primary.as_ref()), None);
        view.record(&hosts[0], primary(1), before, Instant::now());
        assert_eq!(port(view.primary.as_ref()), None, "the look began before the alarm");
        see(&mut view, &hosts[0], silent());
        assert_eq!(port(view.primary.as_ref()), None);
        // It was one connection, not the server.
        assert_eq!(see(&mut view, &hosts[0], primary(1)), Outcome::default());
        assert_eq!(port(view.primary.as_ref()), Some(1));
        assert_eq!(view.trouble, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_primary_that_is_silent_or_full_stays_it_and_one_that_is_gone_or_read_only_does_not()
    {
        let (mut view, hosts) = view(2);
        see(&mut view, &hosts[1], standby(1, 0));
        let full = || Look::Answered(Arc::new(sqlx::Error::PoolTimedOut));
        for (look, stays) in
            [(silent(), true), (full(), true), (gone(), false), (standby(1, 0), false)]
        {
            see(&mut view, &hosts[0], primary(1));
            let epoch = hosts[0].epoch();
            let text = format!("{look:?}");
            let outcome = see(&mut view, &hosts[0], look);
            assert_eq!(view.primary.is_some(), stays, "{text}");
            assert_eq!((outcome.condemned, hosts[0].epoch() > epoch), (!stays, !stays), "{text}");
            assert!(!outcome.moved);
        }
        let role = Role { is_standby: false, is_read_only: true };
        see(&mut view, &hosts[0], primary(1));
        see(&mut view, &hosts[0], Look::Seen(Sight { role, timeline: 1, position: None }));
        assert!(view.primary.is_none());
        assert!(view.why().to_string().contains("default_transaction_read_only is on"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_as_far_behind_as_what_it_has_not_replayed_is_old() {
        let (mut view, hosts) = view(2);
        let replica = |view: &View| port(view.replica(0.into(), Instant::now(), 0).as_ref());
        see(&mut view, &hosts[1], standby(1, 100));
        assert_eq!(replica(&view), None, "nobody knows how far it should be");
        see(&mut view, &hosts[0], written(1, 100));
        see(&mut view, &hosts[1], standby(1, 100));
        assert_eq!(replica(&view), Some(2));
        // Nothing is written: an hour later nothing is missing.
        for _ in 0..3600 {
            advance(SECOND).await;
            see(&mut view, &hosts[0], written(1, 100));
            see(&mut view, &hosts[1], standby(1, 100));
        }
        assert_eq!(replica(&view), Some(2));
        for second in 1..=12 {
            advance(SECOND).await;
            see(&mut view, &hosts[0], written(1, 100 + second));
            see(&mut view, &hosts[1], standby(1, 100));
            // What was there at the last look before is there.
            let expected = if second <= 10 { Some(2) } else { None };
            assert_eq!(replica(&view), expected, "{second} s behind");
        }
        // It has replayed what was written five seconds ago.
        see(&mut view, &hosts[1], standby(1, 107));
        assert_eq!(replica(&view), Some(2));
        advance(4 * SECOND).await;
        assert_eq!(replica(&view), Some(2));
        advance(2 * SECOND).await;
        assert_eq!(replica(&view), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_no_replica_that_lacks_what_it_must_see_or_follows_the_old_primary() {
        let (mut view, hosts) = view(3);
        for _ in 0..2 {
            see(&mut view, &hosts[0], written(2, 100));
            see(&mut view, &hosts[1], standby(2, 100));
            see(&mut view, &hosts[2], standby(0, 100));
        }
        let now = Instant::now();
        let ports = |view: &View, position: u64| {
            [0, 1].map(|turn| port(view.replica(position.into(), now, turn).as_ref()))
        };
        assert_eq!(ports(&view, 100), [Some(2), Some(3)], "they do not take turns");
        assert_eq!(ports(&view, 101), [None, None]);
        see(&mut view, &hosts[1], standby(1, 200));
        assert_eq!(ports(&view, 100), [Some(3), Some(3)], "it follows another primary");
        view.alarm(&hosts[2], now);
        assert_eq!(ports(&view, 100), [None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_the_primary_is_bounded() {
        let (mut view, hosts) = view(2);
        see(&mut view, &hosts[1], gone());
        for position in 0..100_000 {
            advance(Duration::from_millis(15)).await;
            see(&mut view, &hosts[0], written(1, position));
        }
        assert!(view.samples.len() <= MOST_SAMPLES);
        let span = view.samples.back().unwrap().0 - view.samples.front().unwrap().0;
        assert!(span >= 10 * SECOND, "{span:?} do not reach as far as the lag that is allowed");
    }
}
