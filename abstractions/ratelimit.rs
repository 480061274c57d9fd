// SPDX-License-Identifier: GPL-2.0

//! Limits on how often something is said.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use kernel::{
    bindings,
    sync::atomic::{Atomic, Relaxed},
    time::Delta,
};

/// Lines that may be said in one interval.
const BURST: u32 = 10;

/// Length of an interval, as the C side's default: 5 s.
const INTERVAL: Delta = Delta::from_secs(5);

/// Lets ten lines pass in five seconds, and counts what it holds back.
pub(crate) struct RateLimit {
    /// When the interval began, in nanoseconds of the monotonic clock.
    begin: Atomic<i64>,
    said: Atomic<u32>,
    held_back: Atomic<u32>,
}

/// A line may be said; so many were held back since the last.
pub(crate) struct MaySay {
    /// Lines that were held back.
    pub(crate) held_back: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl RateLimit {
    /// A limit of which nothing is used.
    pub(crate) const fn new() -> Self {
        Self {
            begin: Atomic::new(0),
            said: Atomic::new(0),
            held_back: Atomic::new(0),
        }
    }

    /// Whether another line may be said now. Any context.
    ///
    /// Callers at the same moment may get a line more or less: it is a limit, not a count.
    pub(crate) fn may_say(&self) -> Option<MaySay> {
        // SAFETY: May be called in any context.
        let now = unsafe { bindings::ktime_get() };
        let begin = self.begin.load(Relaxed);
        if begin == 0 || now.wrapping_sub(begin) > INTERVAL.as_nanos() {
            self.begin.store(now, Relaxed);
            self.said.store(0, Relaxed);
        }
        if self.said.fetch_add(1, Relaxed) < BURST {
            Some(MaySay {
                held_back: self.held_back.xchg(0, Relaxed),
            })
        } else {
            self.held_back.add(1, Relaxed);
            None
        }
    }
}
