// SPDX-License-Identifier: GPL-2.0
//! CONNECT and DISCONNECT, and what is told of connections that die.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::SaFlags;

use super::attached::{self, Attached};
use super::{connected, ok};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, stubborn_server};
use crate::device::{Device, flag, node, open_direct, req, round_trip, wait_idle};
use crate::mounted::{Mounted, mkfs_ext4};
use crate::netlink::{Client, Listener, Message, attr, attr_u32, attr_u64, command, to_bytes};
use crate::process::{PATIENCE, alarm_storm, fork_child, have, hold_open};
use crate::server::{Command as Asked, Export, Server, Transport};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.link_dead",
        "a connection that dies is told to the group, a disconnect is not",
        link_dead,
    ),
    Test::new("netlink.connect", "CONNECT attaches, DISCONNECT detaches", connect),
    Test::new("netlink.connect_held", "a device that somebody holds open is attached, again and again", held)
        .incident()
        .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new("netlink.connect_free", "the first free device is one that nobody has open", free),
    Test::new(
        "netlink.connect_claimed",
        "a mounted ext4 of the last attachment keeps its device; without an index another one is taken",
        claimed,
    )
    .limit(120)
    .known_on_nbd("EBUSY, and no word of who has the device"),
    Test::new(
        "netlink.old_errors",
        "a write-back that failed, and was told to nobody, is no error of the next attachment",
        old_errors,
    ),
    Test::new("netlink.old_errors_held", "it is told to who had the device open then", old_errors_held)
        .known_on_nbd("EBUSY for as long as anybody has it open"),
    Test::new(
        "netlink.draining_signal",
        "CONNECT and DISCONNECT wait for the end of the last attachment, and a signal ends that with EBUSY",
        draining_signal,
    )
    .known_on_nbd("EBUSY: NBD_DISCONNECT does not end what netlink has attached"),
];

fn link_dead(_: &Context) -> Result<()> {
    let listener = Listener::open()?;
    let server = Server::new(Export::memory(1 << 20)?);
    let dead = Some(Message { command: command::LINK_DEAD, payload: to_bytes(&[attr_u32(attr::INDEX, 0)]) });
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        server.close_one(0);
        let first = listener.next(*PATIENCE)?;
        ensure!(first == dead, "when a connection died the group was told {first:?}");
        round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 4096])
    })?;
    // Attached and detached once more, so that a late word about the disconnect would have come.
    let setup = Setup::for_server(&server);
    with_attached(&server, setup, |_| round_trip(&open_direct("/dev/nbd0")?, 0, &[2; 4096]))?;
    let more = listener.next(Duration::from_millis(500))?;
    ensure!(more.is_none(), "after a disconnect the group was told {more:?}");
    Ok(())
}

fn connect(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(1 << 20)?);
    let flags = attr_u64(attr::SERVER_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN);
    for want in [Some(1), None] {
        let sockets = [server.connect(Transport::Unix)?, server.connect(Transport::Unix)?];
        let fds = sockets.each_ref().map(AsRawFd::as_raw_fd);
        let index = ok(client.connect(want, 1 << 20, &fds, &[flags.clone()])?)?;
        drop(sockets);
        ensure!(want.is_none_or(|want| want == index), "device {index} was attached");
        ensure!(connected(&client, index)?, "device {index} is not connected");
        round_trip(&open_direct(format!("/dev/nbd{index}"))?, 0, &[3; 65536])?;
        let unchanged = ok(client.reconfigure(index, &[], &[])?)?;
        println!("RECONFIGURE was answered with {unchanged:?}");
        ok(client.disconnect(index)?)?;
        wait_idle(index)?;
        server.wait_closed()?;
    }
    Ok(())
}

fn held(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let holder = hold_open("/dev/nbd0")?;
    for round in 0..5 {
        let device = Attached::new(&server, 1, &[]).with_context(|| format!("round {round}"))?;
        device.works().with_context(|| format!("round {round}"))?;
        device.disconnect()?;
        server.wait_closed()?;
    }
    drop(holder);
    wait_idle(0)
}

fn free(_: &Context) -> Result<()> {
    let client = Client::open()?;
    let server = Server::new(Export::memory(1 << 20)?);
    let holder = hold_open("/dev/nbd0")?;
    for round in 0..3 {
        let index = ok(attached::connect(&client, None, &server, 1, &[])?)?;
        ensure!(index == 1, "round {round}: device {index} was attached");
        ok(client.disconnect(index)?)?;
        wait_idle(index)?;
    }
    drop(holder);
    Ok(())
}

fn claimed(context: &Context) -> Result<()> {
    if !have("mkfs.ext4") {
        return skip("there is no mkfs.ext4");
    }
    const SIZE: u64 = 16 << 20;
    let client = Client::open()?;
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[])?;
    mkfs_ext4("/dev/nbd0")?;
    let mounted = Mounted::new(context, &node(0), "ext4")?;
    device.disconnect()?;
    let other = Server::new(Export::memory(SIZE)?);
    // Its own owner, to the same size: only RECONFIGURE puts another socket under what is in use.
    match attached::connect(&client, Some(0), &other, 1, &[])? {
        Ok(_) => bail!("another image was attached under a mounted filesystem"),
        Err(refusal) => {
            println!("{refusal:?}");
            ensure!(refusal.errno == Errno::EBUSY, "refused, but not with EBUSY: {refusal:?}");
            ensure!(refusal.text.contains("a mounted filesystem"), "it is not said who has it: {refusal:?}");
        }
    }
    let index = ok(attached::connect(&client, None, &other, 1, &[])?)?;
    ensure!(index == 1, "device {index} was attached");
    ok(client.disconnect(index)?)?;
    let seen = other.seen_of(Asked::Write);
    ensure!(seen.is_empty(), "what was written to the mounted filesystem came to the other server: {seen:?}");
    mounted.unmount()?;
    let device = Attached::new(&other, 1, &[]).context("after umount")?;
    device.works()?;
    device.detach()
}

/// Writes pages of the page cache; whether they can be written back is another matter.
fn write_pages(opener: &Device) -> Result<()> {
    Ok(opener.file().write_all_at(&[0xe1; 64 << 10], 0)?)
}

fn old_errors(_: &Context) -> Result<()> {
    let [old, new] = [(); 2].map(|()| Export::memory(1 << 20).map(Server::new));
    let (old, new) = (old?, new?);
    let device = Attached::new(&old, 1, &[])?;
    let opener = Device::open(0)?;
    old.close();
    device.wait_live(0)?;
    write_pages(&opener)?;
    // The last one to close it writes them back, in vain.
    drop(opener);
    device.detach()?;
    let device = Attached::new(&new, 1, &[])?;
    let opener = Device::open(0)?;
    write_pages(&opener)?;
    opener.file().sync_all().context("fsync told of what the server before had failed")?;
    ensure!(new.export().read(0, 4096)? == [0xe1; 4096], "what was written is not there");
    drop(opener);
    device.detach()
}

fn old_errors_held(_: &Context) -> Result<()> {
    let [old, new] = [(); 2].map(|()| Export::memory(1 << 20).map(Server::new));
    let (old, new) = (old?, new?);
    let device = Attached::new(&old, 1, &[])?;
    let (holder, writer) = (Device::open(0)?, Device::open(0)?);
    old.close();
    device.wait_live(0)?;
    write_pages(&writer)?;
    ensure!(writer.file().sync_all().is_err(), "fsync without a server succeeded");
    drop(writer);
    device.disconnect()?;
    let device = Attached::new(&new, 1, &[])?;
    ensure!(holder.file().sync_all().is_err(), "a holder was not told that a write-back failed");
    let later = Device::open(0)?;
    write_pages(&later)?;
    later.file().sync_all().context("fsync of one who came later")?;
    holder.file().sync_all().context("the holder was told before")?;
    drop((holder, later));
    device.detach()
}

fn draining_signal(_: &Context) -> Result<()> {
    let server = stubborn_server()?;
    let device = Attached::new(&server, 1, &[])?;
    let reader = Blocked::read(&server)?;
    let next = Server::new(Export::memory(1 << 20)?);
    let offered = attached::sockets(&next, 1)?;
    let fds = attached::fds(&offered);
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    let mut child = fork_child(&fds, |_| {
        let client = Client::open()?;
        alarm_storm(20_000, SaFlags::empty())?;
        let connected = client.connect(Some(0), 1 << 20, &fds, &[])?.map(drop);
        let disconnected = client.disconnect(0)?;
        for (what, answer) in [("CONNECT", connected), ("DISCONNECT", disconnected)] {
            let interrupted = matches!(&answer, Err(refusal) if refusal.errno == Errno::EBUSY);
            ensure!(interrupted, "{what} was answered with {answer:?}");
            let told = answer.is_err_and(|refusal| refusal.text.contains("a signal came"));
            ensure!(told, "{what}: it is not said why");
        }
        Ok(())
    })?;
    child.success()?;
    reader.fails("NBD_DISCONNECT")?;
    attached::speaks(&offered[0])?;
    drop((device, offered));
    let device = Attached::new(&next, 1, &[]).context("without a signal")?;
    device.works()?;
    device.detach()
}
