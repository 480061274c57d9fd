// SPDX-License-Identifier: GPL-2.0
//! What every request does (invariant G7). Lockdep tells which locks are taken, so that this runs in the debug kernel.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::trace::Trace;
use super::{Context, Test, ours_only, skip};
use crate::attach::{Setup, with_attached};
use crate::device::{open_direct, round_trip};
use crate::server::{Export, Server};

pub const TESTS: &[Test] =
    &[Test::new("hot.locks", "of the driver's locks, requests take those of their connection alone", locks)];

/// A connection's, or its link's: who uses another connection does not meet them.
const OF_A_CONNECTION: [&str; 4] = ["rnbd::tx", "rnbd::outbox", "rnbd::outbox_wanted", "rnbd::links"];

fn locks(context: &Context) -> Result<()> {
    ours_only(context)?;
    const TASKS: u64 = 4;
    const ROUNDS: u64 = 25;
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        // Opens and closes are no requests.
        let files = (0..TASKS).map(|_| open_direct("/dev/nbd0")).collect::<Result<Vec<_>>>()?;
        let Some(trace) = Trace::filtered("lock/lock_acquire", "name ~ \"rnbd::*\"")? else {
            return skip("the kernel does not trace its locks");
        };
        std::thread::scope(|scope| {
            let work = |task: u64| {
                let file = &files[task as usize];
                move || (0..ROUNDS).try_for_each(|_| round_trip(file, task * 8192, &[task as u8; 8192]))
            };
            let tasks: Vec<_> = (0..TASKS).map(|task| scope.spawn(work(task))).collect();
            tasks.into_iter().try_for_each(|task| match task.join() {
                Ok(done) => done,
                Err(_) => anyhow::bail!("a task panicked"),
            })
        })?;
        trace.stop()?;
        let mut taken = BTreeMap::<String, usize>::new();
        for line in trace.lines("lock_acquire")? {
            let name = line.split_whitespace().last().unwrap_or_default();
            *taken.entry(name.to_owned()).or_default() += 1;
        }
        println!("{} requests took {taken:?}", 2 * TASKS * ROUNDS);
        ensure!(taken.contains_key("rnbd::tx"), "a request that was sent has taken no send lock: {taken:?}");
        let others: Vec<_> = taken.keys().filter(|name| !OF_A_CONNECTION.contains(&name.as_str())).collect();
        ensure!(others.is_empty(), "requests took locks that all share: {others:?}");
        Ok(())
    })
}
