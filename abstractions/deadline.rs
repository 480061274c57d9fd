// SPDX-License-Identifier: GPL-2.0

//! Waiting for something that nobody tells of, for a bounded time.
//!
//! C header: [`include/linux/iopoll.h`](srctree/include/linux/iopoll.h)

use kernel::time::{delay::fsleep, Delta, Instant, Monotonic};

/// How often it is looked.
const TICK: Delta = Delta::from_millis(1);

/// A point in time.
pub(crate) struct Deadline {
    begun: Instant<Monotonic>,
    ms: i64,
}

impl Deadline {
    /// So many milliseconds from now.
    pub(crate) fn after(ms: u32) -> Self {
        Self {
            begun: Instant::now(),
            ms: i64::from(ms),
        }
    }

    /// Whether it has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.begun.elapsed().as_millis() >= self.ms
    }

    /// Looks again and again until there is something, or the time is over; once at least. Sleeps.
    pub(crate) fn poll<R>(&self, mut look: impl FnMut() -> Option<R>) -> Option<R> {
        loop {
            // In this order: after the last sleep it is looked once more.
            let over = self.is_over();
            let seen = look();
            if seen.is_some() || over {
                return seen;
            }
            fsleep(TICK);
        }
    }
}
