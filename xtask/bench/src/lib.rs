//! Measures `resilience-core` beside its peers, in one process: what a call costs, and what each does in the
//! situations that published crates get wrong.
//!
//! Built in release mode with cargo's own settings, as a service builds it. Peers run in the same process, in short
//! interleaved blocks whose order rotates; threads are kept on processors of their own as far as there are any. The
//! figures are medians over the blocks, and ratios are medians of the ratios within a round.

pub mod breaker;
pub mod case;
pub mod defects;
pub mod observer;
pub mod pipeline;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod report;
pub mod subjects;
pub mod timing;
