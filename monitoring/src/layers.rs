//! What the layers in front of one service show Prometheus: as they are now, set whenever someone looks.
//! What they did is counted from events, for not every layer stands in front of a service under watch.

use metrics::{Gauge, gauge};
use resilience_core::{AdaptiveLimit, Bulkhead, Name, Pipeline};

use crate::names::{self, label};

/// The gauges of one pipeline, or of a bulkhead alone; each is made when there is something to show.
pub(crate) struct LayerGauges {
    name: Name,
    /// Limit, free, in flight, waiting.
    places: Option<[Gauge; 4]>,
    throttle: Option<Gauge>,
    budget: Option<Gauge>,
}

impl LayerGauges {
    pub(crate) fn new(name: &Name) -> Self {
        Self { name: name.clone(), places: None, throttle: None, budget: None }
    }

    pub(crate) fn show(&mut self, bulkhead: Option<&Bulkhead>, pipeline: Option<&Pipeline>) {
        let Self { name, places, throttle, budget } = self;
        let adaptive = || Places::from(pipeline?.adaptive_limit()?).into();
        if let Some(now) = bulkhead.map(Places::from).or_else(adaptive) {
            let gauges = places.get_or_insert_with(|| place_gauges(name));
            let free = now.limit.saturating_sub(now.in_flight);
            let figures = [now.limit, free, now.in_flight, now.waiting];
            for (gauge, figure) in gauges.iter().zip(figures) {
                gauge.set(figure as f64);
            }
        }
        if let Some(now) = pipeline.and_then(Pipeline::throttle) {
            let gauge = throttle.get_or_insert_with(
                || gauge!(names::THROTTLE_REJECTION_RATIO, label::NAME => label::value(name)),
            );
            gauge.set(now.rejection_probability());
        }
        if let Some(now) = pipeline.and_then(|pipeline| pipeline.retry().budget()) {
            let gauge = budget.get_or_insert_with(
                || gauge!(names::RETRY_BUDGET_BALANCE, label::NAME => label::value(name)),
            );
            gauge.set(now.balance());
        }
    }
}

/// The figures of a limit on calls in flight, whether fixed or found.
struct Places {
    limit: usize,
    in_flight: usize,
    waiting: usize,
}

impl From<&Bulkhead> for Places {
    fn from(bulkhead: &Bulkhead) -> Self {
        let (limit, waiting) = (bulkhead.limit(), bulkhead.waiting());
        Self { limit, in_flight: limit.saturating_sub(bulkhead.available()), waiting }
    }
}

impl From<&AdaptiveLimit> for Places {
    fn from(limit: &AdaptiveLimit) -> Self {
        Self { limit: limit.limit(), in_flight: limit.in_flight(), waiting: limit.waiting() }
    }
}

fn place_gauges(name: &Name) -> [Gauge; 4] {
    let labels = [(label::NAME, label::value(name))];
    let calls = |state: &'static str| gauge!(names::BULKHEAD_CALLS, label::NAME => label::value(name), label::STATE => state);
    [
        gauge!(names::BULKHEAD_MAX, &labels),
        gauge!(names::BULKHEAD_AVAILABLE, &labels),
        calls("in_flight"),
        calls("waiting"),
    ]
}
