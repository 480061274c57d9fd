// SPDX-License-Identifier: GPL-2.0
//! Many devices with many connections each.

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::attach::Setup;
use crate::device::{Device, node, open_direct, read_direct, sysfs, wait_idle, write_direct};
use crate::process::wait_for;
use crate::server::{Export, Server, pattern};
use crate::tests::{Context, Test};

pub const TESTS: &[Test] =
    &[Test::new("load.many", "64 devices with 16 connections each, all at work", many)
        .params("nbds_max=64")
        .limit(300)];

const DEVICES: u32 = 64;
const CONNECTIONS: usize = 16;
const SIZE: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;

/// Writes and reads back a device, in tasks of its own.
fn work(index: u32, version: u64) -> Result<()> {
    let direct = open_direct(node(index))?;
    std::thread::scope(|scope| {
        let halves = [0..SIZE / 2, SIZE / 2..SIZE];
        let tasks = halves.map(|range| {
            let direct = &direct;
            scope.spawn(move || -> Result<()> {
                for offset in range.step_by(CHUNK) {
                    write_direct(direct, offset, &pattern::data(offset, CHUNK, version))?;
                    let versions = pattern::versions(offset, &read_direct(direct, offset, CHUNK)?);
                    let versions = versions.map_err(|what| anyhow!(what))?;
                    ensure!(versions.iter().all(|got| *got == version), "another device's data");
                }
                Ok(())
            })
        });
        tasks.into_iter().try_for_each(|task| task.join().map_err(|_| anyhow!("a task panicked"))?)
    })
    .with_context(|| format!("nbd{index}"))
}

/// All devices at once; what each server has got must be its device's.
fn work_on_all(servers: &[Server], round: u64) -> Result<()> {
    let version = |index: u32| u64::from(index) + 1000 * round;
    std::thread::scope(|scope| {
        let tasks: Vec<_> =
            (0..DEVICES).map(|index| scope.spawn(move || work(index, version(index)))).collect();
        tasks.into_iter().try_for_each(|task| task.join().map_err(|_| anyhow!("a task panicked"))?)
    })?;
    for (index, server) in (0..).zip(servers) {
        let data = server.export().read(0, SIZE as usize)?;
        let right = pattern::versions(0, &data)
            .is_ok_and(|versions| versions.iter().all(|got| *got == version(index)));
        ensure!(right, "the server of nbd{index} has other data");
        ensure!(server.errors().is_empty(), "the server of nbd{index}: {:?}", server.errors());
    }
    Ok(())
}

fn many(_: &Context) -> Result<()> {
    // Each connection has several descriptors in the server.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = 8 * u64::from(DEVICES) * CONNECTIONS as u64;
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most.max(wanted))?;
    let mut servers = Vec::new();
    let mut attachments = Vec::new();
    for index in 0..DEVICES {
        let server = Server::new(Export::memory(SIZE)?);
        let device = Device::open(index)?;
        let setup = Setup::for_server(&server).connections(CONNECTIONS);
        attachments.push(setup.attach(&device, &server).with_context(|| format!("nbd{index}"))?);
        servers.push(server);
    }
    let live = |index, count: usize| {
        sysfs(index, "nbd/live_connections").is_none_or(|live| live == count.to_string())
    };
    for index in 0..DEVICES {
        ensure!(live(index, CONNECTIONS), "nbd{index} has not all of its connections");
    }
    work_on_all(&servers, 1)?;
    for server in &servers {
        (0..CONNECTIONS / 2).for_each(|connection| server.close_one(connection));
    }
    wait_for("half of the connections to be gone", || {
        (0..DEVICES).all(|index| live(index, CONNECTIONS / 2))
    })?;
    work_on_all(&servers, 2).context("with half of the connections")?;
    for attachment in attachments {
        attachment.detach()?;
    }
    for (index, server) in (0..).zip(&servers) {
        wait_idle(index)?;
        server.wait_closed()?;
    }
    Ok(())
}
