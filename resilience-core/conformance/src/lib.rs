//! What a connector promises, as behaviours to run on it and a real server: for tests only.

mod behaviours;
mod capability;
mod events;
mod harness;
mod report;
mod stage;
mod suite;
mod wire;

pub use capability::{Capability, Support};
pub use harness::{Gate, Harness, Setup, Subject, Told, Way, Work, unsupported};
pub use report::{Entry, Outcome, Report};
pub use suite::{names, run, run_only};
pub use wire::{State, Wire};
