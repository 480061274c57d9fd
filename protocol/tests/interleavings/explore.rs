// SPDX-License-Identifier: GPL-2.0

//! How interleavings are explored, and the kernel's atomics in loom's terms.

use loom::{
    model::Builder,
    sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use rnbd_protocol::request::AtomicWord;
use std::sync::{
    atomic::{AtomicUsize, Ordering::Relaxed},
    Arc,
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
