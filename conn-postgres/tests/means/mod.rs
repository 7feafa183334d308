//! What provokes each row of the classifier's table: where no connection is had, where one breaks, where the server refuses.

#![allow(unreachable_pub, reason = "it is a part of one test")]

mod answered;
mod broken;
mod unopened;

pub use answered::*;
pub use broken::*;
pub use unopened::*;
