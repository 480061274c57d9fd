// SPDX-License-Identifier: GPL-2.0
//! Allocations of the driver's own threads that fail, under load: connections may die of it, and requests with them, but no
//! data is lost, and the device can be attached again.

use std::fs::{self, File};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::errno::Errno;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Fault, allocations};
use crate::attach::{Setup, attaches_again};
use crate::device::{Device, open_direct, read_direct, req, wait_idle, write_direct};
use crate::process::{processes, wait_for};
use crate::server::{Export, Server, Transport, pattern};
use crate::tests::{Context, Test, seed, tried};

pub const TESTS: &[Test] =
    &[Test::new("fault.threads", "of the driver's own threads, under verified load", threads).limit(300)];

const CONNECTIONS: usize = 2;
const WORKERS: usize = 8;
/// Bytes of a write. Each has a place of its own, so that one that comes late undoes nothing.
const BLOCK: usize = 16384;
const WRITES_PER_WORKER: usize = 6;
const WRITES_PER_ROUND: usize = WORKERS * WRITES_PER_WORKER;
/// More faults than there can be in a round.
const MOST: usize = 1_000_000;

/// The threads of the driver's that serve the device.
fn of_driver() -> Vec<i32> {
    let ours = processes().into_iter().filter(|(_, _, name, _)| name.starts_with("nbd0-"));
    ours.map(|(pid, ..)| pid).collect()
}

/// Where a block is on the device, and what is written to it.
fn contents(block: usize) -> (u64, Vec<u8>) {
    let offset = (block * BLOCK) as u64;
    (offset, pattern::data(offset, BLOCK, pattern::ORIGINAL + 1 + block as u64))
}

/// How many allocations failed since faults were armed.
fn count(faults: &[Fault]) -> Result<usize> {
    let mut count = 0;
    for fault in faults {
        let left: usize = fault.get("times")?.parse()?;
        count += MOST.checked_sub(left).context("more times than there were")?;
    }
    Ok(count)
}

/// Writes to some blocks, and reads each again. Returns which writes succeeded.
fn load(direct: &File, blocks: std::ops::Range<usize>) -> Result<Vec<(usize, bool)>> {
    let mut written = Vec::new();
    for block in blocks {
        let (offset, data) = contents(block);
        let done = write_direct(direct, offset, &data);
        written.push((block, done.is_ok()));
        match read_direct(direct, offset, BLOCK) {
            Ok(read) if done.is_ok() => {
                ensure!(read[..] == data[..], "block {block} was written, and reads as other data")
            }
            _ => {}
        }
    }
    Ok(written)
}

/// Attaches, and has allocations fail while workers write. Returns which writes succeeded, and how many faults there were.
fn round(
    number: usize,
    percent: u32,
    faults: &[Fault],
    server: &Server,
) -> Result<(Vec<(usize, bool)>, usize)> {
    let transport = if number % 2 == 0 { Transport::Unix } else { Transport::Tcp4 };
    let device = Device::open(0)?;
    let setup = Setup::for_server(server).connections(CONNECTIONS).transport(transport);
    let attachment = setup.attach(&device, server)?;
    // A receiver and a sender for each connection.
    let threads = of_driver();
    ensure!(threads.len() == 2 * CONNECTIONS, "{} threads of the driver's", threads.len());
    for pid in threads {
        fs::write(format!("/proc/{pid}/make-it-fail"), "1").context("make-it-fail")?;
    }
    for fault in faults {
        fault.set("task-filter", "Y")?;
        fault.arm(percent, MOST as i32)?;
    }
    let direct = open_direct("/dev/nbd0")?;
    let first = number * WRITES_PER_ROUND;
    let written = std::thread::scope(|scope| {
        let start = |worker: usize| {
            let from = first + worker * WRITES_PER_WORKER;
            let direct = &direct;
            scope.spawn(move || load(direct, from..from + WRITES_PER_WORKER))
        };
        let workers: Vec<_> = (0..WORKERS).map(start).collect();
        let mut written = Vec::new();
        for worker in workers {
            written.extend(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok::<_, anyhow::Error>(written)
    });
    for fault in faults {
        fault.set("probability", "0")?;
    }
    let count = count(faults)?;
    // Both connections may be dead by now, and the attachment at its end.
    let _ = device.ioctl(req::DISCONNECT, 0);
    let ended = attachment.ended()?;
    ensure!(matches!(ended, Ok(0) | Err(Errno::EPIPE)), "NBD_DO_IT returned {ended:?}");
    drop((direct, device));
    wait_idle(0)?;
    server.wait_closed()?;
    Ok((written?, count))
}

fn threads(context: &Context) -> Result<()> {
    let rounds = context.rounds(40, 12);
    let faults = allocations()?;
    let mut rng = SmallRng::seed_from_u64(seed()?);
    let size = rounds * WRITES_PER_ROUND * BLOCK;
    let server = Server::new(Export::memory(size as u64)?);
    let (mut written, mut count) = (Vec::new(), 0);
    for number in 0..rounds {
        let percent = rng.random_range(1..=20);
        let (more, faults) = round(number, percent, &faults, &server)
            .with_context(|| format!("round {number}, of {percent} % faults"))?;
        written.extend(more);
        count += faults;
    }
    drop(faults);
    let good = written.iter().filter(|(_, good)| *good).count();
    println!("{count} allocations failed; of {} writes {good} succeeded", written.len());
    ensure!(count > 0, "no allocation failed");
    ensure!(good > 0, "no write succeeded");
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    let direct = open_direct("/dev/nbd0")?;
    for (block, good) in written {
        let (offset, data) = contents(block);
        let read = read_direct(&direct, offset, BLOCK)?;
        let is_new = read[..] == data[..];
        let is_old = !good && read.iter().all(|byte| *byte == 0);
        ensure!(is_new || is_old, "block {block}, written: {good}, holds other data");
    }
    drop(direct);
    attachment.detach()?;
    drop(device);
    tried(count, "faults");
    wait_for("the driver's threads to be gone", || of_driver().is_empty())?;
    attaches_again()
}
