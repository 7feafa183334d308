//! Refuse the least important requests first when there are more than can be served.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::meter::Meter;
use crate::observe::{Event, RefusingLayer, emit};
use crate::prioritizer::INTERVAL;
use crate::priority::LEVELS;
use crate::{AdaptiveLimit, Bulkhead, InvalidSetting, Name, Prioritizer, Priority, Rank};

/// Sheds load by priority in front of one limiter. Cheap to clone.
///
/// While the limiter has places free and nothing is shed elsewhere, it only counts. When requests
/// must wait, the [`Prioritizer`] sets a threshold: every request of a lower rank is refused, and
/// none of a higher. It aims at one full limit of requests waiting, so that no place is ever idle;
/// give the limiter a queue of twice that. It is no hard limit itself: that is the limiter's.
///
/// ```
/// use resilience_core::{LoadShedder, Prioritizer, Priority};
///
/// let prioritizer = Prioritizer::new();
/// let shedder = LoadShedder::new("checkout", &prioritizer, 64)?;
/// let guard = shedder.admit(Priority::High)?;
/// // … serve the request …
/// drop(guard);
/// assert_eq!(shedder.refused(Priority::High), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// In front of a bulkhead or an adaptive limit, whose queue is then the pressure:
///
/// ```
/// # use std::time::Duration;
/// use resilience_core::{Bulkhead, Load, LoadShedder, Prioritizer};
///
/// let prioritizer = Prioritizer::new();
/// let bulkhead = Bulkhead::new("search", 64, Duration::from_secs(1))?;
/// let behind = bulkhead.clone();
/// let shedder = LoadShedder::watching("search", &prioritizer, move || Load::from(&behind));
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone)]
pub struct LoadShedder {
    shared: Arc<Shared>,
}

struct Shared {
    name: Name,
    prioritizer: Prioritizer,
    meter: Arc<Meter>,
    source: Source,
    dealt: AtomicU64,
}

enum Source {
    Own(usize),
    Watched(Box<dyn Fn() -> Load + Send + Sync>),
}

/// What a limiter has to do: for a [`Bulkhead`] and an [`AdaptiveLimit`], `Load::from` tells.
///
/// ```
/// use resilience_core::{AdaptiveLimit, Load};
///
/// let limit = AdaptiveLimit::builder("search").initial(20).build()?;
/// let place = limit.try_acquire();
/// assert_eq!(Load::from(&limit), Load { taken: 1, limit: 20 });
/// # drop(place);
/// # Ok::<(), resilience_core::InvalidSetting>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Load {
    /// Requests that it works on or that wait for it.
    pub taken: usize,
    /// How many it works on at once.
    pub limit: usize,
}

impl From<&Bulkhead> for Load {
    fn from(bulkhead: &Bulkhead) -> Self {
        let limit = bulkhead.limit();
        Self { taken: limit.saturating_sub(bulkhead.available()) + bulkhead.waiting(), limit }
    }
}

/// The limit is the one of the moment: more may be at work for a while after it has shrunk.
impl From<&AdaptiveLimit> for Load {
    fn from(limit: &AdaptiveLimit) -> Self {
        Self { taken: limit.in_flight() + limit.waiting(), limit: limit.limit() }
    }
}

impl LoadShedder {
    /// A shedder that is its own measure: what it has admitted and has not ended, beside `limit`
    /// (1 or more), the number of requests that can be worked on at once.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] for a limit of 0 or above 2³¹.
    pub fn new(
        name: impl Into<Name>,
        prioritizer: &Prioritizer,
        limit: u32,
    ) -> Result<Self, InvalidSetting> {
        if !(1..=1 << 31).contains(&limit) {
            return Err(InvalidSetting::new("shedder limit", limit, "1 to 2147483648"));
        }
        Ok(Self::with_source(name.into(), prioritizer, Source::Own(limit as usize)))
    }

    /// A shedder in front of the limiter whose load `load` tells. It is asked once for each request: a
    /// few atomic loads, no more. A limit of 0 is taken for 1.
    pub fn watching(
        name: impl Into<Name>,
        prioritizer: &Prioritizer,
        load: impl Fn() -> Load + Send + Sync + 'static,
    ) -> Self {
        Self::with_source(name.into(), prioritizer, Source::Watched(Box::new(load)))
    }

    fn with_source(name: Name, prioritizer: &Prioritizer, source: Source) -> Self {
        let meter = Arc::default();
        prioritizer.register(&meter);
        let prioritizer = prioritizer.clone();
        let dealt = AtomicU64::new(0);
        Self { shared: Arc::new(Shared { name, prioritizer, meter, source, dealt }) }
    }

    /// Lets a request in, unless it is among those to be shed.
    ///
    /// # Errors
    ///
    /// [`Shed`] for a rank below the threshold.
    pub fn admit(&self, rank: impl Into<Rank>) -> Result<ShedGuard<'_>, Shed> {
        self.admit_at(rank.into(), Instant::now)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.shared.name
    }

    /// Requests admitted and not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.meter.in_flight()
    }

    /// The threshold now, from 0 (nothing is shed) to 640 (everything is): 128 levels for each
    /// priority, the least first.
    #[must_use]
    pub fn threshold(&self) -> u16 {
        if self.shared.meter.threshold() > 0 {
            self.shared.prioritizer.calibrate(Instant::now(), INTERVAL);
        }
        self.shared.meter.threshold()
    }

    /// Requests of `priority` refused since the shedder was made.
    #[must_use]
    pub fn refused(&self, priority: Priority) -> u64 {
        self.shared.meter.refused(priority)
    }

    fn admit_at(&self, rank: Rank, now: impl FnOnce() -> Instant) -> Result<ShedGuard<'_>, Shed> {
        let Shared { name, prioritizer, meter, source, dealt } = &*self.shared;
        let Load { taken, limit } = match source {
            Source::Own(limit) => Load { taken: meter.in_flight(), limit: *limit },
            Source::Watched(load) => load(),
        };
        let limit = limit.max(1);
        if taken >= limit || meter.threshold() > 0 {
            let place = rank.place(|| deal(dealt.fetch_add(1, Ordering::Relaxed)));
            meter.press(place, taken, limit);
            // A surge that fills the queue is no time to wait for the next calibration.
            prioritizer.press(meter.threshold() == 0 && taken / 2 >= limit, now());
            if place < meter.threshold() {
                let priority = rank.priority();
                meter.refuse(priority);
                tracing::debug!(target: "shared_external::shed", %name, priority = priority.as_str(), "request shed");
                emit(&Event::Refused { name, layer: RefusingLayer::Shed });
                return Err(Shed { name: name.clone(), retry_after: INTERVAL });
            }
        }
        meter.enter();
        Ok(ShedGuard { meter })
    }
}

impl fmt::Debug for LoadShedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShedder")
            .field("name", &self.shared.name)
            .field("threshold", &self.shared.meter.threshold())
            .field("in_flight", &self.shared.meter.in_flight())
            .finish_non_exhaustive()
    }
}

/// A request that was let in; dropping it is its end, however it ended.
#[derive(Debug)]
#[must_use = "the request ends when it is dropped"]
pub struct ShedGuard<'a> {
    meter: &'a Meter,
}

impl ShedGuard<'_> {
    /// The limiter behind refused the request: it was not served, and there was no room to wait.
    pub fn refused_behind(self) {
        self.meter.bounce();
    }
}

impl Drop for ShedGuard<'_> {
    fn drop(&mut self) {
        self.meter.leave();
    }
}

/// There is more to do than can be done, and this request matters too little; nothing was called.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("request shed at {name:?}; retry in {retry_after:?}")]
#[non_exhaustive]
pub struct Shed {
    /// The shedder's name.
    pub name: Name,
    /// When the threshold may have moved.
    pub retry_after: Duration,
}

/// The level of the `n`th request that has none: by chance, but the same in every run.
fn deal(n: u64) -> u8 {
    // Seeds far apart: neighbouring ones are not independent enough.
    let seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    fastrand::Rng::with_seed(seed).u8(..LEVELS as u8)
}
