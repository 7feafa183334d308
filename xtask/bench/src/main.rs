//! `bench breaker|pipeline|defects [--json]`: times; says by its exit status whether all is as claimed.

use std::process::ExitCode;

use bench::report::{Report, rows};
use bench::{breaker, defects, observer, pipeline, timing};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let mut report = Report::new(args.iter().any(|arg| arg == "--json"));
    let _inside = timing::RUNTIME.enter();
    match args.first().map(String::as_str) {
        Some("breaker") => {
            for case in breaker::cases() {
                rows(&case, &timing::time(&case)).iter().for_each(|row| report.add(row));
            }
            observer::times().iter().for_each(|row| report.add(row));
        }
        Some("pipeline") => {
            for case in pipeline::cases() {
                rows(&case, &timing::time(&case)).iter().for_each(|row| report.add(row));
            }
        }
        Some("defects") => defects::run().iter().for_each(|row| report.add(row)),
        _ => {
            eprintln!("usage: bench breaker|pipeline|defects [--json]");
            return ExitCode::from(2);
        }
    }
    report.end()
}
