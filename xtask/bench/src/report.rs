//! What was found: a table for people, a JSON object a line for programs, and whether all of it is as claimed.

use std::process::ExitCode;

use serde::Serialize;

use crate::case::{Case, Claim};
use crate::timing::Timing;

/// One finding.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The case.
    pub bench: String,
    /// The crate.
    pub subject: String,
    /// The median, the count, or the worst of few rounds.
    pub value: f64,
    /// `ns`, `allocations` or `round trips` for each operation; `ms` for each round; `passed`; or what is counted.
    pub unit: &'static str,
    /// The crate that it is compared with.
    pub against: Option<&'static str>,
    /// The median of the ratios to it.
    pub ratio: Option<f64>,
    /// What is claimed.
    pub target: Option<String>,
    /// Whether the claim holds; true where nothing is claimed.
    pub ok: bool,
    /// The quartiles around a median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quartiles: Option<(f64, f64)>,
    /// What was seen, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
}

impl Row {
    /// A value of which nothing is claimed.
    pub fn new(
        bench: impl Into<String>,
        subject: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            bench: bench.into(),
            subject: subject.into(),
            value,
            unit,
            against: None,
            ratio: None,
            target: None,
            ok: true,
            quartiles: None,
            seen: None,
        }
    }

    /// Claims `target`, and whether it holds.
    #[must_use]
    pub fn target(self, target: impl Into<String>, ok: bool) -> Self {
        Self { target: Some(target.into()), ok, ..self }
    }
}

/// The rows of a case: one for each claim on the first subject, one for each of the others.
#[must_use]
pub fn rows(case: &Case, timings: &[Timing]) -> Vec<Row> {
    let row = |which: usize| Row {
        quartiles: Some(timings[which].quartiles()),
        ..Row::new(&case.name, case.subjects[which].name, timings[which].median(), "ns")
    };
    let judge = |claim: &Claim| {
        let ours = &timings[0];
        let peer = |name: &str| {
            let place = case.subjects.iter().position(|subject| subject.name == name);
            &timings[place.expect("a claim names a subject of its case")]
        };
        let against = |name: &'static str| Row {
            against: Some(name),
            ratio: Some(ours.ratio(peer(name))),
            ..row(0)
        };
        match *claim {
            Claim::AtMost(most) => row(0).target(format!("≤ {most} ns"), ours.median() <= most),
            Claim::Times(most, name) => {
                let ok = ours.ratio(peer(name)) <= most;
                against(name).target(format!("≤ {most} × {name}"), ok)
            }
            Claim::Above(most, name) => {
                let ok = ours.above(peer(name)) <= most;
                against(name).target(format!("≤ {name} + {most} ns"), ok)
            }
            Claim::Compared(name) => against(name),
        }
    };
    let mut rows: Vec<_> = case.claims.iter().map(judge).collect();
    if rows.is_empty() {
        rows.push(row(0));
    }
    rows.extend((1..case.subjects.len()).map(row));
    rows
}

/// Where findings go, as they come.
#[derive(Debug)]
pub struct Report {
    json: bool,
    last: String,
    missed: Vec<String>,
}

impl Report {
    /// A report as JSON, or as a table.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, last: String::new(), missed: Vec::new() }
    }

    /// Prints one finding.
    pub fn add(&mut self, row: &Row) {
        if !row.ok {
            let target = row.target.as_deref().unwrap_or("what is expected");
            self.missed.push(format!("{}, {}: {target}", row.bench, row.subject));
        }
        if self.json {
            println!("{}", serde_json::to_string(row).expect("a row has no map"));
            return;
        }
        if self.last != row.bench {
            println!("\n{}", row.bench);
            self.last.clone_from(&row.bench);
        }
        println!("{}", line(row));
    }

    /// Says what missed its target; the program's exit status.
    #[must_use]
    pub fn end(self) -> ExitCode {
        if self.missed.is_empty() {
            return ExitCode::SUCCESS;
        }
        for missed in &self.missed {
            eprintln!("missed: {missed}");
        }
        ExitCode::FAILURE
    }
}

fn line(row: &Row) -> String {
    let verdict = match &row.target {
        Some(target) => format!("{target}: {}", if row.ok { "ok" } else { "MISSED" }),
        None => String::new(),
    };
    let found = match (&row.seen, row.quartiles) {
        (Some(seen), _) => format!("{seen:<54}"),
        (None, Some((low, high))) => {
            format!("{:<36}", format!("{:>9.1} {} ({low:.1} to {high:.1})", row.value, row.unit))
        }
        (None, None) => format!("{:<36}", format!("{:>9.1} {}", row.value, row.unit)),
    };
    let ratio = match (row.ratio, row.against) {
        (Some(ratio), Some(against)) => format!("{:<28}", format!("{ratio:.2} × {against}")),
        _ if row.quartiles.is_some() => " ".repeat(28),
        _ => String::new(),
    };
    format!("  {:<20}{found}{ratio}{verdict}", row.subject).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_fields_that_programs_read_in_their_order() {
        let row = Row::new("closed", "ours", 3.5, "ns").target("≤ 5 ns", true);
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(
            text,
            r#"{"bench":"closed","subject":"ours","value":3.5,"unit":"ns","against":null,"ratio":null,"target":"≤ 5 ns","ok":true}"#
        );
    }

    #[test]
    fn a_missed_target_is_the_exit_status() {
        let mut report = Report::new(true);
        report.add(&Row::new("a", "ours", 1.0, "ns"));
        assert_eq!(format!("{:?}", Report::new(true).end()), format!("{:?}", ExitCode::SUCCESS));
        report.add(&Row::new("a", "ours", 9.0, "ns").target("≤ 5 ns", false));
        assert_eq!(format!("{:?}", report.end()), format!("{:?}", ExitCode::FAILURE));
    }
}
