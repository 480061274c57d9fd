// SPDX-License-Identifier: GPL-2.0

//! Limits on how often something is printed.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use kernel::{
    bindings,
    sync::atomic::{Atomic, Relaxed},
    time::Delta,
};

/// Lines that may be printed in one interval.
const BURST: u32 = 10;

/// Length of an interval, as the C side's default: 5 s.
const INTERVAL: Delta = Delta::from_secs(5);

/// Lets ten lines pass in five seconds, as the C side's default, and counts the missed ones.
pub(crate) struct RatelimitState {
    /// When the interval began, in nanoseconds of the monotonic clock.
    begin: Atomic<i64>,
    printed: Atomic<u32>,
    missed: Atomic<u32>,
}

/// A line may be printed; so many were missed since the last.
pub(crate) struct Passed {
    /// Lines that were missed.
    pub(crate) missed: u32,
}

impl Default for RatelimitState {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl RatelimitState {
    /// A limit of which nothing is used.
    #[inline]
    pub(crate) const fn new() -> Self {
        Self {
            begin: Atomic::new(0),
            printed: Atomic::new(0),
            missed: Atomic::new(0),
        }
    }

    /// Whether another line may be printed now (`__ratelimit`). Any context.
    ///
    /// Callers at the same moment may get a line more or less: it is a limit, not a count.
    pub(crate) fn ratelimit(&self) -> Option<Passed> {
        // SAFETY: May be called in any context.
        let now = unsafe { bindings::ktime_get() };
        let begin = self.begin.load(Relaxed);
        if begin == 0 || now.wrapping_sub(begin) > INTERVAL.as_nanos() {
            self.begin.store(now, Relaxed);
            self.printed.store(0, Relaxed);
        }
        if self.printed.fetch_add(1, Relaxed) < BURST {
            Some(Passed {
                missed: self.missed.xchg(0, Relaxed),
            })
        } else {
            self.missed.add(1, Relaxed);
            None
        }
    }
}
