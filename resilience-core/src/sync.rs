//! The atomics and the lock of the state machines, in one place so that a model checker can stand in for them.

#[cfg(not(circuit_models))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(circuit_models))]
pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(circuit_models)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(circuit_models)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(circuit_models)]
pub(crate) use modelled::AtomicU64;
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

#[cfg(circuit_models)]
mod modelled {
    use loom::sync::atomic::{self, Ordering};

    /// loom's, but for the plain store. Of that loom 0.7 believes that it can come between the two
    /// halves of another thread's read-modify-write; of a swap it does not.
    #[derive(Debug)]
    pub(crate) struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        #[track_caller]
        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        #[track_caller]
        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, order);
        }

        #[track_caller]
        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, order)
        }

        #[track_caller]
        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_sub(value, order)
        }

        #[track_caller]
        pub(crate) fn try_update(
            &self,
            success: Ordering,
            failure: Ordering,
            change: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            self.0.fetch_update(success, failure, change)
        }

        #[track_caller]
        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange_weak(current, new, success, failure)
        }
    }
}
