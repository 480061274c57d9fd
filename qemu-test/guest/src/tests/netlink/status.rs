// SPDX-License-Identifier: GPL-2.0
//! STATUS: which devices are there, and in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLA_F_NET_BYTEORDER};
use nix::errno::Errno;

use super::{connected, ok, reply_of_free};
use crate::attach::{Setup, with_attached};
use crate::blocked::Blocked;
use crate::device::{Device, attached, req, wait_idle};
use crate::netlink::{
    Client, Refusal, Status, attr, attr_string, attr_u32, attr_u64, command, statuses, to_bytes,
};
use crate::process::wait_for;
use crate::server::{Action, Command, Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.status", "STATUS tells of one device, or of all", status).quick(),
    Test::new("netlink.status_many", "STATUS of 300 devices is one reply", status_many)
        .params("nbds_max=300"),
    Test::new("netlink.status_attached", "STATUS tells an attached device from a free one", status_attached)
        .quick(),
    Test::new("netlink.status_open", "a device that is open and nothing else is not connected", status_open)
        .known_on_nbd("it counts openers: any open device is connected"),
    Test::new(
        "netlink.status_attributes",
        "STATUS with unknown, short, over-long, wrong and repeated attributes",
        status_attributes,
    ),
    Test::new("netlink.status_stuck", "STATUS waits for no server", status_stuck),
];

fn status(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let mut checks = Checks::default();
    let cases: [(&str, Vec<DefaultNla>, &[u32]); 6] = [
        ("all", vec![], &[0, 1]),
        ("all, by -1", vec![attr_u32(attr::INDEX, u32::MAX)], &[0, 1]),
        ("the first", vec![attr_u32(attr::INDEX, 0)], &[0]),
        ("the second", vec![attr_u32(attr::INDEX, 1)], &[1]),
        ("one that there is not", vec![attr_u32(attr::INDEX, 2)], &[]),
        ("one that there cannot be", vec![attr_u32(attr::INDEX, 1 << 31)], &[]),
    ];
    for (what, attributes, devices) in cases {
        let answer = client.call(command::STATUS, &attributes)?;
        checks.equal(what, answer, Ok(vec![reply_of_free(devices.iter().copied())]));
    }
    checks.done()
}

fn status_many(_: &Context) -> Result<()> {
    let answer = Client::open()?.call(command::STATUS, &[])?;
    ensure!(answer == Ok(vec![reply_of_free(0..300)]), "STATUS was answered with {answer:?}");
    Ok(())
}

fn status_attached(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(1 << 20)?);
    for round in 0..2 {
        ensure!(!connected(&client, 0)?, "round {round}: connected before it is attached");
        with_attached(&server, Setup::for_server(&server), |_| {
            let mut checks = Checks::default();
            checks.that("the attached device is connected", connected(&client, 0)?);
            checks.that("the other one is not", !connected(&client, 1)?);
            let all = ok(client.status(None)?)?;
            let want = [Status { index: 0, connected: 1 }, Status { index: 1, connected: 0 }];
            checks.equal("all", &all[..], &want[..]);
            checks.done()
        })?;
        // The last close of an open file may still be on its way.
        let mut last = Ok(true);
        wait_for("the device to be free", || {
            last = connected(&client, 0);
            !matches!(last, Ok(true))
        })?;
        last?;
    }
    Ok(())
}

fn status_open(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let device = Device::open(0)?;
    ensure!(!connected(&client, 0)?, "a device that is only open is connected");
    let server = Server::new(Export::memory(1 << 20)?);
    Setup::for_server(&server).prepare(&device, &server)?;
    ensure!(connected(&client, 0)?, "a device that is being set up is not in use");
    device.ioctl(req::CLEAR_SOCK, 0).context("NBD_CLEAR_SOCK")?;
    Ok(())
}

/// Where a request's first attribute is: behind two headers.
const FIRST: u32 = 20;

/// As the kernel's own validation refuses an attribute.
fn invalid(offset: u32) -> Result<Vec<u32>, Refusal> {
    let text = "Attribute failed policy validation".to_owned();
    Err(Refusal { errno: Errno::ERANGE, text, offset: Some(offset), missing: None })
}

fn status_attributes(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let mut checks = Checks::default();
    let mut ask = |what: &str, payload: &[u8], want: Result<Vec<u32>, Refusal>| -> Result<()> {
        let got = match client.call_bytes(command::STATUS, 0, payload)? {
            Ok(replies) => Ok(statuses(&replies)?.iter().map(|device| device.index).collect()),
            Err(refusal) => Err(refusal),
        };
        checks.equal(what, got, want);
        Ok(())
    };
    let all = || Ok(vec![0, 1]);
    let bytes = |number: u16, value: &[u8]| to_bytes(&[DefaultNla::new(number, value.to_vec())]);
    for length in 0..4 {
        ask(
            &format!("an index of {length} bytes"),
            &bytes(attr::INDEX, &[1, 0, 0][..length]),
            invalid(FIRST),
        )?;
    }
    ask("an index of 5 bytes", &bytes(attr::INDEX, &[1, 0, 0, 0, 9]), Ok(vec![1]))?;
    ask("an index of 8 bytes", &bytes(attr::INDEX, &[1, 0, 0, 0, 9, 9, 9, 9]), Ok(vec![1]))?;
    let index = 1u32.to_ne_bytes();
    ask("an index that is marked as nested", &bytes(attr::INDEX | NLA_F_NESTED, &index), Ok(vec![1]))?;
    ask("an index in the net's order", &bytes(attr::INDEX | NLA_F_NET_BYTEORDER, &index), Ok(vec![1]))?;
    let twice = [attr_u32(attr::INDEX, 0), attr_u32(attr::INDEX, 1)];
    ask("two indexes", &to_bytes(&twice), Ok(vec![1]))?;
    let second = to_bytes(&[attr_u32(attr::INDEX, 0), DefaultNla::new(attr::INDEX, vec![1])]);
    ask("two indexes, the second one short", &second, invalid(FIRST + 8))?;
    for number in [0, 11, 99, 0x3fff] {
        ask(&format!("attribute {number}"), &bytes(number, &[1, 2, 3]), all())?;
        let both = [DefaultNla::new(number, vec![7]), attr_u32(attr::INDEX, 1)];
        ask(&format!("attribute {number} before an index"), &to_bytes(&both), Ok(vec![1]))?;
    }
    for number in [
        attr::SIZE_BYTES,
        attr::BLOCK_SIZE_BYTES,
        attr::TIMEOUT,
        attr::SERVER_FLAGS,
        attr::CLIENT_FLAGS,
        attr::DEAD_CONN_TIMEOUT,
    ] {
        ask(&format!("attribute {number} of 4 bytes"), &to_bytes(&[attr_u32(number, 1)]), invalid(FIRST))?;
        ask(&format!("attribute {number} of 8 bytes"), &to_bytes(&[attr_u64(number, 1)]), all())?;
    }
    for number in [attr::SOCKETS, attr::DEVICE_LIST] {
        ask(&format!("an empty list {number}"), &bytes(number, &[]), all())?;
        ask(&format!("a list {number} of 3 bytes"), &bytes(number, &[1, 2, 3]), invalid(FIRST))?;
        ask(&format!("a list {number} of rubbish"), &bytes(number, &[0xff; 9]), all())?;
    }
    ask("a backend without a byte", &bytes(attr::BACKEND_IDENTIFIER, &[]), invalid(FIRST))?;
    ask("a backend without a NUL", &bytes(attr::BACKEND_IDENTIFIER, b"disk"), all())?;
    ask("a backend", &to_bytes(&[attr_string(attr::BACKEND_IDENTIFIER, "disk")]), all())?;
    // What is no attribute at all, and whatever comes behind it, is passed over.
    ask("a length of 3", &[3, 0, 1, 0, 1, 0, 0, 0], all())?;
    ask("a length beyond the end", &[9, 0, 1, 0, 1, 0, 0, 0], all())?;
    ask("half a header", &[8, 0], all())?;
    let behind = [to_bytes(&[attr_u32(attr::INDEX, 1)]), vec![200, 0, 1, 0]].concat();
    ask("a length beyond the end behind an index", &behind, Ok(vec![1]))?;
    checks.done()
}

/// A server that reads nothing more, not even that it shall go, from a read at [`Blocked::read`]'s place on, as long as
/// it is `stuck`.
fn stuck_server(stuck: &Arc<AtomicBool>) -> Result<Server> {
    let stuck = stuck.clone();
    Ok(Server::with_behaviour(Export::memory(1 << 20)?, move |request| {
        if request.command != Command::Read || request.offset != 65536 {
            return Action::Serve;
        }
        while stuck.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Action::Ignore
    }))
}

fn status_stuck(_: &Context) -> Result<()> {
    let client = Client::open()?;
    // Draining has a bound of its own, which a slow machine may reach before we have asked.
    for round in 0..3 {
        let stuck = Arc::new(AtomicBool::new(true));
        let server = stuck_server(&stuck)?;
        let device = Device::open(0)?;
        let attachment = Setup::for_server(&server).attach(&device, &server)?;
        let reader = Blocked::read(&server)?;
        for _ in 0..32 {
            ensure!(connected(&client, 0)?, "an attached device is not connected");
        }
        ensure!(reader.waits(), "a reader without an answer has ended");
        device.ioctl(req::DISCONNECT, 0).context("NBD_DISCONNECT")?;
        let told = connected(&client, 0)?;
        let drains = attached(0);
        println!("round {round}: while it drains ({drains}), connected: {told}");
        stuck.store(false, Ordering::Relaxed);
        let ended = attachment.ended()?;
        ensure!(ended == Ok(0), "NBD_DO_IT returned {ended:?} after NBD_DISCONNECT");
        reader.fails("NBD_DISCONNECT")?;
        drop(device);
        wait_idle(0)?;
        if drains {
            ensure!(told, "a device that drains is not in use");
            return Ok(());
        }
    }
    bail!("STATUS was never answered before the device was drained");
}
