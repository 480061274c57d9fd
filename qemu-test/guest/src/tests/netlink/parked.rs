// SPDX-License-Identifier: GPL-2.0
//! Requests that wait for a connection, since all are dead: they are left alone until there is one, or their time is over.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::attached::Attached;
use super::ok;
use crate::device::{open_direct, read_direct, round_trip};
use crate::netlink::{attr, attr_u64};
use crate::process::wait_for;
use crate::server::{Export, Server};
use crate::tests::trace::Trace;
use crate::tests::{Context, Test, ours_only, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.parked_quiet",
        "requests that wait for a connection are not handed out again and again",
        quiet,
    ),
    Test::new(
        "netlink.parked_shorter",
        "RECONFIGURE makes the time shorter that they wait, and longer",
        changed,
    ),
    Test::new("netlink.parked_races", "a connection comes at the moment at which they begin to wait", races)
        .limit(120),
];

const SIZE: u64 = 1 << 20;
const READS: u64 = 8;

fn time_left(seconds: u64) -> netlink_packet_core::DefaultNla {
    attr_u64(attr::DEAD_CONN_TIMEOUT, seconds)
}

type Reader = JoinHandle<std::io::Result<()>>;

fn readers() -> Result<Vec<Reader>> {
    (0..READS)
        .map(|place| {
            let direct = open_direct("/dev/nbd0")?;
            Ok(std::thread::spawn(move || read_direct(&direct, place << 14, 4096).map(drop)))
        })
        .collect()
}

fn all_end(readers: Vec<Reader>, what: &str) -> Result<Vec<std::io::Result<()>>> {
    wait_for(&format!("the readers to end after {what}"), || readers.iter().all(JoinHandle::is_finished))?;
    readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))).collect()
}

/// A device whose only connection is dead, opened before.
fn dead(server: &Server, seconds: u64) -> Result<(Attached, std::fs::File)> {
    let device = Attached::new(server, 1, &[time_left(seconds)])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[7; 4096])?;
    server.close();
    device.wait_live(0)?;
    Ok((device, direct))
}

fn quiet(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let (device, _open) = dead(&server, 600)?;
    let Some(trace) = Trace::filtered("block/block_rq_requeue", "nr_sector == 8")? else {
        return skip("the kernel does not trace the block layer");
    };
    let readers = readers()?;
    std::thread::sleep(Duration::from_secs(2));
    trace.stop()?;
    let requeued = trace.lines("block_rq_requeue")?.len();
    ensure!(!readers.iter().any(JoinHandle::is_finished), "a reader did not wait");
    println!("{requeued} times in two seconds, for {READS} requests");
    // Ten times a second it would be 160. When one comes the others may be looked at.
    ensure!(requeued as u64 <= 2 * READS, "{requeued} times for {READS} requests");
    ok(device.offer(&server, 1, &[])?)?;
    for read in all_end(readers, "a connection")? {
        read.context("with a connection again")?;
    }
    device.disconnect()
}

fn changed(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = Server::new(Export::memory(SIZE)?);
    let (device, _open) = dead(&server, 600)?;
    let waiting = readers()?;
    std::thread::sleep(Duration::from_millis(300));
    device.change(&[time_left(900)])?;
    ensure!(!waiting.iter().any(JoinHandle::is_finished), "a reader did not wait on");
    device.change(&[time_left(1)])?;
    let failed = all_end(waiting, "the end of their time")?;
    ensure!(failed.iter().all(Result::is_err), "a reader was answered by nobody");
    // Also if it is over by the new one already.
    device.change(&[time_left(600)])?;
    ok(device.offer(&server, 1, &[])?)?;
    device.wait_live(1)?;
    server.close();
    device.wait_live(0)?;
    let waiting = readers()?;
    std::thread::sleep(Duration::from_millis(1500));
    device.change(&[time_left(1)])?;
    let failed = all_end(waiting, "a time that was over already")?;
    ensure!(failed.iter().all(Result::is_err), "a reader was answered by nobody then");
    device.disconnect()
}

/// Each round the server goes while requests come, and another socket is offered at the same time.
fn races(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[time_left(600)])?;
    let open = open_direct("/dev/nbd0")?;
    for round in 0..context.rounds(60, 10) {
        let readers = readers()?;
        server.close();
        // What is offered before the connection is seen to be dead is not taken.
        device.wait_live(0)?;
        ok(device.offer(&server, 1, &[])?)?;
        device.wait_live(1)?;
        for read in all_end(readers, &format!("round {round}"))? {
            read.with_context(|| format!("round {round}"))?;
        }
    }
    drop(open);
    device.disconnect()
}
