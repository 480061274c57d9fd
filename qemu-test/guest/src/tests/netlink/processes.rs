// SPDX-License-Identifier: GPL-2.0
//! Servers that are real programs, processes of their own on one image, killed and replaced under load.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::DefaultNla;

use super::attached::{Attached, connect_sockets, fds};
use super::load::Fio;
use super::ok;
use super::replace::told;
use crate::modules::Driver;
use crate::netlink::{Client, Message, attr, attr_flag, attr_u64};
use crate::process::wait_for;
use crate::server::handshake::shake_hands;
use crate::tests::clients::{Daemon, QemuNbd, image};
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.reconnect_killed",
        "4 processes of qemu-nbd, one and then all of them killed and replaced, under verified load",
        reconnect_killed,
    )
    .limit(150),
    Test::new(
        "netlink.handover_processes",
        "100 handovers between two processes of qemu-nbd under verified load",
        handover,
    )
    .limit(240),
];

const SIZE: u64 = 64 << 20;

/// Processes of qemu-nbd, all on one image.
struct Servers {
    image: String,
    scratch: PathBuf,
    started: usize,
}

/// One of them.
struct Process {
    daemon: Daemon,
    socket: PathBuf,
}

impl Servers {
    fn new(context: &Context) -> Result<Servers> {
        let image = image(context, "image", SIZE)?;
        Ok(Servers { image, scratch: context.scratch.clone(), started: 0 })
    }

    fn start(&mut self) -> Result<Process> {
        self.started += 1;
        let socket = self.scratch.join(format!("socket-{}", self.started));
        let daemon = QemuNbd::listen(&socket, &self.image, 8)?;
        Ok(Process { daemon, socket })
    }
}

impl Process {
    /// A connection that has come through the handshake.
    fn connect(&self) -> Result<OwnedFd> {
        let mut connected = None;
        wait_for("qemu-nbd to listen", || {
            connected = UnixStream::connect(&self.socket).ok();
            connected.is_some()
        })?;
        let stream = connected.context("no connection")?;
        shake_hands(&stream, SIZE)
            .with_context(|| format!("handshake with qemu-nbd {}", self.daemon.pid()))?;
        Ok(stream.into())
    }
}

fn connect_all<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Result<Vec<OwnedFd>> {
    processes.into_iter().map(Process::connect).collect()
}

fn attach(sockets: &[OwnedFd], options: &[DefaultNla]) -> Result<Attached> {
    let client = Client::open()?;
    let index = ok(connect_sockets(&client, Some(0), SIZE, sockets, options)?)?;
    Ok(Attached { client, index })
}

fn offer(device: &Attached, sockets: &[OwnedFd], options: &[DefaultNla]) -> Result<Vec<Message>> {
    ok(device.client.reconfigure(0, &fds(sockets), options)?)
}

fn reconnect_killed(context: &Context) -> Result<()> {
    let mut servers = Servers::new(context)?;
    let mut start = |count: usize| (0..count).map(|_| servers.start()).collect::<Result<Vec<_>>>();
    let mut alive = start(4)?;
    let device = attach(&connect_all(&alive)?, &[attr_u64(attr::DEAD_CONN_TIMEOUT, 60)])?;
    let load = Fio::lasting(context.rounds(20, 6), SIZE)?;
    let mut rounds = 0;
    while load.works() {
        drop(alive.pop());
        device.wait_live(3)?;
        alive.extend(start(1)?);
        offer(&device, &connect_all(&alive[3..])?, &[])?;
        device.wait_live(4)?;
        let next = start(4)?;
        drop(std::mem::replace(&mut alive, next));
        device.wait_live(0)?;
        offer(&device, &connect_all(&alive)?, &[])?;
        device.wait_live(4)?;
        rounds += 1;
    }
    load.verified()?;
    println!("{rounds} rounds");
    ensure!(rounds > 0, "nothing was killed while fio ran");
    device.disconnect()
}

fn handover(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko has no handover");
    }
    let mut servers = Servers::new(context)?;
    let processes = [servers.start()?, servers.start()?];
    let two = |process: &Process| connect_all([process, process]);
    let device = attach(&two(&processes[0])?, &[])?;
    let load = Fio::lasting(context.rounds(20, 5), SIZE)?;
    let rounds = context.rounds(100, 10);
    let mut loaded = 0;
    for round in 1..=rounds {
        let replies = offer(&device, &two(&processes[round % 2])?, &[attr_flag(attr::HANDOVER)])?;
        let taken = told(&replies)?;
        ensure!(taken == (2, 0), "round {round}: told {taken:?}");
        loaded += usize::from(load.works());
    }
    println!("{rounds} handovers, {loaded} of them while fio ran");
    load.verified()?;
    device.disconnect()
}
