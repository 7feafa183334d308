//! The program behind `cargo xtask sim`: runs one simulation or all, and prints a table or JSON lines.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Runs simulations of resilience-core's own types, each beside the figure published for it.
#[derive(Parser)]
struct Cli {
    /// One of them, or `all`
    #[arg(value_parser = names())]
    name: String,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// What all random numbers follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn names() -> Vec<&'static str> {
    sim::ALL.iter().map(|simulation| simulation.name).chain(["all"]).collect()
}

fn main() -> ExitCode {
    let Cli { name, json, seed } = Cli::parse();
    let mut met = true;
    for simulation in sim::ALL.iter().filter(|one| name == "all" || name == one.name) {
        let rows = (simulation.run)(seed);
        met &= rows.iter().all(|row| row.ok);
        if json {
            for row in &rows {
                println!("{}", serde_json::to_string(row).expect("a row is plain data"));
            }
        } else {
            println!("{}", sim::table(simulation, &rows));
        }
    }
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
