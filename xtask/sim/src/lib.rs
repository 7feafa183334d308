//! Seeded simulations of whole systems in which `resilience-core`'s own types make the decisions.
//!
//! Only the world around those types is a model: services, networks, clients ([`service`], [`world`]). It runs on a
//! paused clock, so that an hour takes a second; one seed gives one result. What comes out is a list of
//! [`Row`]s, each beside the figure that was published for the same set-up, where there is one.
#![forbid(unsafe_code)]

pub mod cold_cache;
pub mod collapse;
pub mod jitter;
pub mod priority;
mod report;
pub mod retry;
pub mod service;
pub mod stampede;
pub mod world;

pub use report::{Row, Target, table};

/// One of the simulations.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What is simulated, whose figures stand beside it, and what to make of the difference.
    pub about: &'static str,
    /// Runs it in full. One seed gives one result.
    pub run: fn(seed: u64) -> Vec<Row>,
}

/// Every simulation, in the order in which `all` runs them.
pub const ALL: [Simulation; 6] = [
    retry::SIMULATION,
    collapse::SIMULATION,
    cold_cache::SIMULATION,
    jitter::SIMULATION,
    stampede::SIMULATION,
    priority::SIMULATION,
];
