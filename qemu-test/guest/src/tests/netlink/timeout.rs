// SPDX-License-Identifier: GPL-2.0
//! Requests that are not answered in time (`NBD_ATTR_TIMEOUT`).

use anyhow::{Context as _, Result, ensure};

use super::attached::{Attached, connect};
use super::ok;
use crate::blocked::{Blocked, silent_server};
use crate::device::{attached, open_direct, read_direct, round_trip};
use crate::netlink::{Client, attr, attr_u64};
use crate::process::wait_for;
use crate::server::{Action, Command, Export, Server};
use crate::tests::{Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.timeout", "one connection, and no answer in time: an error", one),
    Test::new(
        "netlink.timeout_others",
        "several connections: another one gets what was not answered",
        others,
    ),
    Test::new(
        "netlink.timeout_reconnect",
        "what was not answered in time waits for another socket, and is answered there",
        reconnect,
    ),
    Test::new("netlink.timeout_changed", "RECONFIGURE sets the time-out", changed),
];

fn seconds(number: u64) -> netlink_packet_core::DefaultNla {
    attr_u64(attr::TIMEOUT, number)
}

fn one(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Attached::new(&server, 1, &[seconds(1)])?;
    Blocked::read(&server)?.fails("a time-out of 1 s")?;
    ensure!(attached(0), "the device is gone with its only connection");
    let other = Server::new(Export::memory(1 << 20)?);
    ok(device.offer(&other, 1, &[])?)?;
    device.works().context("with another socket")?;
    device.detach()
}

fn others(_: &Context) -> Result<()> {
    // It never answers on the connection where it was asked first.
    let first = std::sync::OnceLock::new();
    let server = Server::with_behaviour(Export::memory(1 << 20)?, move |request| {
        if request.command != Command::Read || request.offset != 65536 {
            return Action::Serve;
        }
        if *first.get_or_init(|| request.connection) == request.connection {
            Action::Ignore
        } else {
            Action::Serve
        }
    });
    let device = Attached::by(0, &server, 3, &[seconds(1)])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 65536 - 4096, &[9; 4096])?;
    let read = read_direct(&direct, 65536, 4096).context("what one connection was silent about")?;
    ensure!(read.iter().all(|byte| *byte == 0), "other data were read");
    let asked: Vec<usize> = server
        .seen_of(Command::Read)
        .iter()
        .filter(|request| request.offset == 65536 && request.length == 4096)
        .map(|request| request.connection)
        .collect();
    println!("asked on connections {asked:?}");
    ensure!(asked.len() == 2 && asked[0] != asked[1], "the read was sent on connections {asked:?}");
    drop(direct);
    device.detach()
}

fn reconnect(_: &Context) -> Result<()> {
    for connections in [1, 3] {
        let silent = silent_server()?;
        let options = [seconds(1), attr_u64(attr::DEAD_CONN_TIMEOUT, 60)];
        let device = Attached::by(0, &silent, connections, &options)?;
        let read =
            std::thread::spawn(|| read_direct(&open_direct("/dev/nbd0")?, 65536, 4096).context("the read"));
        // Each connection is tried, and dies of it.
        wait_for("all connections to be dead", || silent.open_connections() == 0)?;
        ensure!(
            !read.is_finished(),
            "{connections} connections: the read has ended: {:?}",
            read.join().map(|it| it.map(drop))
        );
        let server = Server::new(Export::memory(1 << 20)?);
        server.export().write(65536, &[0x77; 4096])?;
        ok(device.offer(&server, connections, &[])?)?;
        let data = read.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(data.iter().all(|byte| *byte == 0x77), "other data were read");
        device.works()?;
        device.detach()?;
        server.wait_closed()?;
    }
    Ok(())
}

fn changed(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Attached::new(&server, 1, &[])?;
    device.change(&[seconds(1)])?;
    Blocked::read(&server)?.fails("a time-out that came later")?;
    device.detach()?;
    // The next attachment has none.
    let client = Client::open()?;
    ok(connect(&client, Some(0), &server, 1, &[])?)?;
    let reader = Blocked::read(&server)?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    ensure!(reader.waits(), "a time-out outlives its attachment");
    ok(client.disconnect(0)?)?;
    reader.fails("DISCONNECT")
}
