// SPDX-License-Identifier: GPL-2.0
//! A correct server whose replies are mutilated at random, under verified load. An error is all right then, and other
//! data where data were changed on the way; data that nobody touched must be right, and all of it at the end.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{SIZE, report};
use crate::attach::{Attachment, Setup, attaches_again, with_attached};
use crate::device::{Device, open_direct, read_direct, req, write_direct};
use crate::process::{patient, wait_for};
use crate::server::{Command, Peer, Request, Server, Transport, pattern};
use crate::tests::{Context, Test, ours_only, seed};

pub const TESTS: &[Test] = &[Test::new(
    "hostile.fuzz",
    "a correct server's replies, mutilated at random, under verified load",
    fuzz,
)
.quick()
.limit(150)];

const WORKERS: u64 = 4;
/// Sectors that a worker has for itself. Between two workers' there is a gap, so that the block layer joins nothing.
const SECTORS: u64 = 1024;
const STRIDE: u64 = SECTORS + 64;
const LONGEST: u64 = 128;

/// What is done to a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mutation {
    // No violation.
    Delay,
    Split,
    Reorder,
    // Violations.
    HeaderBit,
    DataBit,
    Cut,
    Insert,
    Twice,
    OldCookie,
    ExchangedCookies,
    Close,
    Reset,
    Swallow,
}

/// How many of 1000 replies each is done to. The rest is left as it is.
const MUTATIONS: [(Mutation, u32); 13] = [
    (Mutation::Delay, 40),
    (Mutation::Split, 60),
    (Mutation::Reorder, 60),
    (Mutation::HeaderBit, 8),
    (Mutation::DataBit, 10),
    (Mutation::Cut, 8),
    (Mutation::Insert, 8),
    (Mutation::Twice, 8),
    (Mutation::OldCookie, 8),
    (Mutation::ExchangedCookies, 8),
    (Mutation::Close, 5),
    (Mutation::Reset, 5),
    (Mutation::Swallow, 1),
];

fn choose(rng: &mut SmallRng) -> Option<Mutation> {
    let mut number = rng.random_range(0..1000);
    for (mutation, share) in MUTATIONS {
        if number < share {
            return Some(mutation);
        }
        number -= share;
    }
    None
}

/// What the server's connections and the workers share.
struct Shared {
    mutates: AtomicBool,
    counts: Mutex<BTreeMap<Mutation, usize>>,
    /// Ranges whose data were changed on their way to a reader.
    changed: Mutex<Vec<Range<u64>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn range_of(request: &Request) -> Range<u64> {
    request.offset..request.offset + u64::from(request.length)
}

impl Shared {
    /// The data of this request are other ones from here on. To be called before they are sent.
    fn changes(&self, request: &Request) {
        if request.command == Command::Read {
            lock(&self.changed).push(range_of(request));
        }
    }

    /// Whether data of this range were changed since this was asked last.
    fn were_changed(&self, range: &Range<u64>) -> bool {
        let mut changed = lock(&self.changed);
        let before = changed.len();
        changed.retain(|other| other.end <= range.start || range.end <= other.start);
        changed.len() != before
    }

    /// A connection, from its first request to its end.
    fn script(&self, peer: &mut Peer<'_>, mut rng: SmallRng) -> io::Result<()> {
        let mut held: Option<(Request, Vec<u8>)> = None;
        let mut old = 0;
        while let Some(request) = peer.request()? {
            if request.command == Command::Disconnect {
                break;
            }
            let bytes = peer.reply(&request)?;
            let mutation = choose(&mut rng).filter(|_| self.mutates.load(Ordering::SeqCst));
            if let Some(mutation) = mutation {
                *lock(&self.counts).entry(mutation).or_default() += 1;
            }
            match (mutation, held.take()) {
                (Some(Mutation::Reorder | Mutation::ExchangedCookies), None) if peer.comes(2)? => {
                    held = Some((request, bytes));
                }
                (Some(Mutation::ExchangedCookies), Some((other, mut first))) => {
                    let mut second = bytes;
                    first[8..16].swap_with_slice(&mut second[8..16]);
                    self.changes(&other);
                    self.changes(&request);
                    peer.send(&second)?;
                    peer.send(&first)?;
                }
                (mutation, other) => {
                    self.mutilated(peer, &mut rng, mutation, &request, bytes, old)?;
                    if let Some((_, bytes)) = other {
                        peer.send(&bytes)?;
                    }
                    // What is not answered yet would be answered by it.
                    if mutation != Some(Mutation::Swallow) {
                        old = request.cookie;
                    }
                }
            }
        }
        Ok(())
    }

    fn mutilated(
        &self,
        peer: &mut Peer<'_>,
        rng: &mut SmallRng,
        mutation: Option<Mutation>,
        request: &Request,
        mut bytes: Vec<u8>,
        old: u64,
    ) -> io::Result<()> {
        let at = rng.random_range(0..bytes.len());
        match mutation {
            None | Some(Mutation::Reorder | Mutation::ExchangedCookies) => {}
            Some(Mutation::Delay) => std::thread::sleep(Duration::from_micros(rng.random_range(0..5000))),
            Some(Mutation::Split) => {
                for piece in bytes.chunks(rng.random_range(1..=bytes.len()).max(bytes.len() / 16)) {
                    peer.send(piece)?;
                    std::thread::sleep(Duration::from_micros(100));
                }
                return Ok(());
            }
            Some(Mutation::HeaderBit) => bytes[at % 16] ^= 1 << rng.random_range(0..8),
            Some(Mutation::DataBit) => {
                if at >= 16 {
                    self.changes(request);
                    bytes[at] ^= 1 << rng.random_range(0..8);
                }
            }
            Some(Mutation::Cut) => {
                self.changes(request);
                let end = rng.random_range(at..bytes.len()) + 1;
                bytes.drain(at..end);
            }
            Some(Mutation::Insert) => {
                self.changes(request);
                let more: Vec<u8> = (0..rng.random_range(1..100)).map(|_| rng.random()).collect();
                bytes.splice(at..at, more);
            }
            Some(Mutation::Twice) => bytes.extend_from_within(..),
            Some(Mutation::OldCookie) => bytes[8..16].copy_from_slice(&old.to_be_bytes()),
            Some(Mutation::Close) => {
                peer.send(&bytes[..at])?;
                peer.shut_down(Shutdown::Both)?;
                return peer.leave();
            }
            Some(Mutation::Reset) => {
                peer.send(&bytes[..at])?;
                peer.reset()?;
                return peer.leave();
            }
            Some(Mutation::Swallow) => return Ok(()),
        }
        peer.send(&bytes)
    }
}

/// One task with its own sectors, of each of which it knows what it may hold.
struct Worker {
    first: u64,
    /// Of each sector: the version that was written last for certain, and the last that may have been.
    known: Vec<(u64, u64)>,
    version: u64,
    good: usize,
    failed: usize,
    changed: usize,
}

impl Worker {
    fn new(number: u64) -> Worker {
        let known = vec![(pattern::ORIGINAL, pattern::ORIGINAL); SECTORS as usize];
        let first = number * STRIDE;
        Worker { first, known, version: pattern::ORIGINAL, good: 0, failed: 0, changed: 0 }
    }

    /// A read or a write.
    fn step(&mut self, rng: &mut SmallRng, direct: &std::fs::File, shared: &Shared) -> Result<()> {
        let count = rng.random_range(1..=LONGEST);
        let at = rng.random_range(0..=SECTORS - count) as usize;
        let (offset, length) = ((self.first + at as u64) * 512, count as usize * pattern::SECTOR);
        let range = offset..offset + length as u64;
        if rng.random_bool(0.5) {
            self.version += 1;
            let done = write_direct(direct, offset, &pattern::data(offset, length, self.version));
            for (sure, latest) in &mut self.known[at..at + count as usize] {
                *latest = self.version;
                if done.is_ok() {
                    *sure = self.version;
                }
            }
            self.count(done.is_ok());
            return Ok(());
        }
        shared.were_changed(&range);
        let data = read_direct(direct, offset, length);
        self.count(data.is_ok());
        if let Ok(data) = data {
            let verdict = self.judge(at, offset, &data);
            match verdict {
                Ok(()) => {}
                Err(_) if shared.were_changed(&range) => self.changed += 1,
                Err(error) => return Err(error.context("data that nobody changed on the way are wrong")),
            }
        }
        Ok(())
    }

    fn count(&mut self, good: bool) {
        if good {
            self.good += 1;
        } else {
            self.failed += 1;
            // It may be that nothing is attached.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn judge(&self, at: usize, offset: u64, data: &[u8]) -> Result<()> {
        let versions = pattern::versions(offset, data).map_err(|what| anyhow!("{what}"))?;
        for (index, version) in versions.iter().enumerate() {
            let (sure, latest) = self.known[at + index];
            ensure!(
                (sure..=latest).contains(version),
                "sector {} has version {version}, not {sure} to {latest}",
                self.first as usize + at + index
            );
        }
        Ok(())
    }

    /// Looks at all of it, when nothing is mutilated any more.
    fn check_all(&self, direct: &std::fs::File) -> Result<()> {
        let offset = self.first * 512;
        self.judge(0, offset, &read_direct(direct, offset, SECTORS as usize * pattern::SECTOR)?)
    }
}

/// Attaches the device, and lets it end by itself, or ends it after a while. True if it ended by itself.
fn generation(rng: &mut SmallRng, server: &Server) -> Result<bool> {
    let device = Device::open(0)?;
    let transport = if rng.random_bool(0.5) { Transport::Unix } else { Transport::Tcp4 };
    let setup = Setup::for_server(server).connections(rng.random_range(1..=4)).transport(transport);
    setup.timeout(patient(1).as_secs()).prepare(&device, server)?;
    let attachment = Attachment::start(&device)?;
    let bound = Duration::from_millis(rng.random_range(20..1500));
    let by_itself = match attachment.ends_within(bound) {
        Some(_) => true,
        None => {
            let way = if rng.random_bool(0.5) { req::DISCONNECT } else { req::CLEAR_SOCK };
            // It may be ending at this moment.
            let _ = device.ioctl(way, 0);
            attachment.ended()?.map(drop).or_else(|errno| match errno {
                nix::errno::Errno::EPIPE | nix::errno::Errno::ETIMEDOUT => Ok(()),
                // It may not have begun either: it waited for its disk, and finds no sockets now.
                nix::errno::Errno::EINVAL => Ok(()),
                other => Err(anyhow!("NBD_DO_IT returned {other}")),
            })?;
            false
        }
    };
    drop(device);
    server.wait_closed()?;
    server.forget();
    Ok(by_itself)
}

fn fuzz(context: &Context) -> Result<()> {
    ours_only(context)?;
    let seed = seed()?;
    let length = Duration::from_secs(context.seconds(30, 5));
    let shared = Arc::new(Shared {
        mutates: AtomicBool::new(true),
        counts: Mutex::default(),
        changed: Mutex::default(),
    });
    let theirs = shared.clone();
    let server = Server::scripted(SIZE, move |peer| {
        // What happens on a connection depends on its number and on what it is asked alone.
        let rng = SmallRng::seed_from_u64(seed.wrapping_add(peer.connection as u64 + 1));
        theirs.script(peer, rng)
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let (shared, stop) = (shared.clone(), stop.clone());
        workers.push(std::thread::spawn(move || -> Result<Worker> {
            let mut rng = SmallRng::seed_from_u64(seed.wrapping_sub(number + 1));
            let mut worker = Worker::new(number);
            while !stop.load(Ordering::SeqCst) {
                // An open of the last attachment is of no use to the next one.
                let Ok(direct) = open_direct("/dev/nbd0") else { continue };
                worker.step(&mut rng, &direct, &shared).with_context(|| format!("worker {number}"))?;
            }
            Ok(worker)
        }));
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    let (start, mut generations, mut by_themselves) = (Instant::now(), 0, 0);
    while start.elapsed() < length && !workers.iter().any(std::thread::JoinHandle::is_finished) {
        by_themselves += usize::from(generation(&mut rng, &server)?);
        generations += 1;
    }
    stop.store(true, Ordering::SeqCst);
    shared.mutates.store(false, Ordering::SeqCst);
    wait_for("the workers to end", || workers.iter().all(std::thread::JoinHandle::is_finished))?;
    let mut done = Vec::new();
    for worker in workers {
        done.push(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
    }
    with_attached(&server, Setup::for_server(&server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        done.iter().try_for_each(|worker| worker.check_all(&direct)).context("at the end")
    })?;
    let sum = |of: fn(&Worker) -> usize| done.iter().map(of).sum::<usize>();
    let (good, failed, changed) =
        (sum(|worker| worker.good), sum(|worker| worker.failed), sum(|worker| worker.changed));
    println!("{generations} attachments, {by_themselves} of them ended by themselves");
    println!("{good} good requests, {failed} failed; {changed} reads had data that were changed on the way");
    let counts = lock(&shared.counts).clone();
    println!("mutations: {counts:?}");
    ensure!(good > 0 && by_themselves > 0, "nothing came of it");
    report(counts.values().sum());
    attaches_again()
}
