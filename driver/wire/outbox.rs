// SPDX-License-Identifier: GPL-2.0

//! Requests that wait to be sent on a connection.

use crate::{abstractions::block::mq::Request, driver::nbd::Nbd};
use kernel::{
    new_condvar, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        CondVar, SpinLock,
    },
    time::{Instant, Monotonic},
};

/// Requests that a hardware queue takes.
pub(crate) const QUEUE_DEPTH: u32 = 128;

/// How many requests wait at most. What finds no room comes again.
pub(crate) const CAPACITY: usize = QUEUE_DEPTH as usize;

/// A queue of requests, in their order.
pub(crate) type Requests = KVec<ARef<Request<Nbd>>>;

/// Requests that wait to be sent on a connection.
#[pin_data]
pub(crate) struct Outbox {
    #[pin]
    waiting: SpinLock<Waiting>,
    /// The sender is wanted.
    #[pin]
    wanted: CondVar,
    batching: BatchHeuristic,
}

struct Waiting {
    requests: Requests,
    /// When the first of them came.
    since: Instant<Monotonic>,
    /// The connection's sender is to send them.
    due: bool,
    /// A request has found no room.
    was_full: bool,
    /// No sender is needed any more.
    closed: bool,
}

/// What is known of requests that were taken.
pub(crate) struct Taken {
    /// When the first of them came.
    pub(crate) since: Instant<Monotonic>,
    /// Others have found no room.
    pub(crate) was_full: bool,
}

/// There are too many already.
pub(crate) struct Full;

impl Outbox {
    /// Nothing waits. Sleeps.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let waiting = Waiting {
            requests: KVec::with_capacity(CAPACITY, GFP_KERNEL)?,
            since: Instant::now(),
            due: false,
            was_full: false,
            closed: false,
        };
        Ok(pin_init!(Self {
            waiting <- new_spinlock!(waiting, "rnbd::outbox"),
            wanted <- new_condvar!("rnbd::outbox_wanted"),
            batching: BatchHeuristic::new(),
        }))
    }

    /// Lets a request wait. The caller sees to it that it is sent, or calls [`Self::commit`],
    /// soon. Any context.
    pub(crate) fn put(&self, request: &Request<Nbd>) -> Result<(), Full> {
        let mut waiting = self.waiting.lock();
        if waiting.requests.is_empty() {
            waiting.since = Instant::now();
        }
        let put = waiting.requests.push_within_capacity(ARef::from(request));
        waiting.was_full |= put.is_err();
        put.map_err(|_| Full)
    }

    /// Has the connection's sender send what waits. Any context.
    pub(crate) fn commit(&self) {
        let wake = {
            let mut waiting = self.waiting.lock();
            !waiting.requests.is_empty() && !core::mem::replace(&mut waiting.due, true)
        };
        if wake {
            self.wanted.notify_one();
        }
    }

    /// Whether it is worth while to leave a request to the sender: others are likely to come before
    /// it is sent. Any context.
    pub(crate) fn expects_batch(&self) -> bool {
        self.batching.is_expected()
    }

    /// Has the connection's sender look, also if nothing waits here. Any context.
    pub(crate) fn call_sender(&self) {
        self.waiting.lock().due = true;
        self.wanted.notify_one();
    }

    /// Waits until there is something to send; for the connection's sender. False when it is not
    /// needed any more. Sleeps.
    pub(crate) fn wait(&self) -> bool {
        let mut waiting = self.waiting.lock();
        while !waiting.due && !waiting.closed {
            // Whether a signal came is no matter: a kernel thread gets none.
            let _ = self.wanted.wait_interruptible(&mut waiting);
        }
        waiting.due
    }

    /// No sender is needed any more. Any context.
    pub(crate) fn close(&self) {
        self.waiting.lock().closed = true;
        self.wanted.notify_all();
    }

    /// Takes what waits, in exchange for an empty queue of the same capacity. Any context.
    pub(crate) fn take(&self, requests: &mut Requests) -> Taken {
        let mut waiting = self.waiting.lock();
        waiting.due = false;
        core::mem::swap(&mut waiting.requests, requests);
        Taken {
            since: waiting.since,
            was_full: core::mem::take(&mut waiting.was_full),
        }
    }

    /// The sender has met so many requests at once.
    pub(crate) fn record_batch(&self, requests: usize) {
        self.batching.record(requests);
    }
}

/// Whether requests come alone. A guess, by what the sender has met: a task that submits one request
/// after the other, each after the answer to the last, does best to send by itself; one that has many
/// to submit does best to leave them, and both look the same when the server is faster than the task.
struct BatchHeuristic {
    /// How many requests in a row were alone.
    alone: Atomic<u32>,
}

impl BatchHeuristic {
    const fn new() -> Self {
        Self {
            alone: Atomic::new(0),
        }
    }

    /// After so many alone, others are not expected.
    const ENOUGH: u32 = 4;

    /// After so many more the sender is tried again.
    const TRY_AGAIN: u32 = 64;

    fn is_expected(&self) -> bool {
        let alone = self.alone.load(Relaxed);
        let next = alone.wrapping_add(1);
        if alone < Self::ENOUGH {
            return true;
        }
        let again = next > Self::ENOUGH.wrapping_add(Self::TRY_AGAIN);
        let next = if again {
            Self::ENOUGH.wrapping_sub(1)
        } else {
            next
        };
        self.alone.store(next, Relaxed);
        again
    }

    fn record(&self, requests: usize) {
        match requests {
            0 => {}
            1 => self
                .alone
                .store(self.alone.load(Relaxed).saturating_add(1), Relaxed),
            _ => self.alone.store(0, Relaxed),
        }
    }
}
