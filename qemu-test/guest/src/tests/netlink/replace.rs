// SPDX-License-Identifier: GPL-2.0
//! RECONFIGURE: other sockets for connections that are dead, and at a handover for live ones.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use netlink_packet_core::{DefaultNla, Nla as _};

use super::attached::Attached;
use super::load::Fio;
use super::{connected, ok};
use crate::blocked::{Blocked, silent_server};
use crate::device::{open_direct, read_direct, round_trip};
use crate::modules::Driver;
use crate::netlink::{Message, attr, attr_flag, attr_u64, from_bytes, value};
use crate::process::wait_for;
use crate::server::{Command, Export, Server};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("netlink.reconnect", "a dead connection gets another socket, and I/O goes on", reconnect),
    Test::new(
        "netlink.reconnect_waiting",
        "requests wait for a connection when all are dead, and go on with the first",
        reconnect_waiting,
    )
    .known_on_nbd(
        "a size change waits for the requests that wait for a connection, and stops all of netlink",
    ),
    Test::new(
        "netlink.reconnect_load",
        "4 connections, one and then all of them closed and replaced, under verified load",
        reconnect_load,
    )
    .limit(120),
    Test::new(
        "netlink.dead_conn_timeout",
        "requests that wait for a connection fail when their time is over",
        dead_conn_timeout,
    ),
    Test::new("netlink.dead_conn_idle", "it counts from the first request that waits", dead_conn_idle),
    Test::new("netlink.no_dead_conn_timeout", "without that time they fail at once", no_dead_conn_timeout)
        .known_on_nbd("what was sent on the only connection waits for an answer for ever"),
    Test::new("netlink.handover", "a live connection is handed over; what is not taken is told", handover),
    Test::new(
        "netlink.handover_silent",
        "requests that the old server never answers are answered by the new one",
        handover_silent,
    ),
    Test::new(
        "netlink.handover_load",
        "100 handovers between two servers under verified load",
        handover_load,
    )
    .limit(240),
];

const SIZE: u64 = 64 << 20;

/// How many sockets a reply to RECONFIGURE says were taken, and how many not.
pub fn told(replies: &[Message]) -> Result<(u32, u32)> {
    let [reply] = replies else { return Err(anyhow!("RECONFIGURE was answered with {replies:?}")) };
    let attributes = from_bytes(&reply.payload)?;
    let number = |wanted| -> Result<u32> {
        let found = attributes.iter().find(|attribute| attribute.kind() == wanted);
        let bytes = value(found.with_context(|| format!("no attribute {wanted} in {reply:?}"))?);
        Ok(u32::from_ne_bytes(bytes[..].try_into()?))
    };
    Ok((number(attr::SOCKETS_TAKEN)?, number(attr::SOCKETS_LEFT)?))
}

fn seconds(number: u16, seconds: u64) -> DefaultNla {
    attr_u64(number, seconds)
}

fn server(size: u64) -> Result<Server> {
    Ok(Server::new(Export::memory(size)?))
}

fn reconnect(_: &Context) -> Result<()> {
    let server = server(1 << 20)?;
    let device = Attached::new(&server, 2, &[])?;
    let direct = open_direct("/dev/nbd0")?;
    for round in 0..5_u8 {
        server.close_one(server.accepted() - 1);
        wait_for("a connection to be gone", || server.open_connections() == 1)?;
        device.wait_live(1)?;
        round_trip(&direct, 4096, &[round; 4096]).context("with one connection")?;
        let replies = ok(device.offer(&server, 1, &[])?)?;
        ensure!(replies.is_empty(), "a reconnect was answered with {replies:?}");
        ensure!(server.open_connections() == 2, "the new socket was not taken");
        round_trip(&direct, 8192, &[round; 4096]).context("with two connections again")?;
    }
    device.disconnect()?;
    server.wait_closed()
}

fn reconnect_waiting(_: &Context) -> Result<()> {
    let server = server(1 << 20)?;
    let device = Attached::new(&server, 1, &[seconds(attr::DEAD_CONN_TIMEOUT, 60)])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[7; 4096])?;
    server.close();
    device.wait_live(0)?;
    let reader = std::thread::spawn(move || read_direct(&direct, 0, 4096));
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!reader.is_finished(), "the reader did not wait for a connection");
    ensure!(connected(&device.client, 0)?, "STATUS has the device detached");
    // A resize does not wait for those who wait.
    ok(device.client.reconfigure(0, &[], &[attr_u64(attr::SIZE_BYTES, 512 << 10)])?)?;
    ok(device.offer(&server, 1, &[attr_u64(attr::SIZE_BYTES, 1 << 20)])?)?;
    let data = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(*data == [7; 4096], "the reader got other data");
    device.disconnect()
}

fn reconnect_load(context: &Context) -> Result<()> {
    let server = server(SIZE)?;
    let device = Attached::new(&server, 4, &[seconds(attr::DEAD_CONN_TIMEOUT, 60)])?;
    let load = Fio::lasting(context.rounds(20, 6), SIZE)?;
    let mut rounds = 0;
    while load.works() {
        server.close_one(server.accepted() - 1);
        device.wait_live(3)?;
        std::thread::sleep(Duration::from_millis(100));
        ok(device.offer(&server, 1, &[])?)?;
        device.wait_live(4)?;
        server.close();
        device.wait_live(0)?;
        std::thread::sleep(Duration::from_millis(200));
        ok(device.offer(&server, 4, &[])?)?;
        device.wait_live(4)?;
        rounds += 1;
    }
    load.verified()?;
    println!("{rounds} rounds");
    ensure!(rounds > 0, "nothing was replaced while fio ran");
    device.disconnect()?;
    server.wait_closed()
}

fn dead_conn_timeout(_: &Context) -> Result<()> {
    let server = server(1 << 20)?;
    let device = Attached::new(&server, 1, &[seconds(attr::DEAD_CONN_TIMEOUT, 2)])?;
    let direct = open_direct("/dev/nbd0")?;
    server.close();
    server.wait_closed()?;
    let waited = read_direct(&direct, 0, 4096);
    ensure!(waited.is_err(), "a read without a connection succeeded");
    ensure!(connected(&device.client, 0)?, "the device is detached; it waits for RECONFIGURE");
    ok(device.offer(&server, 1, &[])?)?;
    round_trip(&direct, 0, &[1; 4096]).context("after a late reconnect")?;
    device.disconnect()
}

fn dead_conn_idle(_: &Context) -> Result<()> {
    let server = server(1 << 20)?;
    let device = Attached::new(&server, 1, &[seconds(attr::DEAD_CONN_TIMEOUT, 10)])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[3; 4096])?;
    server.close();
    device.wait_live(0)?;
    // Longer than a request may wait.
    std::thread::sleep(Duration::from_secs(11));
    let reader = std::thread::spawn(move || read_direct(&direct, 0, 4096));
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!reader.is_finished(), "a read long after the death did not wait for a connection");
    ok(device.offer(&server, 1, &[])?)?;
    let data = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(*data == [3; 4096], "the reader got other data");
    device.disconnect()
}

fn no_dead_conn_timeout(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Attached::new(&server, 1, &[])?;
    let blocked = Blocked::read(&server)?;
    server.close();
    blocked.fails("the only connection was closed")?;
    ok(device.offer(&server, 1, &[])?)?;
    round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 4096])?;
    device.disconnect()
}

fn handover(context: &Context) -> Result<()> {
    let (old, new) = (server(1 << 20)?, server(1 << 20)?);
    let device = Attached::new(&old, 2, &[])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[1; 4096])?;
    if context.driver == Driver::Nbd {
        ok(device.offer(&new, 1, &[])?)?;
        return skip("sockets for live connections are dropped without a word");
    }
    let not_asked = told(&ok(device.offer(&new, 3, &[])?)?)?;
    ensure!(not_asked == (0, 3), "without HANDOVER it was told {not_asked:?}");
    ensure!(old.open_connections() == 2, "a live connection was replaced without HANDOVER");
    new.wait_closed()?;
    let asked = told(&ok(device.offer(&new, 3, &[attr_flag(attr::HANDOVER)])?)?)?;
    ensure!(asked == (2, 1), "with HANDOVER it was told {asked:?}");
    old.wait_closed()?;
    ensure!(old.seen_of(Command::Disconnect).len() == 2, "the old server was not told of the end");
    new.forget();
    round_trip(&direct, 0, &[2; 4096])?;
    ensure!(new.seen_of(Command::Write).len() == 1, "a write went elsewhere");
    // One dead, one live: the dead one first. Of the last three sockets two were taken.
    new.close_one(new.accepted() - 2);
    device.wait_live(1)?;
    let mixed = told(&ok(device.offer(&old, 2, &[attr_flag(attr::HANDOVER)])?)?)?;
    ensure!(mixed == (2, 0), "with one dead it was told {mixed:?}");
    device.disconnect()?;
    old.wait_closed()?;
    new.wait_closed()
}

fn handover_silent(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko has no handover");
    }
    let (old, new) = (silent_server()?, server(1 << 20)?);
    let device = Attached::new(&old, 1, &[])?;
    let blocked = Blocked::read(&old)?;
    ensure!(told(&ok(device.offer(&new, 1, &[attr_flag(attr::HANDOVER)])?)?)? == (1, 0), "not taken");
    blocked.succeeds("the handover")?;
    device.disconnect()
}

fn handover_load(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko has no handover");
    }
    let image = context.scratch_file("image.raw");
    std::fs::File::create(&image)?.set_len(SIZE)?;
    let open = || -> Result<Server> { Ok(Server::new(Export::file(image.as_ref())?)) };
    let servers = [open()?, open()?];
    let device = Attached::new(&servers[0], 2, &[])?;
    let load = Fio::lasting(context.rounds(20, 5), SIZE)?;
    let rounds = context.rounds(100, 10);
    let mut loaded = 0;
    for round in 1..=rounds {
        let to = &servers[round % 2];
        let taken = told(&ok(device.offer(to, 2, &[attr_flag(attr::HANDOVER)])?)?)?;
        ensure!(taken == (2, 0), "round {round}: told {taken:?}");
        let from = &servers[(round + 1) % 2];
        from.wait_closed().with_context(|| format!("round {round}"))?;
        loaded += usize::from(load.works());
    }
    println!("{rounds} handovers, {loaded} of them while fio ran");
    load.verified()?;
    device.disconnect()
}
