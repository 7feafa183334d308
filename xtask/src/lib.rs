//! The workspace's own tool as a library: one room for each command, and the rooms that they share.
//!
//! [`servers::Servers`] is the way to the real servers for every command that needs them.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cargo;
pub mod checkout;
pub mod ci;
pub mod clock;
pub mod demo;
pub mod down;
pub mod env;
pub mod fuzz;
pub mod interrupt;
pub mod logs;
pub mod models;
pub mod nightly;
pub mod process;
pub mod progress;
pub mod servers;
pub mod sim;
pub mod status;
pub mod test;
pub mod tidy;
pub mod up;
