// SPDX-License-Identifier: GPL-2.0
//! What is measured: the time between two marks in the stream of answered bytes, seen at the server. So neither the
//! start of fio nor its end is in it, and a few thousand requests are enough. Under `-icount shift=0` a nanosecond is an
//! instruction.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

/// Clocks at one moment.
#[derive(Clone, Copy)]
struct Mark {
    bytes: u64,
    requests: u64,
    /// Time since the boot.
    time: u64,
    /// What this process, which is the server, has used of it.
    server: u64,
    /// What tasks have used of it on all processors: the rest they were idle, or booting.
    busy: u64,
}

/// Counts what a server answers.
pub struct Meter {
    begin: u64,
    end: u64,
    bytes: AtomicU64,
    requests: AtomicU64,
    marks: Mutex<(Option<Mark>, Option<Mark>)>,
}

/// What lies between the marks.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub bytes: u64,
    pub requests: u64,
    pub time: u64,
    pub server: u64,
    pub busy: u64,
}

impl Meter {
    /// Measures from `begin` answered bytes to `end`.
    pub fn new(begin: u64, end: u64) -> Meter {
        Meter { begin, end, bytes: AtomicU64::new(0), requests: AtomicU64::new(0), marks: Mutex::default() }
    }

    /// A request for so many bytes is answered.
    pub fn answered(&self, length: u64) {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        let after = before + length;
        let crosses = |limit: u64| before < limit && limit <= after;
        if crosses(self.begin) {
            let busy = busy();
            let mark = Mark { bytes: after, requests, busy, server: server(), time: now() };
            self.lock().0 = Some(mark);
        }
        if crosses(self.end) {
            let (time, server) = (now(), server());
            self.lock().1 = Some(Mark { bytes: after, requests, time, server, busy: busy() });
        }
    }

    pub fn measured(&self) -> Result<Measured> {
        let (first, last) = *self.lock();
        let first = first.context("the server did not see the measurement begin")?;
        let last = last.context("the server did not see the measurement end")?;
        ensure!(last.time > first.time && last.bytes > first.bytes, "nothing lies between the marks");
        Ok(Measured {
            bytes: last.bytes - first.bytes,
            requests: last.requests.saturating_sub(first.requests),
            time: last.time - first.time,
            server: last.server.saturating_sub(first.server),
            busy: last.busy.saturating_sub(first.busy),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Mark>, Option<Mark>)> {
        self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Time since the boot, in nanoseconds.
pub fn now() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn server() -> u64 {
    nanoseconds(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// The seventh number of each processor's line in /proc/schedstat.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/schedstat").unwrap_or_default();
    let line = |line: &str| line.split_whitespace().nth(7)?.parse::<u64>().ok();
    text.lines().filter(|text| text.starts_with("cpu")).filter_map(line).sum()
}
