// SPDX-License-Identifier: GPL-2.0
//! The ways an attachment ends, and that the device can be attached again after each.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::{Context, Test};
use crate::attach::{Attachment, Setup, attaches_again, set_up_and_die, with_attached};
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, capacity, node, open_direct, read_direct, req, round_trip, wait_idle};
use crate::modules::Driver;
use crate::process::{hold_open, wait_for};
use crate::server::{Action, Command, Export, Server, Transport};

pub const EBUSY_FOR_EVER: &str = "EBUSY for ever: the dead owner's config lives as long as any opener";

pub const TESTS: &[Test] = &[
    Test::new(
        "teardown.server_closes",
        "the server closes: reads fail, NBD_DO_IT returns, capacity is 0",
        server_closes,
    )
    .quick(),
    Test::new("teardown.server_closes_idle", "the server closes an idle connection", server_closes_idle),
    Test::new("teardown.client_killed", "the client is killed in NBD_DO_IT", client_killed).quick(),
    Test::new(
        "teardown.client_killed_holder",
        "the same while another process holds the device",
        client_killed_holder,
    )
    .incident()
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("teardown.setter_dies", "the client dies between NBD_SET_SOCK and NBD_DO_IT", setter_dies),
    Test::new(
        "teardown.setter_dies_holder",
        "the incident: the same while another process holds the device",
        setter_dies_holder,
    )
    .incident()
    .quick()
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("teardown.same_open", "attach, detach, attach again by one open", same_open)
        .known_on_nbd("EBUSY: the config, and in it the client's pid, lives until the last close"),
    Test::new("teardown.clear_sock", "NBD_CLEAR_SOCK of a running device ends it", clear_sock),
    Test::new("teardown.setup_cleared", "NBD_CLEAR_SOCK in setup releases the sockets", setup_cleared)
        .known_on_nbd("the dead sockets stay in the config, and NBD_DO_IT starts on them"),
    Test::new("teardown.timeout", "a silent server: the read fails after NBD_SET_TIMEOUT", timeout),
    Test::new(
        "teardown.disconnect_with_io",
        "NBD_DISCONNECT with a reader waiting fails that reader",
        disconnect_with_io,
    ),
    Test::new(
        "teardown.one_connection",
        "one of two connections closes: the other one goes on",
        one_connection,
    ),
    Test::new(
        "teardown.retried",
        "a read on a connection that closes is answered over the other one",
        retried,
    ),
];

fn server() -> Result<Server> {
    Ok(Server::new(Export::memory(1 << 20)?))
}

/// NBD_DO_IT must return, with `errno`, that a client may know an accident from a disconnect; from nbd.ko with 0.
fn returns(attachment: Attachment, context: &Context, errno: Errno) -> Result<()> {
    let result = attachment.ended()?;
    let want = match context.driver {
        Driver::Rnbd => Err(errno),
        Driver::Nbd => Ok(0),
    };
    ensure!(result == want, "NBD_DO_IT returned {result:?}, not {want:?}");
    Ok(())
}

fn server_closes(context: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    let read = Blocked::read(&server)?;
    server.close();
    read.fails("the server closed")?;
    returns(attachment, context, Errno::EPIPE)?;
    drop(device);
    wait_idle(0)?;
    ensure!(Device::open(0)?.file().read_at(&mut [0; 512], 0)? == 0, "a read of an idle device");
    attaches_again()
}

fn server_closes_idle(context: &Context) -> Result<()> {
    for transport in [Transport::Unix, Transport::Tcp4] {
        let server = server()?;
        let device = Device::open(0)?;
        let attachment = Setup::for_server(&server).transport(transport).attach(&device, &server)?;
        server.close();
        returns(attachment, context, Errno::EPIPE)?;
        drop(device);
        wait_idle(0)?;
    }
    attaches_again()
}

fn client_killed(_: &Context) -> Result<()> {
    let server = server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 4096])?;
    client.kill()?;
    server.wait_closed()?;
    wait_idle(0)?;
    attaches_again()
}

fn client_killed_holder(_: &Context) -> Result<()> {
    let server = server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let holder = hold_open(node(0))?;
    client.kill()?;
    attaches_again()?;
    server.wait_closed()?;
    drop(holder);
    Ok(())
}

/// A client that dies between setup and NBD_DO_IT. Returns the server's side of it.
fn dead_setter() -> Result<Server> {
    let server = server()?;
    set_up_and_die(server.connect(Transport::Unix)?)?;
    Ok(server)
}

fn setter_dies(_: &Context) -> Result<()> {
    let server = dead_setter()?;
    server.wait_closed()?;
    attaches_again()
}

fn setter_dies_holder(_: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    let server = dead_setter()?;
    attaches_again()?;
    server.wait_closed().context("the dead setter's socket")?;
    drop(holder);
    Ok(())
}

fn same_open(_: &Context) -> Result<()> {
    let device = Device::open(0)?;
    for round in 0..5u8 {
        let server = server()?;
        let setup = Setup::for_server(&server);
        let attachment = setup.attach(&device, &server).with_context(|| format!("round {round}"))?;
        round_trip(&open_direct("/dev/nbd0")?, 0, &[round; 4096])?;
        attachment.detach()?;
        server.wait_closed()?;
    }
    Ok(())
}

fn clear_sock(_: &Context) -> Result<()> {
    let server = server()?;
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    device.ioctl(req::CLEAR_SOCK, 0)?;
    println!("NBD_DO_IT returned {:?}", attachment.ended()?);
    drop(device);
    server.wait_closed()?;
    wait_idle(0)?;
    attaches_again()
}

fn setup_cleared(_: &Context) -> Result<()> {
    let server = server()?;
    let device = Device::open(0)?;
    Setup::for_server(&server).prepare(&device, &server)?;
    device.ioctl(req::CLEAR_SOCK, 0)?;
    server.wait_closed()?;
    let started = device.ioctl(req::DO_IT, 0);
    ensure!(started == Err(Errno::EINVAL), "NBD_DO_IT after NBD_CLEAR_SOCK gave {started:?}");
    attaches_again()
}

fn timeout(context: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).timeout(1).attach(&device, &server)?;
    let read = Blocked::read(&server)?;
    read.fails("the timeout")?;
    returns(attachment, context, Errno::ETIMEDOUT)?;
    drop(device);
    wait_idle(0)?;
    attaches_again()
}

fn disconnect_with_io(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    let read = Blocked::read(&server)?;
    std::thread::sleep(Duration::from_millis(50));
    attachment.detach()?;
    read.fails("NBD_DISCONNECT")?;
    drop(device);
    wait_idle(0)?;
    ensure!(capacity(0) == 0);
    attaches_again()
}

/// Reads in the first half of the export close the connection that they come on, if it is the first.
fn closes_first() -> Result<Server> {
    Ok(Server::with_behaviour(Export::memory(1 << 20)?, |request| {
        let closes = request.connection == 0 && request.command == Command::Read;
        if closes && request.offset == 65536 { Action::Close } else { Action::Serve }
    }))
}

/// Reads by as many tasks as it takes for both connections to be used: which one is the block layer's choice, by
/// CPU.
fn read_on_every_cpu() -> Result<()> {
    let mut tasks = Vec::new();
    for cpu in 0..std::thread::available_parallelism()?.get() {
        tasks.push(std::thread::spawn(move || -> Result<()> {
            let mut set = nix::sched::CpuSet::new();
            set.set(cpu)?;
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
            let data = read_direct(&open_direct("/dev/nbd0")?, 65536, 4096);
            let data = data.with_context(|| format!("a read on CPU {cpu}"))?;
            ensure!(data.iter().all(|byte| *byte == 0x42), "wrong data");
            Ok(())
        }));
    }
    for task in tasks {
        task.join().map_err(|_| anyhow::anyhow!("a task panicked"))??;
    }
    Ok(())
}

fn one_connection(_: &Context) -> Result<()> {
    let server = server()?;
    server.export().write(65536, &[0x42; 4096])?;
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        read_on_every_cpu()?;
        server.close_one(0);
        wait_for("the connection to close", || server.open_connections() == 1)?;
        server.forget();
        read_on_every_cpu()?;
        let reads = server.seen_of(Command::Read);
        ensure!(!reads.is_empty() && reads.iter().all(|read| read.connection == 1), "reads: {reads:?}");
        round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 65536])
    })
}

fn retried(_: &Context) -> Result<()> {
    let server = closes_first()?;
    server.export().write(65536, &[0x42; 4096])?;
    // nbd.ko notices at the request's timeout only.
    with_attached(&server, Setup::for_server(&server).connections(2).timeout(1), |_| {
        read_on_every_cpu()?;
        let reads = server.seen_of(Command::Read);
        let lost = reads.iter().filter(|read| read.connection == 0 && read.offset == 65536).count();
        ensure!(lost == 1, "the first connection saw {lost} of the reads: {reads:?}");
        ensure!(server.open_connections() == 1, "{} connections", server.open_connections());
        Ok(())
    })
}
