// SPDX-License-Identifier: GPL-2.0

//! What every room knows of the driver: its name for the block layer, and its data in a request.

use crate::{
    abstractions::block::mq::{Outcome, Request},
    protocol::request::{AtomicWord, Claim, Word},
};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full, Release},
};

/// The driver, as the block layer's types name it. What it does for them is in
/// [`block`](super::block).
pub(crate) enum Nbd {}

/// The driver's data of a request: the word that says which holder may answer it.
#[derive(Default)]
pub(crate) struct RequestData {
    pub(crate) word: Word<RequestWord>,
}

/// The kernel's atomics for [`Word`].
pub(crate) struct RequestWord(Atomic<u64>);

impl AtomicWord for RequestWord {
    fn new(value: u64) -> Self {
        Self(Atomic::new(value))
    }

    fn load(&self) -> u64 {
        self.0.load(Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Release);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0.cmpxchg(old, new, Full).map(|_| ())
    }
}

/// Answers a request with the right to do so. Any context.
pub(crate) fn answer(request: &Request<Nbd>, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    end_unsent(request, outcome);
}

/// Finishes a request that is on no connection, or whose claim is used up. Any context.
pub(crate) fn end_unsent(request: &Request<Nbd>, outcome: Outcome) {
    // There is one claim at a time: nothing else has finished the request.
    let finished = request.finish(outcome);
    debug_assert!(finished.is_ok());
}
