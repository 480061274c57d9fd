// SPDX-License-Identifier: GPL-2.0
//! Devices that are made for an attachment, and that go with it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::attached::{Attached, client_flag, client_flags, connect};
use super::ok;
use crate::device::{Device, open_direct, read_direct};
use crate::netlink::Client;
use crate::process::wait_for;
use crate::server::{Export, Server};
use crate::tests::{Context, Test};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.destroy",
        "a device is made for a number that there is not, and goes with its end: 100 times",
        destroy,
    )
    .limit(120),
    Test::new(
        "netlink.destroy_at_once",
        "the number of a device that goes is attached again without a pause: 100 times",
        at_once,
    )
    .limit(120)
    .known_on_nbd("EINVAL, \"going down\", until the device is gone"),
    Test::new("netlink.destroy_initial", "a device of the module's own goes too, and is made again", initial),
    Test::new(
        "netlink.destroy_open",
        "a device goes though it is open, and its number is attached again meanwhile",
        open,
    )
    .known_on_nbd("the device stays until it is closed, and its number is refused with EINVAL"),
    Test::new("netlink.made", "a device that was made stays, if it is not to go", made),
];

/// A number that the module has not begun with.
const NEW: u32 = 5;

fn goes() -> [netlink_packet_core::DefaultNla; 1] {
    [client_flags(client_flag::DESTROY_ON_DISCONNECT)]
}

fn exists(index: u32) -> bool {
    Path::new(&format!("/sys/block/nbd{index}")).exists()
}

fn listed(client: &Client) -> Result<Vec<u32>> {
    Ok(ok(client.status(None)?)?.iter().map(|device| device.index).collect())
}

/// Until sysfs and STATUS know nothing of a device. nbd.ko takes it from one after the other.
pub fn wait_gone(client: &Client, index: u32) -> Result<()> {
    wait_for("the device to be gone", || {
        !exists(index) && listed(client).is_ok_and(|all| !all.contains(&index))
    })
}

fn destroy(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let client = Client::open()?;
    for round in 0..context.rounds(100, 10) {
        ensure!(listed(&client)? == [0, 1], "round {round}: there are {:?}", listed(&client)?);
        let device = Attached::by(NEW, &server, 1, &goes()).with_context(|| format!("round {round}"))?;
        ensure!(listed(&client)? == [0, 1, NEW], "round {round}: there are {:?}", listed(&client)?);
        device.works().with_context(|| format!("round {round}"))?;
        ok(client.disconnect(NEW)?)?;
        wait_gone(&client, NEW).with_context(|| format!("round {round}"))?;
        server.wait_closed()?;
    }
    Ok(())
}

fn at_once(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let client = Client::open()?;
    for round in 0..context.rounds(100, 10) {
        let device = Attached::by(NEW, &server, 1, &goes()).with_context(|| format!("round {round}"))?;
        if round % 10 == 0 {
            device.works().with_context(|| format!("round {round}"))?;
        }
        ok(client.disconnect(NEW)?)?;
        let all = listed(&client)?;
        ensure!(all == [0, 1], "round {round}: after its end STATUS lists {all:?}");
    }
    wait_gone(&client, NEW)?;
    server.wait_closed()
}

fn initial(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let client = Client::open()?;
    for _ in 0..3 {
        let device = Attached::by(1, &server, 1, &goes())?;
        device.works()?;
        ok(client.disconnect(1)?)?;
        wait_gone(&client, 1)?;
        ensure!(listed(&client)? == [0], "there are {:?}", listed(&client)?);
    }
    // Without the flag it stays.
    Attached::by(1, &server, 1, &[])?.detach()?;
    ensure!(listed(&client)? == [0, 1] && exists(1), "there are {:?}", listed(&client)?);
    // A flag that is given later counts, and one that is taken back does not.
    let device = Attached::by(1, &server, 1, &goes())?;
    device.change(&[client_flags(0)])?;
    device.detach()?;
    ensure!(exists(1), "a device went that was not to go any more");
    let device = Attached::by(1, &server, 1, &[])?;
    device.change(&goes())?;
    ok(client.disconnect(1)?)?;
    wait_gone(&client, 1)
}

fn open(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let client = Client::open()?;
    for round in 0..5 {
        let device = Attached::by(NEW, &server, 1, &goes()).with_context(|| format!("round {round}"))?;
        device.works()?;
        let holder = Device::open(NEW)?;
        let reader = open_direct(format!("/dev/nbd{NEW}"))?;
        ok(client.disconnect(NEW)?)?;
        let all = listed(&client)?;
        ensure!(all == [0, 1], "round {round}: STATUS lists {all:?}, though the device is to be gone");
        let again =
            Attached::by(NEW, &server, 1, &goes()).with_context(|| format!("round {round}, again"))?;
        again.works().context("while the old device is held open")?;
        ensure!(
            read_direct(&reader, 0, 4096).is_err(),
            "round {round}: the old device reads from the new one's server"
        );
        drop((holder, reader));
        again.works().context("after the old device was closed")?;
        ok(client.disconnect(NEW)?)?;
        wait_gone(&client, NEW)?;
    }
    server.wait_closed()
}

fn made(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let client = Client::open()?;
    Attached::by(NEW, &server, 2, &[])?.detach()?;
    ensure!(listed(&client)? == [0, 1, NEW] && exists(NEW), "there are {:?}", listed(&client)?);
    // With all others taken the first free number is a new device's.
    let first = Attached::by(0, &server, 1, &[])?;
    let second = Attached::by(1, &server, 1, &[])?;
    let third = Attached::by(NEW, &server, 1, &[])?;
    let new = ok(connect(&client, None, &server, 1, &goes())?)?;
    ensure!(new == 2, "device {new} was made");
    for device in [first, second, third] {
        device.works()?;
        device.detach()?;
    }
    ok(client.disconnect(new)?)?;
    wait_gone(&client, new)
}
