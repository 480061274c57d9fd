// SPDX-License-Identifier: GPL-2.0
//! Who has opened one image, in one of many ways, and reads and writes by that until he is told to leave.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::device::{node, open_direct, read_direct, write_direct};
use crate::mapping::Mapping;
use crate::process::{PATIENCE, describe_task};
use crate::tests::claim::Loop;
use crate::tests::disks::image::{content, names};

/// What all holders have done and seen.
#[derive(Default)]
pub struct Tally {
    wrong: Mutex<Vec<String>>,
    holders: Mutex<BTreeMap<Kind, usize>>,
    read: AtomicUsize,
    written: AtomicUsize,
    failed: AtomicUsize,
}

impl Tally {
    fn count(&self, done: &AtomicUsize, succeeded: bool) {
        let counter = if succeeded { done } else { &self.failed };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn tell(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// An error, if anybody has seen what is not his.
    pub fn wrong(&self) -> Result<()> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        match &wrong[..] {
            [] => Ok(()),
            [first, more @ ..] => bail!("{first}, and {} more", more.len()),
        }
    }

    pub fn works(&self) -> bool {
        self.read.load(Ordering::SeqCst) > 0 && self.written.load(Ordering::SeqCst) > 0
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [read, written, failed] =
            [&self.read, &self.written, &self.failed].map(|counter| counter.load(Ordering::SeqCst));
        let holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "{read} reads, {written} writes, {failed} failed; holders: {holders:?}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Plain,
    Direct,
    Mapped,
    Partition,
    Loop,
}

impl Kind {
    pub fn any(rng: &mut SmallRng) -> Kind {
        *[Kind::Plain, Kind::Direct, Kind::Mapped, Kind::Partition, Kind::Loop]
            .choose(rng)
            .unwrap_or(&Kind::Plain)
    }
}

enum Means {
    Buffered(File),
    Direct(File),
    Mapped(Mapping),
    /// The file goes before the device.
    Loop {
        file: File,
        _device: Loop,
    },
}

/// Where a partition is.
const PARTITION: (u64, u64) = (2 << 20, 2 << 20);

struct Holder {
    kind: Kind,
    name: u64,
    /// Where in the image it begins, and how long it is.
    base: u64,
    size: u64,
    means: Means,
}

fn open(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// `struct blkpg_ioctl_arg` and `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
struct Order {
    op: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut Place,
}

#[repr(C)]
struct Place {
    start: i64,
    length: i64,
    number: libc::c_int,
    names: [u8; 128],
}

/// Makes a partition of the device without a table on it.
fn partition() -> Result<Option<File>> {
    const BLKPG: libc::Ioctl = 0x1269;
    const ADD: libc::c_int = 1;
    let device = open(node(0))?;
    let mut place =
        Place { start: PARTITION.0 as i64, length: PARTITION.1 as i64, number: 1, names: [0; 128] };
    let order = Order { op: ADD, flags: 0, length: size_of::<Place>() as libc::c_int, data: &raw mut place };
    // SAFETY: BLKPG reads the order, and the place that it names.
    match Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), BLKPG, &raw const order) }) {
        // It was made for somebody else, who has it still.
        Ok(_) | Err(Errno::EBUSY) => Ok(open("/dev/nbd0p1").ok()),
        Err(errno) => Err(errno).context("BLKPG"),
    }
}

impl Holder {
    fn new(kind: Kind, name: u64, size: u64) -> Result<Option<Holder>> {
        let means = match kind {
            Kind::Plain => Means::Buffered(open(node(0))?),
            Kind::Direct => Means::Direct(open_direct(node(0))?),
            Kind::Mapped => Means::Mapped(Mapping::new(open(node(0))?, size as usize)?),
            Kind::Partition => match partition()? {
                Some(file) => Means::Buffered(file),
                None => return Ok(None),
            },
            Kind::Loop => {
                let device = Loop::new()?;
                Means::Loop { file: open_direct(device.path())?, _device: device }
            }
        };
        let (base, size) = if kind == Kind::Partition { PARTITION } else { (0, size) };
        Ok(Some(Holder { kind, name, base, size, means }))
    }

    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        match &self.means {
            Means::Buffered(file) => {
                let mut data = vec![0; length];
                file.read_exact_at(&mut data, offset)?;
                Ok(data)
            }
            Means::Direct(file) | Means::Loop { file, .. } => Ok(read_direct(file, offset, length)?.to_vec()),
            Means::Mapped(mapping) => mapping.read(offset as usize, length),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.means {
            Means::Buffered(file) => file.write_all_at(data, offset),
            Means::Direct(file) | Means::Loop { file, .. } => write_direct(file, offset, data),
            Means::Mapped(mapping) => mapping.write(offset as usize, data),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match &self.means {
            Means::Buffered(file) | Means::Direct(file) | Means::Loop { file, .. } => file.sync_all(),
            Means::Mapped(mapping) => Ok(mapping.sync()?),
        }
    }

    fn forget(&self) {
        if let Means::Buffered(file) | Means::Direct(file) = &self.means {
            // SAFETY: plain system call on a descriptor that we own.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }

    /// One thing that somebody does.
    fn act(&self, rng: &mut SmallRng, tally: &Tally) {
        let length = rng.random_range(1..=16) * 4096;
        let offset = rng.random_range(0..=(self.size - length) / 4096) * 4096;
        match rng.random_range(0..10) {
            0..5 => {
                let read = self.read(offset, length as usize);
                tally.count(&tally.read, read.is_ok());
                let seen = names(&read.unwrap_or_default());
                if seen.iter().any(|name| *name != self.name) {
                    let (kind, name) = (self.kind, self.name);
                    tally.tell(format!("{kind:?} of image {name} has read at {offset} of images {seen:?}"));
                }
            }
            5..8 => {
                let written = self.write(offset, &content(self.name, self.base + offset, length as usize));
                tally.count(&tally.written, written.is_ok());
            }
            8 => drop(self.sync()),
            _ => self.forget(),
        }
    }
}

/// A holder at work, in a task of its own.
pub struct Worker {
    leave: Arc<AtomicBool>,
    gone: Receiver<()>,
    what: String,
}

impl Worker {
    /// One who opens the image that is attached now. None, if this one cannot be opened in that way.
    pub fn start(kind: Kind, name: u64, size: u64, seed: u64, tally: &Arc<Tally>) -> Result<Option<Worker>> {
        let what = format!("{kind:?} {name}");
        let Some(holder) = Holder::new(kind, name, size).with_context(|| what.clone())? else {
            return Ok(None);
        };
        *tally.holders.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
        let (sender, gone) = channel();
        let leave = Arc::new(AtomicBool::new(false));
        let (told, tally) = (leave.clone(), tally.clone());
        std::thread::Builder::new().name(what.clone()).spawn(move || {
            let mut rng = SmallRng::seed_from_u64(seed);
            while !told.load(Ordering::SeqCst) {
                holder.act(&mut rng, &tally);
                std::thread::sleep(Duration::from_micros(rng.random_range(0..5000)));
            }
            drop(holder);
            let _ = sender.send(());
        })?;
        Ok(Some(Worker { leave, gone, what }))
    }

    pub fn end(self) -> Result<()> {
        self.leave.store(true, Ordering::SeqCst);
        let told = || describe_task(std::process::id() as i32);
        self.gone.recv_timeout(*PATIENCE).with_context(|| format!("{} does not leave\n{}", self.what, told()))
    }
}

/// However a test ends: a loop device would stay, and keep the driver.
impl Drop for Worker {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::SeqCst);
        let _ = self.gone.recv_timeout(*PATIENCE);
    }
}
