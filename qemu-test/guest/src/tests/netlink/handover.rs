// SPDX-License-Identifier: GPL-2.0
//! A handover while writes keep coming, so that the sender always has something to send: the connection is handed over,
//! and not cut off.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::attached::Attached;
use super::ok;
use super::replace::told;
use crate::device::{Device, open_direct, write_direct};
use crate::modules::Driver;
use crate::netlink::{attr, attr_flag};
use crate::process::wait_for;
use crate::server::{Action, Command, Export, Server, wire};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[Test::new(
    "netlink.handover_writes",
    "handovers under writes without a pause: the old server is told, and nothing is written at both",
    handover_writes,
)];

/// Room for a place of its own for each write, with a gap behind it, so that no two are made one.
const SIZE: u64 = 1 << 40;
const LENGTH: usize = 128 << 10;
const GAP: u64 = 256 << 10;
/// Behind what an open reads of the partition table.
const FIRST: u64 = 1 << 20;
const WRITERS: usize = 32;

/// A server that says that it has done what it was asked, and has not.
fn forgetful() -> Result<Server> {
    Ok(Server::with_behaviour(Export::memory(SIZE)?, |request| {
        let mut reply = wire::reply(wire::REPLY_MAGIC, 0, request.cookie).to_vec();
        if request.command == Command::Read {
            reply.resize(reply.len() + request.length as usize, 0);
        }
        Action::Send(reply)
    }))
}

/// The places that were written to, each by a request of its own.
fn written(server: &Server) -> Result<BTreeSet<u64>> {
    let writes = server.seen_of(Command::Write);
    let places: BTreeSet<_> = writes.iter().map(|request| request.offset).collect();
    ensure!(places.len() == writes.len(), "a server got a write twice");
    Ok(places)
}

/// Tasks that write without a pause, each time to another place. No write may fail.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Writers {
    fn start() -> Result<Writers> {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..WRITERS {
            let (stop, next) = (stop.clone(), next.clone());
            let direct = open_direct("/dev/nbd0")?;
            tasks.push(std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
                let data = vec![0x77; LENGTH];
                while !stop.load(Ordering::SeqCst) {
                    let place = next.fetch_add(1, Ordering::SeqCst);
                    write_direct(&direct, FIRST + place * GAP, &data)?;
                }
                Ok(())
            })?);
        }
        Ok(Writers { stop, tasks })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        wait_for("the writers to end", || self.tasks.iter().all(JoinHandle::is_finished))?;
        for task in self.tasks {
            task.join().map_err(|_| anyhow!("a writer panicked"))?.context("a write")?;
        }
        Ok(())
    }
}

fn handover_writes(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko has no handover");
    }
    let mut old = forgetful()?;
    let device = Attached::new(&old, 1, &[])?;
    drop(Device::open(0)?);
    let writers = Writers::start()?;
    let under_way =
        |server: &Server| wait_for("writes", || server.seen_of(Command::Write).len() >= 2 * WRITERS);
    for round in 1..=context.rounds(10, 3) {
        under_way(&old)?;
        let new = forgetful()?;
        let taken = told(&ok(device.offer(&new, 1, &[attr_flag(attr::HANDOVER)])?)?)?;
        ensure!(taken == (1, 0), "round {round}: told {taken:?}");
        old.wait_closed().with_context(|| format!("round {round}"))?;
        under_way(&new)?;
        let goodbyes = old.seen_of(Command::Disconnect).len();
        ensure!(goodbyes == 1, "round {round}: the old server was told of the end {goodbyes} times");
        let (before, after) = (written(&old)?, written(&new)?);
        let both = before.intersection(&after).count();
        println!("round {round}: {} writes before", before.len());
        ensure!(both == 0, "round {round}: {both} writes went to both servers, whole");
        ensure!(old.errors().is_empty(), "round {round}: the old server complains: {:?}", old.errors());
        old = new;
    }
    writers.stop()?;
    device.disconnect()
}
