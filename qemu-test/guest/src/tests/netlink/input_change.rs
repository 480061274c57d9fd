// SPDX-License-Identifier: GPL-2.0
//! RECONFIGURE to what cannot be: refused, with a reason, and nothing is changed.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::attached::{Attached, fds, sockets, speaks};
use super::input::{SIZE, bytes, impossible, judge};
use crate::attach::{Setup, with_attached};
use crate::device::{Device, sysfs};
use crate::modules::Driver;
use crate::netlink::{Client, attr, attr_u32, attr_u64, command, to_bytes};
use crate::process::wait_for;
use crate::server::{Export, Server};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("netlink.reconfigure_refused", "RECONFIGURE refuses what is malformed or impossible", refused)
        .quick(),
    Test::new("netlink.reconfigure_foreign", "RECONFIGURE refuses what was not attached by netlink", foreign),
    Test::new("netlink.reconfigure_refused_whole", "of a RECONFIGURE that is refused nothing is done", whole)
        .known_on_nbd("what comes before the refused part is done, and the size first"),
];

/// What can be seen of device 0.
fn state(device: &Device) -> Result<(u64, u32, Option<String>, Option<String>)> {
    Ok((device.size()?, device.block_size()?, sysfs(0, "pid"), sysfs(0, "queue/io_timeout")))
}

fn refused(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 2, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let open = Device::open(0)?;
    let before = state(&open)?;
    let offered = sockets(&server, 1)?;
    let udp = UdpSocket::bind("127.0.0.1:0")?;
    // A dead connection would take a good socket.
    server.close_one(1);
    wait_for("a connection to be gone", || server.open_connections() == 2)?;
    let mut checks = Checks::default();
    let mut cases = vec![
        ("no such device", vec![attr_u32(attr::INDEX, 2)], Errno::EINVAL),
        ("no possible device", vec![attr_u32(attr::INDEX, u32::MAX)], Errno::EINVAL),
        ("a free device", vec![attr_u32(attr::INDEX, 1)], Errno::EINVAL),
        ("a short index", vec![bytes(attr::INDEX, &[0, 0, 0])], Errno::ERANGE),
    ];
    for (what, more, errno) in impossible(offered[0].as_raw_fd()) {
        // On a dead connection a good socket is taken before what is behind it is looked at by nbd.ko.
        if !what.starts_with("a bad item behind") {
            cases.push((what, more, errno));
        }
    }
    // CONNECT of nbd.ko says EINVAL too.
    let too_large = match context.driver {
        Driver::Nbd => Errno::EBADF,
        Driver::Rnbd => Errno::EINVAL,
    };
    for (what, fd, errno) in [
        ("one that is closed", 12345, Errno::EBADF),
        ("2^31", 1u32 << 31, too_large),
        ("a UDP socket", udp.as_raw_fd() as u32, Errno::EINVAL),
    ] {
        cases.push((what, vec![crate::netlink::attr_sockets(&[fd as i32])], errno));
    }
    for (what, more, errno) in cases {
        let payload = to_bytes(&[&[attr_u32(attr::INDEX, 0)], &more[..]].concat());
        let answer = device.client.call_bytes(command::RECONFIGURE, 0, &payload)?;
        judge(context, &mut checks, what, answer, errno);
        checks.equal(&format!("{what}: state"), state(&open)?, before.clone());
    }
    let answer = device.client.call_bytes(command::RECONFIGURE, 0, &[])?;
    let refusal = judge(context, &mut checks, "no index", answer, Errno::EINVAL);
    checks.equal("missing", refusal.and_then(|refusal| refusal.missing), Some(attr::INDEX.into()));
    drop(open);
    speaks(&offered[0])?;
    device.works()?;
    ensure!(server.open_connections() == 2, "the server has {} connections", server.open_connections());
    drop(offered);
    device.detach()?;
    checks.done()
}

fn foreign(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let client = Client::open()?;
    let mut checks = Checks::default();
    with_attached(&server, Setup::for_server(&server), |device| {
        let before = state(device)?;
        let offered = sockets(&server, 1)?;
        for options in [vec![], vec![attr_u64(attr::SIZE_BYTES, 4096)]] {
            let answer = client.reconfigure(0, &fds(&offered), &options)?;
            judge(context, &mut checks, "attached by ioctl", answer, Errno::EINVAL);
            checks.equal("state", state(device)?, before.clone());
        }
        speaks(&offered[0])
    })?;
    checks.done()
}

fn whole(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 2, &[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let open = Device::open(0)?;
    let before = state(&open)?;
    server.close_one(1);
    wait_for("a connection to be gone", || server.open_connections() == 1)?;
    let offered = sockets(&server, 1)?;
    let good = offered[0].as_raw_fd();
    let smaller = attr_u64(attr::SIZE_BYTES, 4096);
    let mut checks = Checks::default();
    for (what, list, options, errno) in [
        ("a good size, no socket", vec![12345], vec![smaller.clone()], Errno::EBADF),
        ("a good socket, then none", vec![good, 12345], vec![], Errno::EBADF),
        (
            "a good socket, a bad block size",
            vec![good],
            vec![attr_u64(attr::BLOCK_SIZE_BYTES, 3)],
            Errno::EINVAL,
        ),
        ("a good time-out, no socket", vec![12345], vec![attr_u64(attr::TIMEOUT, 77)], Errno::EBADF),
        (
            "a good socket, a long time-out",
            vec![good],
            vec![attr_u64(attr::TIMEOUT, u64::MAX)],
            Errno::EINVAL,
        ),
        (
            "a good size, a long dead time-out",
            vec![],
            vec![smaller, attr_u64(attr::DEAD_CONN_TIMEOUT, u64::MAX)],
            Errno::EINVAL,
        ),
    ] {
        let answer = device.client.reconfigure(0, &list, &options)?;
        judge(context, &mut checks, what, answer, errno);
        checks.equal(&format!("{what}: state"), state(&open)?, before.clone());
        checks.equal(what, speaks(&offered[0]).map_err(|error| format!("{error:#}")), Ok(()));
    }
    drop((open, offered));
    device.works().context("the device, after all that")?;
    device.detach()?;
    checks.done()
}
