// SPDX-License-Identifier: GPL-2.0
//! Servers that break the protocol, or just break. A device has two connections, and others read and write by it all
//! the while. The first request that meets the attack comes to no harm if its connection is dropped, for the other one
//! is there; the second one, with nothing left, ends in bounded time. Then the device is attached again.
//!
//! All data names its own place (`server::pattern`), and the server checks each byte that it gets.

mod cookies;
mod fuzz;
mod replies;
mod streams;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{Test, tried};
use crate::attach::{Attachment, Setup, attaches_again};
use crate::device::{Device, open_direct, read_direct, wait_idle, write_direct};
use crate::kmsg::Log;
use crate::process::{patient, wait_for};
use crate::server::{Command, Peer, Request, Server, Transport, pattern};

pub const TESTS: [&[Test]; 4] = [replies::TESTS, cookies::TESTS, streams::TESTS, fuzz::TESTS];

const SIZE: u64 = 4 << 20;
/// What attacks are for.
const TARGET: std::ops::Range<u64> = 2 << 20..3 << 20;
/// Those who go on meanwhile have this much each, from the start of the device.
const BYSTANDER: u64 = 128 << 10;
const BYSTANDERS: u64 = 2;
/// Lines that an attack may cause in the log.
const LOUDEST: usize = 40;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing: it was no violation.
    Kept,
    /// The driver drops it; what was not answered goes over another one, and fails if there is none.
    Dropped,
    /// The driver drops it after the request was answered.
    DroppedAfter,
}

type Strike = dyn Fn(&mut Peer<'_>, &Request) -> io::Result<()> + Send + Sync;

/// A thing that a server does instead of serving a request.
struct Attack {
    what: String,
    on: Command,
    length: usize,
    fate: Fate,
    timeout: u64,
    transport: Transport,
    /// The answer is a lie: a write that was answered so was not done.
    lies: bool,
    strike: Arc<Strike>,
}

impl Attack {
    /// On a read of 64 KiB.
    fn read(
        what: impl Into<String>,
        fate: Fate,
        strike: impl Fn(&mut Peer<'_>, &Request) -> io::Result<()> + Send + Sync + 'static,
    ) -> Attack {
        Attack {
            what: what.into(),
            on: Command::Read,
            length: 65536,
            fate,
            timeout: 0,
            transport: Transport::Unix,
            lies: false,
            strike: Arc::new(strike),
        }
    }

    /// On a write of that much; its payload is the strike's to read.
    fn write(
        what: impl Into<String>,
        length: usize,
        fate: Fate,
        strike: impl Fn(&mut Peer<'_>, &Request) -> io::Result<()> + Send + Sync + 'static,
    ) -> Attack {
        Attack { on: Command::Write, length, ..Attack::read(what, fate, strike) }
    }

    /// With a request time-out of a second.
    fn timeout(self) -> Attack {
        Attack { timeout: 1, ..self }
    }

    fn tcp(self) -> Attack {
        Attack { transport: Transport::Tcp4, ..self }
    }

    fn lies(self) -> Attack {
        Attack { lies: true, ..self }
    }

    fn run(&self) -> Result<()> {
        let mut log = Log::from_now()?;
        let armed = Arc::new(AtomicBool::new(false));
        let server = self.server(armed.clone())?;
        let device = Device::open(0)?;
        let timeout = patient(self.timeout).as_secs();
        let setup = Setup::for_server(&server).connections(2).transport(self.transport).timeout(timeout);
        let attachment = setup.attach(&device, &server)?;
        let direct = open_direct("/dev/nbd0")?;
        let bystanders = Bystanders::start()?;

        armed.store(true, Ordering::SeqCst);
        let first = self.victim(&direct, 2).context("with another connection beside it");
        let struck = !armed.load(Ordering::SeqCst);
        let left = if self.fate == Fate::Kept { 2 } else { 1 };
        let dropped = wait_for("the connection's fate", || server.open_connections() == left);
        let went_on = bystanders.stop();
        first?;
        ensure!(struck, "the server did not get to do it");
        dropped.with_context(|| format!("{} connections, {left} expected", server.open_connections()))?;
        println!("{}: {} requests of others went on", self.what, went_on.context("others")?);
        self.check_all(&direct)?;

        if self.fate == Fate::Kept {
            attachment.detach()?;
        } else {
            armed.store(true, Ordering::SeqCst);
            self.alone(&direct, attachment)?;
        }
        drop((direct, device));
        server.wait_closed()?;
        wait_idle(0)?;
        ensure!(server.errors().is_empty(), "what the server got: {:?}", server.errors());
        let lines = log.lines().iter().filter(|line| line.contains("nbd0")).count();
        ensure!(lines <= LOUDEST, "{lines} lines in the log");
        attaches_again()
    }

    /// Reads the whole device: all of it must be its own, and what was written must be there.
    fn check_all(&self, direct: &File) -> Result<()> {
        // Short requests: the time-out is a short one, and the machine may be slow.
        let mut data = Vec::new();
        for offset in (0..SIZE).step_by(BYSTANDER as usize) {
            data.extend_from_slice(&read_direct(direct, offset, BYSTANDER as usize)?);
        }
        let versions = pattern::versions(0, &data).map_err(|what| anyhow!("the device's data: {what}"))?;
        let first = TARGET.start as usize / pattern::SECTOR;
        let target = &versions[first..first + self.length / pattern::SECTOR];
        let want = if self.on == Command::Write { 2 } else { pattern::ORIGINAL };
        ensure!(self.lies || target.iter().all(|version| *version == want), "a write was not done");
        Ok(())
    }

    /// Does it to the last connection that there is.
    fn alone(&self, direct: &File, attachment: Attachment) -> Result<()> {
        let done = self.victim(direct, 3);
        match self.fate {
            Fate::DroppedAfter => done.context("with no other connection, but answered")?,
            _ => ensure!(done.is_err(), "the request succeeded with no connection left"),
        }
        let ended = attachment.ended()?;
        ensure!(ended.is_err(), "NBD_DO_IT returned {ended:?} when the last connection was dropped");
        Ok(())
    }

    fn server(&self, armed: Arc<AtomicBool>) -> Result<Server> {
        let (on, strike) = (self.on, self.strike.clone());
        Server::scripted(SIZE, move |peer| {
            while let Some(request) = peer.request()? {
                let meant = request.command == on && TARGET.contains(&request.offset);
                if meant && armed.swap(false, Ordering::SeqCst) {
                    strike(peer, &request)?;
                } else if request.command == Command::Disconnect {
                    break;
                } else {
                    peer.serve(&request)?;
                }
            }
            Ok(())
        })
    }

    /// The request that meets the attack. What it reads must be right if it succeeds.
    fn victim(&self, direct: &File, version: u64) -> Result<()> {
        if self.on == Command::Write {
            write_direct(direct, TARGET.start, &pattern::data(TARGET.start, self.length, version))?;
            return Ok(());
        }
        let data = read_direct(direct, TARGET.start, self.length)?;
        let versions = pattern::versions(TARGET.start, &data).map_err(|what| anyhow!("a read got {what}"))?;
        ensure!(versions.iter().all(|version| *version == pattern::ORIGINAL), "a read got what nobody wrote");
        Ok(())
    }
}

/// Tasks that write and read back, each in its own part of the device. No request of theirs may fail.
struct Bystanders {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Bystanders {
    fn start() -> Result<Bystanders> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for number in 0..BYSTANDERS {
            let (stop, done) = (stop.clone(), done.clone());
            let direct = open_direct("/dev/nbd0")?;
            tasks.push(std::thread::Builder::new().name("bystander".to_owned()).spawn(move || {
                let offset = number * BYSTANDER;
                for version in pattern::ORIGINAL + 1.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let length = [512, 4096, 32768, BYSTANDER as usize][version as usize % 4];
                    let data = pattern::data(offset, length, version);
                    write_direct(&direct, offset, &data).context("a write")?;
                    let back = read_direct(&direct, offset, length).context("a read")?;
                    ensure!(back[..] == data, "data read differ from what was written");
                    done.fetch_add(2, Ordering::SeqCst);
                }
                Ok(())
            })?);
        }
        wait_for("the others to be at work", || done.load(Ordering::SeqCst) >= 2)?;
        Ok(Bystanders { stop, done, tasks })
    }

    /// Ends them, and tells how many requests they have made. They must come to an end, and have had no error.
    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        wait_for("the others to end", || self.tasks.iter().all(JoinHandle::is_finished))?;
        for task in self.tasks {
            task.join().map_err(|_| anyhow!("a task panicked"))??;
        }
        Ok(self.done.load(Ordering::SeqCst))
    }
}

/// Runs attacks one by one.
fn run(attacks: impl IntoIterator<Item = Attack>) -> Result<()> {
    let mut count = 0;
    for attack in attacks {
        attack.run().with_context(|| attack.what.clone())?;
        // With one connection beside it, and with none.
        count += if attack.fate == Fate::Kept { 1 } else { 2 };
    }
    report(count);
    Ok(())
}

fn report(count: usize) {
    tried(count, "bad inputs");
}
