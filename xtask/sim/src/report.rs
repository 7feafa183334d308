//! What a simulation found: rows for people as a table, for programs as JSON.

use std::fmt::Write;

use serde::{Serialize, Serializer};

use crate::Simulation;

/// One figure of one case, beside the published one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// The simulation's name.
    pub sim: &'static str,
    /// What was simulated.
    pub case: String,
    /// What was measured, and in what unit.
    pub metric: &'static str,
    /// What we found.
    pub value: f64,
    /// What was published for the same set-up, or follows from a closed form.
    pub published: Option<f64>,
    /// What our figure has to be.
    pub target: Target,
    /// Whether it is; true where there is no target.
    pub ok: bool,
}

impl Row {
    /// A figure without any other beside it.
    pub fn new(
        sim: &'static str,
        case: impl Into<String>,
        metric: &'static str,
        value: f64,
    ) -> Self {
        let case = case.into();
        Self { sim, case, metric, value, published: None, target: Target::None, ok: true }
    }

    /// The same beside the published figure.
    #[must_use]
    pub fn published(self, figure: f64) -> Self {
        Self { published: Some(figure), ..self }
    }

    /// The same measured against `target`.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        let ok = target.is_met(self.value, self.published);
        Self { target, ok, ..self }
    }
}

/// The figure to stand beside ours, if there is one, and what ours has to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge(pub(crate) Option<f64>, pub(crate) Target);

impl Judge {
    /// For what is shown for comparison.
    pub(crate) const NONE: Self = Self(None, Target::None);

    pub(crate) fn of(self, row: Row) -> Row {
        Row { published: self.0, ..row }.target(self.1)
    }
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Anything: it is shown for comparison.
    None,
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
    /// The published figure, give or take this share of it.
    Within(f64),
    /// The published figure, give or take this much.
    Near(f64),
}

impl Target {
    fn is_met(self, value: f64, published: Option<f64>) -> bool {
        let distance = published.map_or(f64::NAN, |figure| (value - figure).abs());
        match self {
            Self::None => true,
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::Within(share) => distance <= share * published.unwrap_or(f64::NAN),
            Self::Near(most) => distance <= most,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::None => String::new(),
            Self::AtLeast(least) => format!(">= {}", figure(least)),
            Self::AtMost(most) => format!("<= {}", figure(most)),
            Self::Within(share) => format!("within {} %", share * 100.0),
            Self::Near(most) => format!("within {most}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_none(),
            target => serializer.serialize_str(&target.shown()),
        }
    }
}

/// The rows of `simulation` for people.
#[must_use]
pub fn table(simulation: &Simulation, rows: &[Row]) -> String {
    const HEADER: [&str; 6] = ["case", "metric", "value", "published", "target", ""];
    let mut lines = vec![HEADER.map(ToOwned::to_owned)];
    let mut above = "";
    for row in rows {
        // A case that goes on is named once.
        let case = if row.case == above { "" } else { row.case.as_str() };
        above = &row.case;
        lines.push([
            case.to_owned(),
            row.metric.to_owned(),
            figure(row.value),
            row.published.map(figure).unwrap_or_default(),
            row.target.shown(),
            match (row.ok, row.target) {
                (true, Target::None) => String::new(),
                (true, _) => "ok".to_owned(),
                (false, _) => "MISSED".to_owned(),
            },
        ]);
    }
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..HEADER.len()).map(width).collect();
    let about = wrapped(&format!("{}: {}", simulation.name, simulation.about));
    let mut text = format!("{about}\n\n");
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Figures end where they can be compared.
            if (2..4).contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            }
        });
        let cells: Vec<_> = cells.collect();
        writeln!(text, "  {}", cells.join("  ").trim_end()).expect("a string takes any text");
    }
    text
}

/// Broken into lines of 100 characters at the most.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(word.to_owned());
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// Four digits that count; thousands in full.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_is_not_ok() {
        let row = |value| Row::new("retry", "none", "load", value).published(2.0);
        assert!(row(2.09).target(Target::Within(0.05)).ok);
        assert!(!row(2.11).target(Target::Within(0.05)).ok);
        assert!(!row(1.89).target(Target::Within(0.05)).ok);
        assert!(row(2.2).target(Target::Near(0.21)).ok);
        assert!(!row(1.7).target(Target::Near(0.21)).ok);
        assert!(!row(0.98).target(Target::AtLeast(0.99)).ok);
        assert!(!row(1.2).target(Target::AtMost(1.1)).ok);
        assert!(!row(f64::NAN).target(Target::AtLeast(0.99)).ok, "no figure is no success");
    }

    #[test]
    fn nothing_is_near_a_figure_that_nobody_published() {
        assert!(!Row::new("retry", "none", "load", 1.0).target(Target::Within(0.5)).ok);
    }

    #[test]
    fn a_missed_target_is_seen_in_the_table() {
        let about = "the quick brown fox jumps over the lazy dog ".repeat(4);
        let about = Box::leak(about.into_boxed_str());
        let simulation = Simulation { name: "retry", about, run: |_| Vec::new() };
        let missed = Row::new("retry", "none", "load", 1234.5).target(Target::AtMost(1.0));
        let text = table(&simulation, &[missed, Row::new("retry", "none", "success", 0.5)]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let rows: Vec<_> = text.lines().rev().take(2).collect();
        assert_eq!(
            rows[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "none load 1234 <= 1.000 MISSED"
        );
        assert_eq!(rows[0].trim(), "success  0.500");
    }

    #[test]
    fn a_row_is_one_object_of_the_agreed_fields() {
        let row = Row::new("retry", "none", "load", 1.0).published(1.0).target(Target::AtMost(1.1));
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"sim":"retry","case":"none","metric":"load","value":1.0,"published":1.0,"target":"<= 1.100","ok":true}"#
        );
    }
}
