// SPDX-License-Identifier: GPL-2.0
//! nbd-client as it is, which uses netlink unless it is told otherwise.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::attached::Attached;
use crate::device::{attached, open_direct, read_direct, round_trip, sysfs, wait_attached, wait_idle};
use crate::process::{PATIENCE, have, run, run_within};
use crate::server::{Command as Asked, Export, Server};
use crate::tests::clients::{NbdServer, QemuNbd, exercise, image};
use crate::tests::data::fio;
use crate::tests::{Context, Test, skip};

pub const TESTS: &[Test] = &[
    Test::new(
        "netlink.nbd_client",
        "nbd-client attaches to nbd-server over TCP, tells of it with -c, detaches with -d: 10 times",
        nbd_client,
    )
    .limit(120),
    Test::new(
        "netlink.nbd_client_first_free",
        "nbd-client without a device takes the first free one",
        first_free,
    ),
    Test::new(
        "netlink.nbd_client_connections",
        "nbd-client -C 4 attaches to qemu-nbd, and fio verifies what it writes",
        connections,
    )
    .limit(120),
    Test::new(
        "netlink.nbd_client_timeout",
        "nbd-client -t 2: when the server stops, a reader gets an error",
        timeout,
    ),
    Test::new(
        "netlink.nbd_client_foreign",
        "nbd-client -d detaches what another program has attached",
        foreign,
    ),
];

/// Runs nbd-client, which must succeed.
fn tell(args: &[&str]) -> Result<String> {
    if !have("nbd-client") {
        return skip("there is no nbd-client");
    }
    run("nbd-client", args)
}

/// What `nbd-client -c` says of device 0: the process that attached it, or that it is free.
fn check() -> Result<Option<String>> {
    let output = run_within(*PATIENCE, Command::new("nbd-client").args(["-c", "/dev/nbd0"]))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(Some(said)),
        Some(1) => Ok(None),
        other => anyhow::bail!("nbd-client -c ended with {other:?}: {said}"),
    }
}

fn attach(server: &[&str], options: &[&str]) -> Result<()> {
    let mut args = server.to_vec();
    args.push("/dev/nbd0");
    args.extend(options);
    tell(&args)?;
    wait_attached(0)
}

fn detach() -> Result<()> {
    tell(&["-d", "/dev/nbd0"])?;
    wait_idle(0)
}

fn nbd_client(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    let server = NbdServer::start(context, &image)?;
    for round in 0..context.rounds(10, 3) as u64 {
        ensure!(check()?.is_none(), "round {round}: nbd-client takes a free device for attached");
        attach(&server.place(), &[]).with_context(|| format!("round {round}"))?;
        let told = check()?;
        ensure!(told.is_some() && told == sysfs(0, "pid"), "round {round}: nbd-client -c says {told:?}");
        exercise(round)?;
        detach().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn first_free(context: &Context) -> Result<()> {
    let ours = Server::new(Export::memory(1 << 20)?);
    let first = Attached::new(&ours, 1, &[])?;
    let image = image(context, "disk", 4 << 20)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 1)?;
    let said = tell(&["-unix", &socket, "-N", ""])?;
    println!("nbd-client says: {}", said.trim());
    ensure!(attached(1), "the free device was not taken");
    round_trip(&open_direct("/dev/nbd1")?, 0, &[9; 4096])?;
    tell(&["-d", "/dev/nbd1"])?;
    wait_idle(1)?;
    drop(server);
    first.works().context("the device that was attached before")?;
    first.detach()
}

fn connections(context: &Context) -> Result<()> {
    let image = image(context, "disk", 32 << 20)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 8)?;
    attach(&["-unix", &socket, "-N", ""], &["-C", "4"])?;
    let queues = std::fs::read_dir("/sys/block/nbd0/mq")?.count();
    let processors = std::thread::available_parallelism()?.get();
    ensure!(queues == processors.min(4), "{queues} hardware queues for 4 connections");
    fio(context, &["--ioengine=libaio", "--iodepth=16", "--direct=1"])?;
    detach()?;
    drop(server);
    Ok(())
}

fn timeout(context: &Context) -> Result<()> {
    let image = image(context, "disk", 4 << 20)?;
    let socket = context.scratch_file("socket");
    let server = QemuNbd::listen(Path::new(&socket), &image, 1)?;
    attach(&["-unix", &socket, "-N", ""], &["-t", "2"])?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 0, &[1; 4096])?;
    kill(server.pid(), Signal::SIGSTOP)?;
    let (sender, result) = channel();
    let theirs = direct.try_clone()?;
    std::thread::spawn(move || sender.send(read_direct(&theirs, 65536, 4096).map(drop)));
    let read = result.recv_timeout(*PATIENCE).context("the reader hangs");
    kill(server.pid(), Signal::SIGCONT)?;
    let read = read?;
    println!("the reader got {read:?}");
    ensure!(read.is_err(), "a stopped server has answered");
    drop(direct);
    ensure!(attached(0), "a device that was attached by netlink goes with its last connection");
    detach()
}

fn foreign(_: &Context) -> Result<()> {
    if !have("nbd-client") {
        return skip("there is no nbd-client");
    }
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Attached::new(&server, 1, &[])?;
    device.works()?;
    detach()?;
    server.wait_closed()?;
    ensure!(server.seen_of(Asked::Disconnect).len() == 1, "the server was not told of the end");
    Ok(())
}
