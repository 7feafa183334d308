//! Which alerts fire: pure, told what the rules found and when.
//!
//! ```text
//!   ┌───────┐  found   ┌────────┐  found, worse: told again, not notified
//!   │ quiet │ ───────▶ │ firing │ ⟲
//!   └───────┘ ◀─────── └────────┘
//!          not found: resolved, told as INFO
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use resilience_core::Name;

use crate::defaults::MAX_ALERTS;
use crate::rules::{Finding, Firing};
use crate::wall_clock::Moment;
use crate::{Alert, AlertSeverity};

/// The alerts that fire, by rule and subject.
#[derive(Debug, Default)]
pub(crate) struct Board {
    firing: BTreeMap<Arc<str>, BTreeMap<Option<Name>, Alert>>,
    /// How many alerts of a rule were not taken in last time, so that a steady flood is logged once.
    refused: BTreeMap<Arc<str>, usize>,
    issued: u64,
}

impl Board {
    /// Those of `rule`.
    pub(crate) fn firing(&self, rule: &str) -> Firing {
        let subjects = self.firing.get(rule).into_iter().flat_map(BTreeMap::keys).cloned();
        Firing { subjects: subjects.collect() }
    }

    /// All of them, rule by rule.
    pub(crate) fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.firing.values().flat_map(BTreeMap::values)
    }

    /// Takes in all that `rule` finds wrong now, and returns what must be told.
    pub(crate) fn apply(&mut self, rule: &str, findings: Vec<Finding>, now: Moment) -> Vec<Alert> {
        let rule: Arc<str> = Arc::from(rule);
        let mut room = MAX_ALERTS.saturating_sub(self.alerts().count());
        let mut ended = self.firing.remove(&rule).unwrap_or_default();
        let mut firing = BTreeMap::new();
        let (mut notices, mut refused) = (Vec::new(), 0);
        for (service, Finding { severity, summary, .. }) in worst(findings) {
            let (mut alert, told) = match ended.remove(&service) {
                Some(alert) => {
                    let told = severity <= alert.severity;
                    (Alert { severity: severity.max(alert.severity), summary, ..alert }, told)
                }
                None if room == 0 => {
                    refused += 1;
                    continue;
                }
                None => {
                    room -= 1;
                    (begun(&rule, service.clone(), severity, summary, now), false)
                }
            };
            if !told {
                self.issued += 1;
                alert = Alert { sequence: self.issued, notified: false, ..alert };
                notices.push(alert.clone());
            }
            firing.insert(service, alert);
        }
        for alert in ended.into_values() {
            self.issued += 1;
            notices.push(resolved(alert, self.issued, now));
        }
        if self.refused.insert(Arc::clone(&rule), refused) != Some(refused) && refused > 0 {
            tracing::warn!(target: "shared_external::monitoring", %rule, refused, "over {MAX_ALERTS} alerts fire; the last ones are not taken in");
        }
        if !firing.is_empty() {
            self.firing.insert(rule, firing);
        }
        notices
    }

    /// A handler delivered the notice of that number.
    pub(crate) fn delivered(&mut self, sequence: u64) {
        let mut alerts = self.firing.values_mut().flat_map(BTreeMap::values_mut);
        if let Some(alert) = alerts.find(|alert| alert.sequence == sequence) {
            alert.notified = true;
        }
    }
}

/// One finding per subject: the worst.
fn worst(findings: Vec<Finding>) -> BTreeMap<Option<Name>, Finding> {
    let mut worst: BTreeMap<_, Finding> = BTreeMap::new();
    for finding in findings {
        match worst.entry(finding.service.clone()) {
            Entry::Occupied(mut held) if held.get().severity < finding.severity => {
                held.insert(finding);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => {
                place.insert(finding);
            }
        }
    }
    worst
}

fn begun(
    rule: &Arc<str>,
    service: Option<Name>,
    severity: AlertSeverity,
    summary: String,
    now: Moment,
) -> Alert {
    let key =
        service.as_ref().map_or_else(|| rule.to_string(), |service| format!("{rule}:{service}"));
    Alert {
        key: key.into(),
        severity,
        service,
        rule: Arc::clone(rule),
        summary,
        since: now.shown,
        resolved: None,
        notified: false,
        sequence: 0,
    }
}

fn resolved(alert: Alert, sequence: u64, now: Moment) -> Alert {
    let summary = format!("resolved: {}", alert.summary);
    Alert {
        severity: AlertSeverity::Info,
        summary,
        resolved: Some(now.shown),
        notified: false,
        sequence,
        ..alert
    }
}

#[cfg(test)]
mod tests {
    use AlertSeverity::{Critical, Error, Info};

    use super::*;
    use crate::wall_clock::Clock;

    fn found(service: &str, severity: AlertSeverity) -> Finding {
        Finding::about(&Name::from(service.to_owned()), severity, format!("{service} is down"))
    }

    fn apply(board: &mut Board, findings: &[Finding]) -> Vec<(String, AlertSeverity, bool)> {
        let notices = board.apply("down", findings.to_vec(), Clock::FIXED.now());
        notices
            .iter()
            .map(|alert| (alert.key.to_string(), alert.severity, alert.is_resolved()))
            .collect()
    }

    #[test]
    fn an_alert_that_goes_on_is_told_once() {
        let mut board = Board::default();
        assert_eq!(apply(&mut board, &[found("a", Error)]), [("down:a".into(), Error, false)]);
        assert_eq!(apply(&mut board, &[found("a", Error)]), []);
        assert_eq!(board.alerts().count(), 1);
    }

    #[test]
    fn every_alert_that_fired_ends_in_a_resolved_one() {
        let mut board = Board::default();
        apply(&mut board, &[found("a", Error), found("b", Critical)]);
        assert_eq!(apply(&mut board, &[found("b", Critical)]), [("down:a".into(), Info, true)]);
        assert_eq!(apply(&mut board, &[]), [("down:b".into(), Info, true)]);
        assert_eq!(apply(&mut board, &[]), []);
        assert_eq!(board.alerts().count(), 0);
    }

    #[test]
    fn one_that_gets_worse_is_told_again_and_never_gets_milder() {
        let mut board = Board::default();
        apply(&mut board, &[found("a", Error)]);
        board.delivered(1);
        assert!(board.alerts().all(|alert| alert.notified));
        assert_eq!(
            apply(&mut board, &[found("a", Critical)]),
            [("down:a".into(), Critical, false)]
        );
        assert!(board.alerts().all(|alert| !alert.notified), "nobody was told how bad it is");
        board.delivered(1);
        assert!(board.alerts().all(|alert| !alert.notified), "that was the milder one");
        board.delivered(2);
        assert!(board.alerts().all(|alert| alert.notified));
        assert_eq!(apply(&mut board, &[found("a", Error)]), []);
        assert!(board.alerts().all(|alert| alert.severity == Critical));
    }

    #[test]
    fn the_rules_do_not_end_each_others_alerts() {
        let mut board = Board::default();
        apply(&mut board, &[found("a", Error)]);
        assert!(board.apply("slow", Vec::new(), Clock::FIXED.now()).is_empty());
        let overall = vec![Finding::overall(Error, "everything is slow")];
        assert_eq!(&*board.apply("slow", overall, Clock::FIXED.now())[0].key, "slow");
        assert!(board.firing("slow").any());
        assert!(board.firing("down").about(&Name::from("a")));
        assert!(!board.firing("down").about(&Name::from("b")));
    }

    #[test]
    fn a_rule_that_finds_without_end_fills_no_memory() {
        let mut board = Board::default();
        let findings: Vec<_> = (0..5000).map(|n| found(&n.to_string(), Error)).collect();
        assert_eq!(apply(&mut board, &findings).len(), MAX_ALERTS);
        assert_eq!(apply(&mut board, &findings), []);
        assert_eq!(board.alerts().count(), MAX_ALERTS);
    }
}
