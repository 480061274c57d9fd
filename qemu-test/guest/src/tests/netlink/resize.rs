// SPDX-License-Identifier: GPL-2.0
//! RECONFIGURE of the size, up and down, while the device is at work, and with servers in any state.

use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::attached::Attached;
use super::load::{FIO_SIZE, Fio, server_with_moods};
use super::ok;
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, capacity, open_direct, round_trip};
use crate::netlink::{attr, attr_u64};
use crate::process::wait_for;
use crate::server::{Command, Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.resize", "RECONFIGURE changes size and block size of an idle device", idle),
    Test::new("netlink.resize_live", "the size goes up and down while fio verifies what it writes", live)
        .limit(120),
    Test::new(
        "netlink.resize_dead",
        "the size changes while fio waits for a connection, and goes on when there is one",
        dead,
    )
    .limit(120)
    .known_on_nbd("a size change waits for the requests that wait for the connection"),
    Test::new(
        "netlink.resize_with_sockets",
        "one RECONFIGURE brings another size and the connection that fio waits for",
        with_sockets,
    )
    .limit(120)
    .known_on_nbd("the size change comes first, and waits for the requests that wait for the socket"),
    Test::new("netlink.resize_silent", "the size changes while the server is silent", silent)
        .known_on_nbd("a size change waits for the server's answers, and stops all of netlink meanwhile"),
    Test::new(
        "netlink.block_size_silent",
        "a change of the block size gives up while the server is silent, and changes nothing",
        block_size,
    )
    .known_on_nbd("it waits for the server's answers, and stops all of netlink meanwhile"),
];

const SIZE: u64 = 32 << 20;

fn idle(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    let mut checks = Checks::default();
    let open = Device::open(0)?;
    for size in [16 << 20, 32 << 20, 4096, 512, SIZE] {
        device.resize(size)?;
        checks.equal("size by ioctl", open.size()?, size);
    }
    for bytes in [4096, 512, 2048] {
        device.change(&[attr_u64(attr::BLOCK_SIZE_BYTES, bytes)])?;
        checks.equal("block size", u64::from(open.block_size()?), bytes);
        checks.equal("size with that", capacity(0), SIZE);
    }
    device.change(&[attr_u64(attr::BLOCK_SIZE_BYTES, 4096), attr_u64(attr::SIZE_BYTES, 1 << 20)])?;
    checks.equal("both", (open.block_size()?, capacity(0)), (4096, 1 << 20));
    // What is within the new size works, and what is beyond it does not.
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, (1 << 20) - 4096, &[7; 4096])?;
    checks.that("a write beyond the end fails", round_trip(&direct, 1 << 20, &[7; 4096]).is_err());
    drop((direct, open));
    device.detach()?;
    checks.done()
}

/// Sizes to go through, none smaller than what fio uses.
fn sizes() -> impl Iterator<Item = u64> {
    [FIO_SIZE, 16 << 20, 24 << 20, SIZE, FIO_SIZE + 4096].into_iter().cycle()
}

fn live(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::by(0, &server, 2, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let fio = Fio::start(&server, 1000)?;
    let mut changes = 0;
    for (size, block_size) in sizes().zip([4096, 512].into_iter().cycle()) {
        // A size change of nbd.ko stops all requests: without work in between fio would never get on.
        let before = server.seen().len();
        wait_for("fio to get on", || !fio.works() || server.seen().len() > before + 8)?;
        if !fio.works() {
            break;
        }
        device.resize(size)?;
        if changes % 4 == 3 {
            device.change(&[attr_u64(attr::BLOCK_SIZE_BYTES, block_size)])?;
        }
        changes += 1;
    }
    println!("{changes} changes of the size");
    fio.verified()?;
    ensure!(changes > 10, "fio was done after {changes} changes");
    device.detach()
}

/// A device whose fio waits for a connection.
fn with_dead_connections() -> Result<(Server, Attached, Fio)> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::by(0, &server, 2, &[attr_u64(attr::DEAD_CONN_TIMEOUT, 30)])?;
    let fio = Fio::start(&server, 1000)?;
    server.close();
    device.wait_live(0)?;
    Ok((server, device, fio))
}

fn dead(_: &Context) -> Result<()> {
    let (server, device, fio) = with_dead_connections()?;
    for size in sizes().take(20) {
        device.resize(size)?;
        ensure!(fio.works(), "fio has ended without a connection");
    }
    ok(device.offer(&server, 2, &[])?)?;
    fio.verified()?;
    device.detach()
}

fn with_sockets(_: &Context) -> Result<()> {
    let (server, device, fio) = with_dead_connections()?;
    let both = [attr_u64(attr::SIZE_BYTES, 16 << 20), attr_u64(attr::BLOCK_SIZE_BYTES, 4096)];
    ok(device.offer(&server, 2, &both)?)?;
    let open = Device::open(0)?;
    ensure!((open.size()?, open.block_size()?) == (16 << 20, 4096), "the sizes are not what was asked for");
    drop(open);
    fio.verified()?;
    device.detach()
}

fn silent(_: &Context) -> Result<()> {
    let (server, silent) = server_with_moods(SIZE)?;
    let device = Attached::by(0, &server, 1, &[attr_u64(attr::DEAD_CONN_TIMEOUT, 30)])?;
    let fio = Fio::start(&server, 1000)?;
    silent.store(true, Ordering::Relaxed);
    for size in sizes().take(20) {
        device.resize(size)?;
        ensure!(fio.works(), "fio has ended without an answer");
    }
    // What was not answered is asked again of the next server.
    silent.store(false, Ordering::Relaxed);
    server.close();
    device.wait_live(0)?;
    ok(device.offer(&server, 1, &[])?)?;
    fio.verified()?;
    device.detach()
}

fn block_size(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Attached::new(&server, 1, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let reader = Blocked::read(&server)?;
    let writer = Blocked::write(&server)?;
    let open = Device::open(0)?;
    let mut checks = Checks::default();
    let block_size = attr_u64(attr::BLOCK_SIZE_BYTES, 4096);
    for options in [vec![block_size.clone()], vec![block_size.clone(), attr_u64(attr::SIZE_BYTES, 1 << 19)]] {
        match device.client.reconfigure(0, &[], &options)? {
            Ok(_) => checks.that("a block size is changed under requests without an answer", false),
            Err(refusal) => {
                checks.equal("refused with", refusal.errno, Errno::EBUSY);
                checks.that("it is said why", !refusal.text.is_empty());
            }
        }
        checks.equal("sizes", (open.block_size()?, open.size()?), (512, 1 << 20));
        checks.that("the requests wait on", reader.waits() && writer.waits());
    }
    device.works().context("the device, after a change that was given up")?;
    ensure!(server.seen_of(Command::Disconnect).is_empty(), "the server was told of an end");
    drop(open);
    device.detach()?;
    reader.fails("DISCONNECT")?;
    writer.fails("DISCONNECT")?;
    checks.done()
}
