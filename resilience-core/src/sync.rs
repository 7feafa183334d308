//! The atomics and the lock of the state machines, in one place so that a model checker can stand in for them.

#[cfg(not(circuit_models))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(circuit_models))]
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(circuit_models)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(circuit_models)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(circuit_models)]
pub(crate) use std::sync::PoisonError;

/// Replaces the value as `change` says, unless it says `None`; whether it did.
#[inline]
pub(crate) fn update(word: &AtomicU64, mut change: impl FnMut(u64) -> Option<u64>) -> bool {
    let mut held = word.load(Ordering::Acquire);
    while let Some(next) = change(held) {
        match word.compare_exchange_weak(held, next, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(other) => held = other,
        }
    }
    false
}
