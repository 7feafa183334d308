//! `allocations breaker|pipeline|postgres [--json]`: counts. A program of its own, because the allocator that counts
//! would cost those that allocate some of their time.

use std::process::ExitCode;

use bench::case::Subject;
use bench::report::{Report, Row};
use bench::{breaker, observer, pipeline, timing};

/// Operations over which is counted.
const OPERATIONS: u64 = 1000;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let mut report = Report::new(args.iter().any(|arg| arg == "--json"));
    let _inside = timing::RUNTIME.enter();
    #[cfg(feature = "postgres")]
    let server;
    let cases = match args.first().map(String::as_str) {
        Some("breaker") => breaker::cases(),
        Some("pipeline") => pipeline::cases(),
        #[cfg(feature = "postgres")]
        Some("postgres") => {
            monitoring::install_metrics();
            server = bench::postgres::Server::start();
            vec![bench::postgres::checkout::case(&server)]
        }
        _ => {
            eprintln!("usage: allocations breaker|pipeline|postgres [--json]");
            return ExitCode::from(2);
        }
    };
    for case in cases.iter().filter(|case| case.threads == 1) {
        for (place, subject) in case.subjects.iter().enumerate() {
            let row = count(&case.name, subject);
            let none = case.allocates_nothing && place == 0;
            report.add(&if none { nothing(row) } else { row });
        }
    }
    if args[0] == "breaker" {
        let subjects = observer::subjects();
        observer::install();
        for (name, subject) in subjects {
            report.add(&nothing(count(name, &subject)));
        }
    }
    report.end()
}

fn count(bench: &str, subject: &Subject) -> Row {
    subject.run(OPERATIONS);
    let info = allocation_counter::measure(|| subject.run(OPERATIONS));
    Row::new(bench, subject.name, info.count_total as f64 / OPERATIONS as f64, "allocations")
}

fn nothing(row: Row) -> Row {
    let ok = row.value == 0.0;
    row.target("0 allocations", ok)
}
