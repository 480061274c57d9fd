// SPDX-License-Identifier: GPL-2.0
//! Every way a generation can end, and what is the same after each: peers see the end, whoever waited has an
//! error, the capacity is gone, and the device can be set up again at once (invariants G1, G3, G5).

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, Signal, kill};
use nix::unistd::Pid;

use super::{Context, Test};
use crate::attach::{Setup, attaches_again, attaches_again_by};
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, diskseq, node, req, wait_attached, wait_idle};
use crate::mapping::Mapping;
use crate::process::{Child, fork_child, handle, hold_open};
use crate::puppet::Puppet;
use crate::server::{Export, Server, Transport};
use crate::uevent::Uevents;

const HANGS_ON_NBD: &str =
    "requests on a dead socket are found by the time-out alone: their tasks hang for 30 s";
const STAYS_ON_NBD: &str = "capacity or disk sequence stay for as long as there are openers, and then EBUSY";
const HELD_ON_NBD: &str = "the dead client's socket is held as long as there are openers";

pub const TESTS: &[Test] = &[
    Test::new("end.disconnect", "NBD_DISCONNECT ends a running device wholly", |_| running(Way::Disconnect))
        .quick()
        .known_on_nbd(HANGS_ON_NBD),
    Test::new("end.clear_sock", "NBD_CLEAR_SOCK ends a running device wholly", |_| running(Way::ClearSock))
        .known_on_nbd(STAYS_ON_NBD),
    Test::new("end.server_closes", "the server's close ends it wholly", |_| running(Way::Close))
        .known_on_nbd(HANGS_ON_NBD),
    Test::new("end.server_resets", "the server's TCP reset ends it wholly", |_| running(Way::Reset))
        .known_on_nbd(HANGS_ON_NBD),
    Test::new("end.violation", "bytes that are no reply end it wholly", |_| running(Way::Violation))
        .known_on_nbd(HANGS_ON_NBD),
    Test::new("end.timeout", "requests that time out on every connection end it wholly", |_| {
        running(Way::Timeout)
    })
    .known_on_nbd(STAYS_ON_NBD),
    Test::new("end.client_killed", "SIGKILL of the client in NBD_DO_IT ends it wholly", |_| {
        running(Way::Kill)
    })
    .known_on_nbd(STAYS_ON_NBD),
    Test::new(
        "end.interrupted",
        "a signal to the client in NBD_DO_IT ends it wholly: EINTR, also where calls are restarted",
        interrupted,
    )
    .known_on_nbd("the call is restarted, and fails otherwise"),
    Test::new(
        "end.setup_killed",
        "SIGKILL of a client in setup releases its sockets at once, with a holder",
        setup_killed,
    )
    .known_on_nbd(HELD_ON_NBD),
    Test::new(
        "end.setup_killed_forked",
        "SIGKILL of a client that has forked, and of its child before NBD_DO_IT, with a holder",
        setup_killed_forked,
    )
    .known_on_nbd(HELD_ON_NBD),
    Test::new("end.setup_closed", "the last close of a device in setup releases its sockets", setup_closed),
    Test::new(
        "end.setup_disconnected",
        "NBD_DISCONNECT or NBD_CLEAR_SOCK by anyone ends a setup",
        setup_disconnected,
    )
    .known_on_nbd("it does not end the setup: NBD_DO_IT starts it, and returns at once"),
];

/// A way to end a running generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Disconnect,
    ClearSock,
    Close,
    Reset,
    Violation,
    Timeout,
    Kill,
}

impl Way {
    fn take(self, device: &Device, server: &Server, client: &mut Child) -> Result<()> {
        match self {
            Way::Disconnect => device.ioctl(req::DISCONNECT, 0).map(drop).context("NBD_DISCONNECT"),
            Way::ClearSock => device.ioctl(req::CLEAR_SOCK, 0).map(drop).context("NBD_CLEAR_SOCK"),
            Way::Close => {
                server.close();
                Ok(())
            }
            Way::Reset => server.reset(),
            Way::Violation => server.blurt(&[0xff; 64]),
            // NBD_SET_TIMEOUT was part of the setup.
            Way::Timeout => Ok(()),
            Way::Kill => client.kill(),
        }
    }
}

const OLD: [u8; 4096] = [0xa1; 4096];
const NEW: [u8; 4096] = [0xb2; 4096];

fn running(way: Way) -> Result<()> {
    let holder = hold_open(node(0))?;
    // An opener that has read through the page cache, and the open file that the client uses.
    let (opener, shared) = (Device::open(0)?, Device::open(0)?);
    let server = silent_server()?;
    server.export().write(0, &OLD)?;
    let mut setup = Setup::for_server(&server).transport(Transport::Tcp4).connections(2);
    if way == Way::Timeout {
        setup = setup.timeout(1);
    }
    let mut client = setup.attach_in_child_on(&shared, &server)?;
    let mut data = [0; 4096];
    opener.file().read_exact_at(&mut data, 0)?;
    let mapped = Mapping::new(opener.file(), OLD.len())?;
    ensure!(data == OLD && mapped.read(0, OLD.len())? == OLD, "wrong data before the end");
    let (read, write) = (Blocked::read(&server)?, Blocked::write(&server)?);
    let sequence = diskseq(0)?;
    let events = Uevents::listen()?;

    way.take(&shared, &server, &mut client)?;
    let why = format!("{way:?}");
    read.fails(&why)?;
    write.fails(&why)?;
    println!("the client ended as {:?}", client.wait()?);
    // Whoever has seen the client end may rely on all the rest.
    ensure!(diskseq(0)? > sequence, "the disk sequence is {sequence} still");
    server.wait_closed()?;
    wait_idle(0)?;
    events.wait("change", "/block/nbd0").context("at the end")?;
    let read = opener.file().read_at(&mut data, 0);
    ensure!(read.as_ref().ok() == Some(&0), "an old opener's read gave {read:?}");

    let fresh = Device::open(0)?;
    for (what, device) in [("the same open file", &shared), ("another open file", &fresh)] {
        serves_new(device, &opener, &mapped)
            .with_context(|| format!("attached again by {what}, after {why}"))?;
    }
    drop(holder);
    Ok(())
}

/// Attaches a new server, by an open file that may be older: who opens it now sees its data, and `opener` and its mapping,
/// which are of the last one, never do.
fn serves_new(device: &Device, opener: &Device, mapped: &Mapping) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    server.export().write(0, &NEW)?;
    let attachment = Setup::for_server(&server).attach(device, &server)?;
    let (mut data, mut old) = ([0; 4096], [0; 4096]);
    Device::open(0)?.file().read_exact_at(&mut data, 0)?;
    let read = opener.file().read_exact_at(&mut old, 0);
    let seen = mapped.read(0, OLD.len());
    attachment.detach()?;
    println!("a read by an old open: {read:?}; a look at an old mapping: {:?}", seen.as_ref().map(Vec::len));
    ensure!(data == NEW, "{:#x} is read, of other data", data[0]);
    ensure!(old != NEW, "an old open reads the new server's data");
    ensure!(
        seen.is_err() || seen.is_ok_and(|seen| seen != NEW),
        "an old mapping shows the new server's data"
    );
    server.wait_closed()
}

/// A process that handles SIGUSR1, attaches the device, tells what NBD_DO_IT returned, and goes on with `then`.
pub fn handling_client(server: &Server, then: impl FnOnce(&Device) -> Result<()>) -> Result<Child> {
    let socket = server.connect(Transport::Unix)?;
    let fd = socket.as_raw_fd();
    let client = fork_child(&[fd], move |ready| {
        handle(Signal::SIGUSR1, SaFlags::SA_RESTART)?;
        let device = Device::open(0)?;
        device.ioctl(req::SET_SOCK, fd as u64)?;
        nix::unistd::close(fd)?;
        device.ioctl(req::SET_SIZE, 1 << 20)?;
        let ran = device.ioctl(req::DO_IT, 0);
        ready.tell(&format!("{ran:?}"))?;
        then(&device)
    })?;
    drop(socket);
    wait_attached(0)?;
    Ok(client)
}

fn interrupted(_: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    let server = silent_server()?;
    let mut client = handling_client(&server, |_| Ok(()))?;
    let read = Blocked::read(&server)?;
    kill(Pid::from_raw(client.pid()), Signal::SIGUSR1)?;
    read.fails("a signal")?;
    client.expect_line("Err(EINTR)")?;
    client.success()?;
    server.wait_closed()?;
    wait_idle(0)?;
    drop(holder);
    attaches_again()
}

/// A process that has set up, for a server.
fn client_in_setup() -> Result<(Puppet, Server)> {
    let server = Server::new(Export::memory(1 << 20)?);
    let socket = server.connect(Transport::Tcp4)?;
    let mut client = Puppet::new(0, &[socket.as_raw_fd()])?;
    client.set_up(socket.as_raw_fd(), 1 << 20)?.context("setup")?;
    Ok((client, server))
}

fn setup_killed(_: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    let (client, server) = client_in_setup()?;
    client.kill()?;
    server.wait_closed()?;
    attaches_again()?;
    drop(holder);
    Ok(())
}

fn setup_killed_forked(_: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    let (mut client, server) = client_in_setup()?;
    let child = client.fork()?;
    client.kill()?;
    // It could have started what its parent set up.
    ensure!(server.open_connections() == 1, "the setup is gone while a process can still start it");
    child.kill()?;
    // Nobody can tell that the child was the last who shared the open file: the next setup takes the orphan's place.
    attaches_again()?;
    server.wait_closed()?;
    drop(holder);
    Ok(())
}

fn setup_closed(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let device = Device::open(0)?;
    Setup::for_server(&server).prepare(&device, &server)?;
    drop(device);
    server.wait_closed()?;
    let started = Device::open(0)?.ioctl(req::DO_IT, 0);
    ensure!(started == Err(Errno::EINVAL), "NBD_DO_IT of a setup that was closed gave {started:?}");
    attaches_again()
}

fn setup_disconnected(_: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    for (name, cmd) in [("NBD_DISCONNECT", req::DISCONNECT), ("NBD_CLEAR_SOCK", req::CLEAR_SOCK)] {
        for by_owner in [true, false] {
            let what = format!("{name}, by the owner: {by_owner}");
            let (mut client, server) = client_in_setup()?;
            let other = Device::open(0)?;
            let ended = if by_owner { client.ioctl(cmd, 0)? } else { other.ioctl(cmd, 0) };
            ensure!(ended == Ok(0), "{what}: {ended:?}");
            server.wait_closed().with_context(|| what.clone())?;
            let started = client.ioctl(req::DO_IT, 0)?;
            ensure!(started == Err(Errno::EINVAL), "NBD_DO_IT after {what} gave {started:?}");
            if by_owner {
                // What it has said of sizes may stand, and then it still is the owner.
                client.kill()?;
                attaches_again_by(&other).with_context(|| what.clone())?;
            } else {
                attaches_again_by(&other).with_context(|| what.clone())?;
                client.kill()?;
            }
            // As clients do at their end; it hits nobody else's setup.
            other.ioctl(req::CLEAR_SOCK, 0)?;
        }
    }
    drop(holder);
    Ok(())
}
