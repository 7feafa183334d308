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

    /// loom's, made as strict as it means to be. Of loom 0.7 a plain store can come between the two
    /// halves of another thread's read-modify-write: here it is a swap. And a load hides earlier ones
    /// from the search for other orders: here each access takes its turn first, which orders nothing
    /// but shows that there was one.
    #[derive(Debug)]
    pub(crate) struct AtomicU64 {
        value: atomic::AtomicU64,
        turn: atomic::AtomicU64,
    }

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self { value: atomic::AtomicU64::new(value), turn: atomic::AtomicU64::new(0) }
        }

        #[track_caller]
        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.in_turn().load(order)
        }

        #[track_caller]
        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.in_turn().swap(value, order);
        }

        #[track_caller]
        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.in_turn().fetch_add(value, order)
        }

        #[track_caller]
        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.in_turn().fetch_sub(value, order)
        }

        #[track_caller]
        pub(crate) fn try_update(
            &self,
            success: Ordering,
            failure: Ordering,
            mut change: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            let mut held = self.load(failure);
            while let Some(next) = change(held) {
                match self.compare_exchange_weak(held, next, success, failure) {
                    Ok(before) => return Ok(before),
                    Err(other) => held = other,
                }
            }
            Err(held)
        }

        #[track_caller]
        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.in_turn().compare_exchange_weak(current, new, success, failure)
        }

        fn in_turn(&self) -> &atomic::AtomicU64 {
            self.turn.fetch_add(1, Ordering::Relaxed);
            &self.value
        }
    }
}
