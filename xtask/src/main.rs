//! `cargo xtask`: reads the command line and hands over to the command's room.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, ci, demo, down, env, fuzz, logs, models, nightly, sim, status, test, tidy, up};

/// Starts real servers, runs the tests against them, holds the house rules.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Down(down::Down),
    Status(status::Status),
    Logs(logs::Logs),
    Env(env::Env),
    Demo(demo::Demo),
    Test(test::Test),
    Bench(bench::Bench),
    Sim(sim::Sim),
    Fuzz(fuzz::Fuzz),
    Models(models::Models),
    Tidy(tidy::Tidy),
    Ci(ci::Ci),
    Nightly(nightly::Nightly),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(command) => command.run(),
        Command::Down(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Logs(command) => command.run(),
        Command::Env(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Sim(command) => command.run(),
        Command::Fuzz(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Tidy(command) => command.run(),
        Command::Ci(command) => command.run(),
        Command::Nightly(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
