//! The process's recorder of metrics, and how it is read.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use resilience_core::{Observe, add_observer};

use crate::MetricsObserver;
use crate::names::{self, BUCKETS};

/// Time between two rounds in which the recorder sorts new observations into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<Metrics> = OnceLock::new();

/// Starts to record the core's events as metrics. Once per process: later calls return the same.
///
/// Where the process has no recorder for the [`metrics`] crate yet, a Prometheus recorder is
/// installed; it opens no port, [`Metrics::render`] reads it. What the application records through
/// the [`metrics`] crate's macros appears there too; histograms have the buckets of
/// [`names::BUCKETS`].
///
/// Where the application has installed a recorder before, it stays, and the metrics go there. Then
/// [`Metrics::render`] has nothing to show, unless [`Metrics::rendered_by`] says how to read it.
///
/// ```
/// metrics::counter!("donations_total").increment(3);   // nobody counts yet
/// let metrics = monitoring::install_metrics();
/// metrics::counter!("donations_total").increment(1);
/// assert!(metrics.render().unwrap().contains("donations_total 1"));
/// ```
pub fn install_metrics() -> Metrics {
    INSTALLED.get_or_init(install).clone()
}

fn install() -> Metrics {
    let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).expect("there are buckets");
    let render = match builder.install_recorder() {
        Ok(handle) => {
            keep_up(handle.clone());
            Some(by_handle(handle))
        }
        Err(_) => {
            tracing::info!(target: "shared_external::monitoring", "the application has a recorder of metrics already; it is used");
            None
        }
    };
    names::describe();
    let observer = Arc::new(MetricsObserver::new());
    add_observer(Arc::<MetricsObserver>::clone(&observer) as Arc<dyn Observe>);
    Metrics { observer, render }
}

/// The metrics of this process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    observer: Arc<MetricsObserver>,
    render: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

impl Metrics {
    /// The same metrics, read by `render`: for an application with a recorder of its own.
    ///
    /// ```
    /// use metrics_exporter_prometheus::PrometheusBuilder;
    ///
    /// let handle = PrometheusBuilder::new().set_buckets(&monitoring::names::BUCKETS)?.install_recorder()?;
    /// let metrics = monitoring::install_metrics();
    /// assert!(metrics.render().is_none());
    /// let metrics = metrics.rendered_by(move || handle.render());
    /// metrics::counter!("donations_total").increment(1);
    /// assert!(metrics.render().unwrap().contains("donations_total 1"));
    /// # Ok::<(), metrics_exporter_prometheus::BuildError>(())
    /// ```
    #[must_use]
    pub fn rendered_by(self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { render: Some(Arc::new(render)), ..self }
    }

    /// All metrics in Prometheus' text format; `None` if the application's own recorder has them.
    ///
    /// What a [`MonitoringManager`](crate::MonitoringManager) shows (breakers, pools, services) is
    /// up to a second old: its `render_metrics` brings it up to date first.
    #[must_use]
    pub fn render(&self) -> Option<String> {
        self.render.as_ref().map(|render| without_absent(&render()))
    }

    /// What records the events.
    #[must_use]
    pub fn observer(&self) -> &MetricsObserver {
        &self.observer
    }

    /// Metrics of a recorder that is not the process's.
    #[cfg(all(test, feature = "axum"))]
    pub(crate) fn of(handle: PrometheusHandle) -> Self {
        names::describe();
        Self { observer: Arc::default(), render: Some(by_handle(handle)) }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("rendered", &self.render.is_some()).finish_non_exhaustive()
    }
}

fn by_handle(handle: PrometheusHandle) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || handle.render())
}

/// A gauge without a value is not a number: the text leaves it out.
fn without_absent(text: &str) -> String {
    let absent = |line: &str| !line.starts_with('#') && line.trim_end().ends_with(" NaN");
    let present = text.split_inclusive('\n').filter(|line| !absent(line));
    present.collect()
}

/// Observations pile up in the recorder until someone sorts them into buckets. A thread does, for
/// the life of the process: runtimes may come and go, and nobody may ever scrape.
fn keep_up(handle: PrometheusHandle) {
    let rounds = move || loop {
        std::thread::park_timeout(UPKEEP);
        handle.run_upkeep();
    };
    if let Err(error) = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(rounds) {
        tracing::warn!(target: "shared_external::monitoring", %error, "no thread for the upkeep of metrics: they take memory until they are rendered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_text_may_end_in_nan() {
        let text = "# HELP a Not NaN\n# TYPE a gauge\na NaN\na{b=\"c\"} NaN\na{b=\"d\"} 1\n";
        let left = "# HELP a Not NaN\n# TYPE a gauge\na{b=\"d\"} 1\n";
        assert_eq!(without_absent(text), left);
    }

    #[test]
    fn a_name_with_quotes_and_lines_breaks_no_label() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::gauge!("g", "name" => "a\"b\\c\nd NaN").set(1);
        });
        let text = without_absent(&recorder.handle().render());
        assert!(text.contains("g{name=\"a\\\"b\\\\c\\nd NaN\"} 1\n"), "{text}");
    }
}
