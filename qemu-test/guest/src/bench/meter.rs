// SPDX-License-Identifier: GPL-2.0
//! What is measured: the time between two marks in the stream of answered bytes. So neither the start of fio nor its
//! end is in it, and a few thousand requests are enough. Under `-icount shift=0` a nanosecond is an instruction.
//!
//! Our own server sees the marks pass. With a real server, what is done is read of the device, once in a while.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::kernel::{PERIOD, Sampler};

/// Clocks at one moment.
#[derive(Clone, Copy)]
struct Mark {
    bytes: u64,
    requests: u64,
    /// Time since the boot.
    time: u64,
    /// What the server's process has used of it.
    server: u64,
    /// What tasks have used of it on all processors: the rest they were idle, or booting.
    busy: u64,
    /// What the kernel has used of it, by samples, if they are taken.
    kernel: u64,
}

/// Counts what a server answers.
pub struct Meter {
    begin: u64,
    end: u64,
    server: ClockId,
    sampler: Option<Arc<Sampler>>,
    bytes: AtomicU64,
    requests: AtomicU64,
    marks: Mutex<(Option<Mark>, Option<Mark>)>,
}

/// What lies between the marks.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub bytes: u64,
    pub requests: u64,
    pub time: u64,
    pub server: u64,
    pub busy: u64,
    pub kernel: u64,
}

impl Meter {
    /// Measures from `begin` answered bytes to `end`. This process is the server.
    pub fn new(begin: u64, end: u64) -> Meter {
        Meter {
            begin,
            end,
            server: ClockId::CLOCK_PROCESS_CPUTIME_ID,
            sampler: None,
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            marks: Mutex::default(),
        }
    }

    /// Another process is the server.
    pub fn with_server(self, pid: i32) -> Result<Meter> {
        let server = clock_getcpuclockid(Pid::from_raw(pid)).context("the clock of the server")?;
        Ok(Meter { server, ..self })
    }

    /// What the kernel uses is measured too.
    pub fn with_sampler(self, sampler: Option<Arc<Sampler>>) -> Meter {
        Meter { sampler, ..self }
    }

    /// A request for so many bytes is answered.
    pub fn answered(&self, length: u64) {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        self.passed(before, before + length, requests);
    }

    /// So much has been done since somebody looked last.
    fn passed(&self, before: u64, after: u64, requests: u64) {
        let crosses = |limit: u64| before < limit && limit <= after;
        if crosses(self.begin) {
            let busy = busy();
            let mark = self.mark(after, requests);
            self.lock().0 = Some(Mark { busy, ..mark });
        }
        if crosses(self.end) {
            let mark = self.mark(after, requests);
            self.lock().1 = Some(Mark { busy: busy(), ..mark });
        }
    }

    fn mark(&self, bytes: u64, requests: u64) -> Mark {
        let kernel = self.sampler.as_ref().map_or(0, |sampler| sampler.samples() * PERIOD);
        Mark { bytes, requests, busy: 0, kernel, server: nanoseconds(self.server), time: now() }
    }

    pub fn measured(&self) -> Result<Measured> {
        let (first, last) = *self.lock();
        let first = first.context("nobody saw the measurement begin")?;
        let last = last.context("nobody saw the measurement end")?;
        ensure!(last.time > first.time && last.bytes > first.bytes, "nothing lies between the marks");
        Ok(Measured {
            bytes: last.bytes - first.bytes,
            requests: last.requests.saturating_sub(first.requests),
            time: last.time - first.time,
            server: last.server.saturating_sub(first.server),
            busy: last.busy.saturating_sub(first.busy),
            kernel: last.kernel.saturating_sub(first.kernel),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Mark>, Option<Mark>)> {
        self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `body`, and looks meanwhile at what a device has done.
    pub fn watching<T>(&self, device: &str, body: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (before, first) = done(device).unwrap_or_default();
                let mut last = 0;
                while !over.load(Ordering::Relaxed) {
                    // Rarely enough that looking costs nothing, often enough to be near to the marks.
                    std::thread::sleep(Duration::from_millis(2));
                    let (bytes, requests) = done(device).unwrap_or_default();
                    let bytes = bytes.saturating_sub(before);
                    self.passed(last, bytes, requests.saturating_sub(first));
                    last = last.max(bytes);
                }
            });
            let result = body();
            over.store(true, Ordering::Relaxed);
            result
        })
    }
}

/// Bytes and requests that a device has read and written.
fn done(device: &str) -> Option<(u64, u64)> {
    const SECTOR: u64 = 512;
    let text = fs::read_to_string(format!("/sys/block/{device}/stat")).ok()?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [reads, _, sectors_read, _, writes, _, sectors_written, ..] = numbers[..] else { return None };
    Some(((sectors_read + sectors_written) * SECTOR, reads + writes))
}

fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Time since the boot, in nanoseconds.
pub fn now() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC)
}

/// The seventh number of each processor's line in /proc/schedstat.
fn busy() -> u64 {
    let text = fs::read_to_string("/proc/schedstat").unwrap_or_default();
    let line = |line: &str| line.split_whitespace().nth(7)?.parse::<u64>().ok();
    text.lines().filter(|text| text.starts_with("cpu")).filter_map(line).sum()
}
