// SPDX-License-Identifier: GPL-2.0

//! How interleavings are explored, and the kernel's atomics in loom's terms.

use loom::{
    model::Builder,
    sync::{
        atomic::{fence, AtomicBool, AtomicU32, AtomicU64, Ordering},
        Condvar, Mutex,
    },
};
use rnbd_protocol::request::AtomicWord;
use std::{
    ops::{Deref, DerefMut},
    sync::{
        atomic::{AtomicUsize, Ordering::Relaxed},
        Arc,
    },
};

/// Runs `model` once for each interleaving with at most so many preemptions.
pub fn explore(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    println!("{name}: {} interleavings", runs.load(Relaxed));
}

/// What follows an operation that the kernel orders fully.
///
/// The kernel has a full barrier before it too. Without that one the model allows more than the
/// kernel does, never less.
fn full<T>(result: T) -> T {
    fence(Ordering::SeqCst);
    result
}

/// `driver/device.rs`, `RequestWord`. An exchange that fails orders nothing, as in the kernel.
pub struct RequestWord(AtomicU64);

impl AtomicWord for RequestWord {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| full(()))
    }
}

/// A flag that is read without order.
pub struct Flag(AtomicBool);

impl Flag {
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn store_relaxed(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// `xchg(true, Full)`.
    pub fn set_full(&self) -> bool {
        full(self.0.swap(true, Ordering::AcqRel))
    }
}

/// A number that changes with full order and is read with none.
pub struct Number(AtomicU32);

impl Number {
    pub fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    pub fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn store_release(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }

    /// Adds where no other thread changes it.
    pub fn add_alone(&self, more: u32) {
        self.0.store(self.load() + more, Ordering::Relaxed);
    }

    pub fn fetch_sub_full(&self, less: u32) -> u32 {
        full(self.0.fetch_sub(less, Ordering::AcqRel))
    }

    pub fn fetch_add_full(&self, more: u32) -> u32 {
        full(self.0.fetch_add(more, Ordering::AcqRel))
    }

    pub fn fetch_add_relaxed(&self, more: u32) -> u32 {
        self.0.fetch_add(more, Ordering::Relaxed)
    }

    pub fn compare_exchange_full(&self, old: u32, new: u32) -> Result<(), u32> {
        self.0
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| full(()))
    }
}

/// A lock that may be tried. loom's own lets a thread that tries wait, where it came first; and does
/// not explore what giving back and trying may do to each other.
pub struct TryMutex<T> {
    value: Mutex<Option<T>>,
    given_back: Condvar,
}

/// The lock, held.
pub struct TryMutexGuard<'a, T> {
    lock: &'a TryMutex<T>,
    value: Option<T>,
}

impl<T> TryMutex<T> {
    pub fn new(value: T) -> Self {
        Self {
            value: Mutex::new(Some(value)),
            given_back: Condvar::new(),
        }
    }

    pub fn lock(&self) -> TryMutexGuard<'_, T> {
        let mut there = self.value.lock().unwrap();
        loop {
            if let Some(value) = there.take() {
                return self.held(value);
            }
            there = self.given_back.wait(there).unwrap();
        }
    }

    pub fn try_lock(&self) -> Option<TryMutexGuard<'_, T>> {
        let value = self.value.lock().unwrap().take()?;
        Some(self.held(value))
    }

    fn held(&self, value: T) -> TryMutexGuard<'_, T> {
        TryMutexGuard {
            lock: self,
            value: Some(value),
        }
    }
}

impl<T> Deref for TryMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().unwrap()
    }
}

impl<T> DerefMut for TryMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().unwrap()
    }
}

impl<T> Drop for TryMutexGuard<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        *self.lock.value.lock().unwrap() = self.value.take();
        self.lock.given_back.notify_one();
    }
}
