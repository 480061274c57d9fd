// SPDX-License-Identifier: GPL-2.0
//! Whose setup it is: owners that live are protected, owners that are dead are in nobody's way, and two setups
//! never mix (invariants G1 and G2).

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::teardown::EBUSY_FOR_EVER;
use super::{Checks, Context, Test, skip};
use crate::attach::{attaches_again, set_up_and_die};
use crate::device::{
    Device, attached, capacity, flag, node, open_direct, req, round_trip, wait_attached, wait_idle,
};
use crate::kmsg::Log;
use crate::process::{hold_open, wait_for};
use crate::puppet::{Answer, Puppet};
use crate::server::{Command, Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new(
        "own.dead_setters",
        "1,000 clients die in setup, with a holder: no socket stays held, and the next one attaches",
        dead_setters,
    )
    .incident()
    .limit(240)
    .known_on_nbd(EBUSY_FOR_EVER),
    Test::new("own.fork", "a client forks after setup and ends: its child's NBD_DO_IT runs it", |_| {
        fork_then_start(true)
    })
    .incident(),
    Test::new("own.fork_parent_lives", "the same while the parent has not ended yet", |_| {
        fork_then_start(false)
    })
    .incident(),
    Test::new(
        "own.fork_contender",
        "another client comes into the gap between: its setup does not mix with the first one's",
        fork_contender,
    )
    .incident()
    .quick()
    .known_on_nbd("EBUSY for ever: the setup's owner is a task that is dead"),
    Test::new(
        "own.contender",
        "while an owner lives, others get EBUSY, and the log names the owner",
        contender,
    )
    .quick()
    .known_on_nbd("others may change size and flags, and the log does not say who the owner is"),
    Test::new(
        "own.contender_started",
        "a contender cannot start what a living owner has set up",
        not_started,
    )
    .known_on_nbd("anybody's NBD_DO_IT starts it"),
    Test::new("own.threads", "the threads of a process set up together", threads)
        .known_on_nbd("the owner is a thread: sockets of another one get EBUSY"),
    Test::new("own.leader_gone", "a process whose first thread has ended is still the owner", leader_gone)
        .known_on_nbd("the owner is a thread: the others of the process get EBUSY"),
    Test::new(
        "own.pid_reused",
        "a process that gets a dead owner's number does not get its setup",
        pid_reused,
    )
    .known_on_nbd("EBUSY for ever: the setup's owner is a task that is dead"),
];

const SIZE: u64 = 1 << 20;
const BUSY: Answer = Err(Errno::EBUSY);

/// Sets one socket and a size, and dies. The peer's end of the socket is returned.
fn dead_setter(listener: Option<&TcpListener>) -> Result<OwnedFd> {
    let (ours, theirs): (OwnedFd, OwnedFd) = match listener {
        Some(listener) => {
            let ours = TcpStream::connect(listener.local_addr()?)?;
            (ours.into(), listener.accept()?.0.into())
        }
        None => {
            let (ours, theirs) = UnixStream::pair()?;
            (ours.into(), theirs.into())
        }
    };
    set_up_and_die(ours)?;
    Ok(theirs)
}

/// True when a socket's peer is gone: its end of file, or its reset, has come.
fn peer_gone(socket: &mut UnixStream) -> bool {
    match socket.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

fn dead_setters(context: &Context) -> Result<()> {
    let holder = hold_open(node(0))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut peers = Vec::new();
    let count = context.rounds(1000, 20);
    for number in 0..count {
        let peer = dead_setter((number % 2 == 1).then_some(&listener))?;
        // read() is all that is asked of it, so that the type does not matter.
        let peer = UnixStream::from(peer);
        peer.set_nonblocking(true)?;
        peers.push(peer);
    }
    let mut held = count;
    let released = wait_for("the dead setters' sockets to be released", || {
        held = peers.iter_mut().map(|peer| usize::from(!peer_gone(peer))).sum();
        held == 0
    });
    let attached = attaches_again();
    drop(holder);
    released.with_context(|| format!("{held} sockets of {count} dead setters are held"))?;
    attached
}

/// A server of a memory export, and one connection to it.
fn server_with_socket() -> Result<(Server, OwnedFd)> {
    let server = Server::new(Export::memory(SIZE)?);
    let socket = server.connect(Transport::Unix)?;
    Ok((server, socket))
}

fn must(what: &str, answer: Answer) -> Result<()> {
    answer.map(drop).with_context(|| what.to_owned())
}

/// What is written arrives at this server.
fn serves_from(server: &Server, byte: u8) -> Result<()> {
    round_trip(&open_direct("/dev/nbd0")?, 8192, &[byte; 4096])?;
    ensure!(server.export().read(8192, 4096)? == vec![byte; 4096], "the data are on another server");
    Ok(())
}

/// NBD_DISCONNECT by somebody else than the client, which then ends.
fn disconnect(mut client: Puppet, server: &Server) -> Result<()> {
    Device::open(0)?.ioctl(req::DISCONNECT, 0).context("NBD_DISCONNECT")?;
    must("NBD_DO_IT after NBD_DISCONNECT", client.finish()?)?;
    client.kill()?;
    server.wait_closed()
}

fn fork_then_start(parent_ends: bool) -> Result<()> {
    let (server, socket) = server_with_socket()?;
    let mut parent = Puppet::new(0, &[socket.as_raw_fd()])?;
    must("setup", parent.set_up(socket.as_raw_fd(), SIZE)?)?;
    let mut child = parent.fork()?;
    let kept = if parent_ends {
        parent.kill()?;
        None
    } else {
        Some(parent)
    };
    drop(socket);
    child.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    serves_from(&server, 0x17)?;
    disconnect(child, &server)?;
    drop(kept);
    wait_idle(0)?;
    attaches_again()
}

fn fork_contender(_: &Context) -> Result<()> {
    let (first, first_socket) = server_with_socket()?;
    let (second, second_socket) = server_with_socket()?;
    let mut parent = Puppet::new(0, &[first_socket.as_raw_fd()])?;
    must("the first setup", parent.set_up(first_socket.as_raw_fd(), SIZE)?)?;
    let flags = flag::HAS_FLAGS | flag::READ_ONLY;
    must("its flags", parent.ioctl(req::SET_FLAGS, flags)?)?;
    let mut child = parent.fork()?;
    parent.kill()?;
    drop(first_socket);

    let mut contender = Puppet::new(0, &[second_socket.as_raw_fd()])?;
    let size = SIZE / 2;
    must("the contender's setup", contender.set_up(second_socket.as_raw_fd(), size)?)?;
    drop(second_socket);
    first.wait_closed().context("the first setup's socket")?;
    let started = child.ioctl(req::DO_IT, 0)?;
    ensure!(started == BUSY, "the child's NBD_DO_IT of the contender's setup gave {started:?}");
    contender.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    let mut checks = Checks::default();
    checks.equal("capacity", capacity(0), size);
    checks.that("the first setup's read-only flag is gone", !Device::open(0)?.read_only()?);
    checks.equal("requests that the first server saw", first.seen().len(), 0);
    checks.done()?;
    serves_from(&second, 0x2a)?;
    disconnect(contender, &second)?;
    drop(child);
    attaches_again()
}

fn contender(_: &Context) -> Result<()> {
    let (server, socket) = server_with_socket()?;
    let (other, other_socket) = server_with_socket()?;
    let mut owner = Puppet::new(0, &[socket.as_raw_fd()])?;
    must("setup", owner.set_up(socket.as_raw_fd(), SIZE)?)?;
    let mut contender = Puppet::new(0, &[other_socket.as_raw_fd()])?;
    let mut log = Log::from_now()?;
    let mut checks = Checks::default();
    for (name, cmd, arg) in [
        ("NBD_SET_SOCK", req::SET_SOCK, other_socket.as_raw_fd() as u64),
        ("NBD_SET_SIZE", req::SET_SIZE, 4096),
        ("NBD_SET_SIZE_BLOCKS", req::SET_SIZE_BLOCKS, 8),
        ("NBD_SET_BLKSIZE", req::SET_BLKSIZE, 4096),
        ("NBD_SET_FLAGS", req::SET_FLAGS, flag::HAS_FLAGS | flag::READ_ONLY),
        ("NBD_SET_TIMEOUT", req::SET_TIMEOUT, 7),
    ] {
        checks.equal(&format!("a contender's {name}"), contender.ioctl(cmd, arg)?, BUSY);
    }
    let lines = log.lines();
    let pid = owner.pid().to_string();
    let names = |line: &&String| {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric());
        line.contains("nbd0") && words.any(|word| word == pid) && line.contains(Puppet::COMM)
    };
    match lines.iter().find(names) {
        Some(line) => println!("{line}"),
        None => checks.that(&format!("a line names owner {pid} (puppet): {lines:?}"), false),
    }
    // However often it tries, the log stays readable.
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        checks.equal("a contender's NBD_SET_SIZE", contender.ioctl(req::SET_SIZE, 4096)?, BUSY);
    }
    let told = log.lines().iter().filter(|line| line.contains("nbd0")).count();
    checks.that(&format!("{told} lines for {TRIES} refusals"), told < TRIES / 2);
    drop((socket, other_socket));
    owner.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    checks.equal("capacity", capacity(0), SIZE);
    checks.that("the contender's read-only flag did nothing", !Device::open(0)?.read_only()?);
    checks.equal("block size", Device::open(0)?.block_size()?, 512);
    checks.done()?;
    serves_from(&server, 0x33)?;
    ensure!(other.seen().is_empty(), "the contender's server was asked something");
    disconnect(owner, &server)
}

fn not_started(_: &Context) -> Result<()> {
    let (server, socket) = server_with_socket()?;
    let mut owner = Puppet::new(0, &[socket.as_raw_fd()])?;
    must("setup", owner.set_up(socket.as_raw_fd(), SIZE)?)?;
    drop(socket);
    let mut contender = Puppet::new(0, &[])?;
    contender.begin(req::DO_IT, 0)?;
    // Asked for is an answer at once; what nbd.ko does instead is to attach.
    wait_for("an answer", || attached(0) || contender.has_answered().unwrap_or(true))?;
    ensure!(!attached(0), "the contender's NBD_DO_IT attached what the owner set up");
    let started = contender.finish()?;
    ensure!(started == BUSY, "the contender's NBD_DO_IT gave {started:?}");
    owner.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    serves_from(&server, 0x44)?;
    disconnect(owner, &server)
}

fn threads(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let sockets = [server.connect(Transport::Unix)?, server.connect(Transport::Unix)?];
    let fds = sockets.each_ref().map(AsRawFd::as_raw_fd);
    let mut client = Puppet::new(0, &fds)?;
    must("a thread's NBD_SET_SOCK", client.ioctl_in_thread(req::SET_SOCK, fds[0] as u64)?)?;
    must("another one's NBD_SET_SOCK", client.ioctl_in_thread(req::SET_SOCK, fds[1] as u64)?)?;
    must("the first one's NBD_SET_SIZE", client.ioctl(req::SET_SIZE, SIZE)?)?;
    let flags = flag::HAS_FLAGS | flag::CAN_MULTI_CONN;
    must("a third one's NBD_SET_FLAGS", client.ioctl_in_thread(req::SET_FLAGS, flags)?)?;
    drop(sockets);
    client.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    ensure!(server.open_connections() == 2, "{} connections", server.open_connections());
    serves_from(&server, 0x55)?;
    disconnect(client, &server)
}

fn leader_gone(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    let sockets = [server.connect(Transport::Unix)?, server.connect(Transport::Unix)?];
    let fds = sockets.each_ref().map(AsRawFd::as_raw_fd);
    let (_other, other_socket) = server_with_socket()?;
    let mut owner = Puppet::new(0, &fds)?;
    must("the first thread's setup", owner.set_up(fds[0], SIZE)?)?;
    owner.lose_leader()?;
    let mut contender = Puppet::new(0, &[other_socket.as_raw_fd()])?;
    let refused = contender.ioctl(req::SET_SOCK, other_socket.as_raw_fd() as u64)?;
    ensure!(refused == BUSY, "a contender's NBD_SET_SOCK gave {refused:?}");
    must("the next thread's NBD_SET_SOCK", owner.ioctl(req::SET_SOCK, fds[1] as u64)?)?;
    must("its NBD_SET_FLAGS", owner.ioctl(req::SET_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN)?)?;
    drop(sockets);
    owner.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    serves_from(&server, 0x66)?;
    disconnect(owner, &server)
}

/// A process with this number, or None when the kernel cannot be made to give it.
fn puppet_with_pid(pid: i32, socket: &OwnedFd) -> Result<Option<Puppet>> {
    const NEXT: &str = "/proc/sys/kernel/ns_last_pid";
    for _ in 0..50 {
        if std::fs::write(NEXT, (pid - 1).to_string()).is_err() {
            return Ok(None);
        }
        let puppet = Puppet::new(0, &[socket.as_raw_fd()])?;
        if puppet.pid() == pid {
            return Ok(Some(puppet));
        }
    }
    Ok(None)
}

fn pid_reused(_: &Context) -> Result<()> {
    let (first, first_socket) = server_with_socket()?;
    let (second, second_socket) = server_with_socket()?;
    let mut parent = Puppet::new(0, &[first_socket.as_raw_fd()])?;
    must("the first setup", parent.set_up(first_socket.as_raw_fd(), SIZE)?)?;
    let pid = parent.pid();
    // It shares the open file, so that the parent's death closes nothing.
    let child = parent.fork()?;
    parent.kill()?;
    drop(first_socket);
    let Some(mut heir) = puppet_with_pid(pid, &second_socket)? else {
        return skip("the kernel does not let one choose a process's number");
    };
    must("setup by the next process of that number", heir.set_up(second_socket.as_raw_fd(), SIZE)?)?;
    drop(second_socket);
    first.wait_closed().context("the dead owner's socket")?;
    heir.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    serves_from(&second, 0x77)?;
    ensure!(first.seen_of(Command::Write).is_empty(), "the first server got data");
    disconnect(heir, &second)?;
    drop(child);
    attaches_again()
}
