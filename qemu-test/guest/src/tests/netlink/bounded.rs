// SPDX-License-Identifier: GPL-2.0
//! Control operations with a server that neither reads nor answers, while writers have filled its socket: each comes
//! to its end (invariant G6). Whoever waits longer than the patience that the tests have with everything hangs. How long
//! each took is printed, and nothing is made of it.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use netlink_packet_core::DefaultNla;
use nix::errno::Errno;

use super::attached::{Attached, client_flag, client_flags, connect_sockets, sockets};
use super::load::{Deaf, Writer, fill, unread};
use super::{connected, ok};
use crate::device::{Device, attached, capacity, req, wait_idle};
use crate::modules::Driver;
use crate::netlink::{Client, attr, attr_flag, attr_u64};
use crate::process::{PATIENCE, describe_task, wait_for};
use crate::server::{Export, Server};
use crate::tests::{Checks, Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new("netlink.stuck_connect", "CONNECT to a server that does not read, and DISCONNECT", connect),
    Test::new(
        "netlink.stuck_reconfigure",
        "RECONFIGURE with each attribute while a sender is stuck",
        reconfigure,
    )
    .known_on_nbd("a size change waits for the server, and stops all of netlink meanwhile"),
    Test::new(
        "netlink.stuck_handover",
        "a handover from a server that does not read, with STATUS meanwhile",
        handover,
    ),
    Test::new(
        "netlink.stuck_reconnect",
        "another socket when the server that does not read has died",
        reconnect,
    ),
    Test::new(
        "netlink.stuck_disconnect",
        "DISCONNECT while a sender is stuck, with STATUS meanwhile",
        disconnect,
    )
    .known_on_nbd("it waits for the stuck sender, and stops all of netlink meanwhile"),
    Test::new("netlink.stuck_ioctl_disconnect", "NBD_DISCONNECT while a sender is stuck", |_| {
        by_ioctl(req::DISCONNECT)
    })
    .known_on_nbd("it waits for the stuck sender"),
    Test::new("netlink.stuck_ioctl_clear", "NBD_CLEAR_SOCK while a sender is stuck", |_| {
        by_ioctl(req::CLEAR_SOCK)
    })
    .known_on_nbd("it waits for the stuck sender"),
];

const SIZE: u64 = 8 << 20;

/// Device 0, whose only server never reads.
fn attach(options: &[DefaultNla]) -> Result<(Attached, UnixStream)> {
    let client = Client::open()?;
    let (ours, theirs) = unread()?;
    let index = ok(connect_sockets(&client, Some(0), SIZE, &[ours], options)?)?;
    Ok((Attached { client, index }, theirs))
}

/// Device 0, whose only server has answered for the partition table, and reads no more. Writers have filled its socket.
fn attach_and_fill(options: &[DefaultNla]) -> Result<(Attached, Deaf, Vec<Writer>)> {
    let deaf = Deaf::new(SIZE)?;
    let device = Attached::new(&deaf.server, 1, options)?;
    drop(Device::open(0)?);
    deaf.turn_deaf();
    let writers = fill(0)?;
    Ok((device, deaf, writers))
}

fn all_fail(writers: &[Writer], why: &str) -> Result<()> {
    for writer in writers {
        let ended = writer.ended(why)?;
        ensure!(ended.is_err(), "a write that no server has read succeeded after {why}");
    }
    Ok(())
}

/// The writes come to another server, whole.
fn all_arrive(writers: &[Writer], server: &Server, why: &str) -> Result<()> {
    for (place, writer) in writers.iter().enumerate() {
        writer.ended(why)?.map_err(|errno| anyhow!("a write failed over {why}: {errno}"))?;
        let there = server.export().read((place as u64) << 20, 1 << 20)?;
        ensure!(
            there.iter().all(|byte| usize::from(*byte) == place),
            "write {place} did not come to the new server"
        );
    }
    Ok(())
}

/// Does something, and prints how long it took.
fn measured<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = step();
    println!("{what}: {} ms", start.elapsed().as_millis());
    done
}

/// Does something in a task of its own, and asks for STATUS until that is done. Returns how often it was answered.
fn with_status<T: Send + 'static>(
    what: &str,
    step: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<(T, usize)> {
    let (sender, result) = channel();
    let name = what.to_owned();
    std::thread::spawn(move || sender.send(measured(&name, step)));
    let client = Client::open()?;
    let mut answered = 0;
    let mut done = None;
    wait_for(what, || {
        let told = connected(&client, 0);
        done = result.try_recv().ok();
        if done.is_none() && told.is_ok() {
            answered += 1;
        }
        done.is_some()
    })
    .with_context(|| describe_task(std::process::id() as i32))?;
    let done = done.context("nothing was done")??;
    println!("{answered} times STATUS during {what}");
    Ok((done, answered))
}

fn connect(_: &Context) -> Result<()> {
    for _ in 0..3 {
        let (device, server) = measured("CONNECT", || attach(&[]))?;
        ensure!(connected(&device.client, 0)? && attached(0), "it is not attached");
        ok(measured("DISCONNECT", || device.client.disconnect(0))?)?;
        wait_idle(0)?;
        drop(server);
    }
    Ok(())
}

fn reconfigure(_: &Context) -> Result<()> {
    let (device, _server, writers) = attach_and_fill(&[attr_u64(attr::BLOCK_SIZE_BYTES, 512)])?;
    let mut checks = Checks::default();
    let mut change = |what: &str, options: &[DefaultNla], want: Result<(), Errno>| -> Result<()> {
        let answer =
            measured(what, || device.client.reconfigure(0, &[], options)).with_context(|| what.to_owned())?;
        checks.equal(what, answer.map(drop).map_err(|refusal| refusal.errno), want);
        Ok(())
    };
    change("nothing", &[], Ok(()))?;
    change("a larger size", &[attr_u64(attr::SIZE_BYTES, 2 * SIZE)], Ok(()))?;
    change("a smaller size", &[attr_u64(attr::SIZE_BYTES, SIZE)], Ok(()))?;
    change("a block size", &[attr_u64(attr::BLOCK_SIZE_BYTES, 4096)], Err(Errno::EBUSY))?;
    change("a time-out", &[attr_u64(attr::TIMEOUT, 3600)], Ok(()))?;
    change("no time-out", &[attr_u64(attr::TIMEOUT, 0)], Ok(()))?;
    change("a dead time-out", &[attr_u64(attr::DEAD_CONN_TIMEOUT, 60)], Ok(()))?;
    change(
        "flags",
        &[client_flags(client_flag::DESTROY_ON_DISCONNECT | client_flag::DISCONNECT_ON_CLOSE)],
        Ok(()),
    )?;
    change("no flags", &[client_flags(0)], Ok(()))?;
    // Sockets that nothing needs.
    let other = Server::new(Export::memory(SIZE)?);
    let left = measured("sockets", || device.offer(&other, 2, &[]))?;
    checks.equal("sockets", left.map(drop), Ok(()));
    other.wait_closed()?;
    checks.equal("size", capacity(0), SIZE);
    checks.that("the writers wait", writers.iter().all(Writer::waits));
    ok(measured("DISCONNECT", || device.client.disconnect(0))?)?;
    all_fail(&writers, "DISCONNECT")?;
    checks.done()
}

fn handover(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko has no handover");
    }
    let (device, _server, writers) = attach_and_fill(&[])?;
    let other = Server::new(Export::memory(SIZE)?);
    let offered = sockets(&other, 1)?;
    let (_, answered) = with_status("the handover", move || {
        let client = Client::open()?;
        ok(client.reconfigure(0, &[offered[0].as_raw_fd()], &[attr_flag(attr::HANDOVER)])?)
    })?;
    ensure!(answered > 0, "STATUS was not answered while the handover ran");
    all_arrive(&writers, &other, "the handover")?;
    device.works()?;
    device.detach()
}

fn reconnect(_: &Context) -> Result<()> {
    let (device, server, writers) = attach_and_fill(&[attr_u64(attr::DEAD_CONN_TIMEOUT, 60)])?;
    drop(server);
    device.wait_live(0)?;
    let other = Server::new(Export::memory(SIZE)?);
    ok(measured("a socket", || device.offer(&other, 1, &[]))?)?;
    all_arrive(&writers, &other, "the reconnect")?;
    device.works()?;
    device.detach()
}

fn disconnect(_: &Context) -> Result<()> {
    let (device, _server, writers) = attach_and_fill(&[])?;
    let ((), answered) = with_status("the disconnect", || ok(Client::open()?.disconnect(0)?))?;
    ensure!(answered > 0, "STATUS was not answered while the disconnect ran");
    all_fail(&writers, "DISCONNECT")?;
    wait_idle(0)?;
    drop(device);
    attaches_again()
}

fn by_ioctl(request: u32) -> Result<()> {
    let (device, _server, writers) = attach_and_fill(&[])?;
    let open = Device::open(0)?;
    let (sender, result) = channel();
    std::thread::spawn(move || {
        let done = measured("the ioctl", || open.ioctl(request, 0));
        drop(open);
        let _ = sender.send(done);
    });
    let done = result
        .recv_timeout(*PATIENCE)
        .with_context(|| format!("the ioctl hangs\n{}", describe_task(std::process::id() as i32)))?;
    ensure!(done == Ok(0), "the ioctl returned {done:?}");
    all_fail(&writers, "the ioctl")?;
    wait_idle(0)?;
    drop(device);
    attaches_again()
}

/// By netlink, to a server that does its part.
fn attaches_again() -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let device = Attached::new(&server, 1, &[]).context("attaching again")?;
    device.works()?;
    device.detach()
}
