//! What is worth telling someone, and who is told.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use resilience_core::Name;
use serde::Serialize;

use crate::Timestamp;

/// How bad it is; from least to worst.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertSeverity {
    /// Recovery, and whatever is normal.
    Info,
    /// It works, but worse than it should: errors, slowness.
    Warning,
    /// A service failed, or its breaker opened.
    Error,
    /// Several services failed, or one without which nothing works.
    Critical,
}

impl AlertSeverity {
    /// Every severity, in the order of the enum.
    pub const ALL: [Self; 4] = [Self::Info, Self::Warning, Self::Error, Self::Critical];

    /// The word for it, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for AlertSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that a rule found. It fires once, again each time it gets worse, and ends in one that
/// is [`resolved`](Self::resolved), of severity [`Info`](AlertSeverity::Info).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Alert {
    /// What it is about: the rule, and the service if it is about one. The same for the firing and
    /// the resolved alert, and for the next time: `service_unhealthy:database`.
    pub key: Arc<str>,
    /// How bad it is. It never gets milder while the alert fires.
    pub severity: AlertSeverity,
    /// The service, if it is about one.
    pub service: Option<Name>,
    /// The rule that found it.
    pub rule: Arc<str>,
    /// What is wrong, in a line; never a secret.
    pub summary: String,
    /// Since when it has been firing.
    pub since: Timestamp,
    /// When it ended; `None` while it fires.
    pub resolved: Option<Timestamp>,
    /// Whether a handler has delivered it as it is now: an alert that got worse is another.
    pub notified: bool,
    /// The number of this very notice among all of its manager.
    #[serde(skip)]
    pub(crate) sequence: u64,
}

impl Alert {
    /// Whether it has ended.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.resolved.is_some()
    }
}

/// Takes alerts somewhere: a log, a chat, a pager.
///
/// Each handler has a queue and a task of its own, and gets its alerts one after the other, in
/// order. A call that takes longer than 10 s is dropped, a panic is caught; both count as failures,
/// after which the same alert comes again, within waits that grow from 1 s to 60 s. One that fails ten times, or finds the
/// queue of 256 full, is dropped and counted in `external_service_notifications_dropped_total`.
///
/// ```
/// use monitoring::{Alert, AlertError, AlertHandler};
///
/// struct Chat;
///
/// #[async_trait::async_trait]
/// impl AlertHandler for Chat {
///     async fn handle(&self, alert: &Alert) -> Result<(), AlertError> {
///         let line = format!("{}: {}", alert.severity, alert.summary);
///         post(&line).await.map_err(AlertError::new)
///     }
/// }
/// # async fn post(_: &str) -> Result<(), std::io::Error> { Ok(()) }
/// ```
#[async_trait]
pub trait AlertHandler: Send + Sync {
    /// Delivers `alert`. `Ok` means that someone has it.
    ///
    /// # Errors
    ///
    /// [`AlertError`] if it should be tried again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future must leave nothing behind; the alert comes again.
    async fn handle(&self, alert: &Alert) -> Result<(), AlertError>;

    /// A fixed word for it in logs and labels; default: the name of its type.
    fn name(&self) -> &'static str {
        let path = std::any::type_name::<Self>();
        path.rsplit("::").next().unwrap_or(path)
    }
}

#[async_trait]
impl<H: AlertHandler + ?Sized> AlertHandler for Arc<H> {
    async fn handle(&self, alert: &Alert) -> Result<(), AlertError> {
        (**self).handle(alert).await
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// Why an alert was not delivered; never a secret.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AlertError(String);

impl AlertError {
    /// An error with that text, which goes to the log.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// Writes alerts to the log: INFO as INFO, WARNING as WARN, ERROR and CRITICAL as ERROR. The end of
/// one is INFO. Target `shared_external::alert`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogAlertHandler;

#[async_trait]
impl AlertHandler for LogAlertHandler {
    async fn handle(&self, alert: &Alert) -> Result<(), AlertError> {
        let Alert { key, severity, summary, since, .. } = alert;
        let state = if alert.is_resolved() { "resolved" } else { "firing" };
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(target: "shared_external::alert", %key, %severity, state, %since, "{summary}")
            };
        }
        match severity {
            AlertSeverity::Info => log!(info),
            AlertSeverity::Warning => log!(warn),
            AlertSeverity::Error | AlertSeverity::Critical => log!(error),
        }
        Ok(())
    }
}
