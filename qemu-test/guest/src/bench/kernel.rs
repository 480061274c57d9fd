// SPDX-License-Identifier: GPL-2.0
//! How much of the time the kernel has: a timer's samples of all processors, as perf's `cpu-clock:kI` takes them. The
//! kernel's own accounts go by its ticks, of which a measurement has no more than ten.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

/// Nanoseconds from one sample to the next: more often, and the samples would be most of what runs.
pub const PERIOD: u64 = 20_000;

const PAGE: usize = 4096;

/// Where the ring's first page tells how many bytes of records have come in all.
const HEAD: usize = 1024;

/// A record with nothing but the instruction's address, and its header.
const RECORD: u64 = 16;

/// `struct perf_event_attr` in its first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

const SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const SAMPLE_ADDRESS: u64 = 1;
const EXCLUDE_USER: u64 = 1 << 4;
const EXCLUDE_IDLE: u64 = 1 << 7;

/// Takes samples as long as it lives.
pub struct Sampler(Vec<Ring>);

impl Sampler {
    /// Starts on all processors.
    pub fn start() -> Result<Sampler> {
        // Whatever the kernel thinks of the costs: the samples are to go on. Once it does not care, it takes no rate any more.
        let _ = fs::write("/proc/sys/kernel/perf_event_max_sample_rate", "100000");
        let _ = fs::write("/proc/sys/kernel/perf_cpu_time_max_percent", "0");
        let cpus = std::thread::available_parallelism()?.get();
        Ok(Sampler((0..cpus).map(Ring::new).collect::<Result<_>>().context("sample the processors")?))
    }

    /// Samples so far of tasks that were in the kernel, and of interrupts.
    pub fn samples(&self) -> u64 {
        self.0.iter().map(Ring::samples).sum()
    }
}

/// One processor's samples. The mapping is not writable, so that old records give way to new ones by themselves.
struct Ring {
    _event: OwnedFd,
    base: NonNull<libc::c_void>,
}

// SAFETY: it is a mapping to which nobody has a reference, and of which one word is read, atomically.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    fn new(cpu: usize) -> Result<Ring> {
        let attributes = Attributes {
            kind: SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: CPU_CLOCK,
            period: PERIOD,
            sample: SAMPLE_ADDRESS,
            flags: EXCLUDE_USER | EXCLUDE_IDLE,
            ..Attributes::default()
        };
        // SAFETY: the attributes live until the call returns; all tasks, this processor, no group, no flags.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &attributes, -1, cpu, -1, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("perf_event_open");
        }
        // SAFETY: a new descriptor, which nobody else knows.
        let event = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let (length, shared) = (2 * PAGE, libc::MAP_SHARED);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, shared, event.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map perf's ring");
        }
        Ok(Ring { _event: event, base: NonNull::new(base).context("mmap returned null")? })
    }

    fn samples(&self) -> u64 {
        // SAFETY: the word is inside of the mapping's first page, aligned, and written by the kernel alone.
        let head = unsafe { self.base.byte_add(HEAD).cast::<AtomicU64>().as_ref() };
        head.load(Ordering::Acquire) / RECORD
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: it is ours, and the last one who knew its address is gone.
        let _ = unsafe { libc::munmap(self.base.as_ptr(), 2 * PAGE) };
    }
}
