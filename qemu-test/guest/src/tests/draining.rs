// SPDX-License-Identifier: GPL-2.0
//! Who comes while the last attachment is still ending: the server owes an answer, and has a while to give it. He waits
//! for the end rather than be refused (invariant G3), and a signal ends his wait.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::SaFlags;

use super::{Context, Test};
use crate::attach::{Setup, attaches_again, attaches_again_by};
use crate::blocked::{Blocked, silent_server, stubborn_server};
use crate::device::{Device, open_direct, read_direct, req, sysfs, wait_idle};
use crate::modules::Driver;
use crate::process::{Child, alarm_storm, fork_child, wait_for};
use crate::server::{Command, Export, Peer, Request, Server, Transport};

const BUSY_ON_NBD: &str = "EBUSY, until the last one is gone";

pub const TESTS: &[Test] = &[
    Test::new("draining.attach", "who attaches while the last attachment ends waits, and attaches", attach)
        .known_on_nbd(BUSY_ON_NBD),
    Test::new("draining.signal", "a signal ends that wait with EINTR, for each ioctl that waits", signal)
        .known_on_nbd(BUSY_ON_NBD),
    Test::new(
        "draining.clear_restarts_nothing",
        "a signal ends NBD_CLEAR_SOCK's wait with EINTR, also where calls are restarted",
        clear_restarts_nothing,
    )
    .known_on_nbd("it does not wait"),
    Test::new(
        "draining.answers",
        "after NBD_DISCONNECT a server that answers one by one may go on, though that takes a while",
        answers,
    )
    // No partition scan: its reads would have to be answered for the device to be opened.
    .params("nbds_max=2 max_part=0")
    .known_on_nbd("the sockets are shut down at once"),
    Test::new("draining.dribble", "but not for ever, whatever it sends", dribble)
        .params("nbds_max=2 max_part=0"),
];

/// An attachment that ends, and what it waits for.
struct Draining {
    server: Server,
    client: Child,
    reader: Blocked,
}

impl Draining {
    fn new(context: &Context) -> Result<Draining> {
        let server = stubborn_server()?;
        let client = Setup::for_server(&server).attach_in_child(0, &server)?;
        let reader = Blocked::read(&server)?;
        Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
        if context.driver == Driver::Rnbd {
            let state = sysfs(0, "nbd/state");
            ensure!(state.as_deref() == Some("draining"), "after NBD_DISCONNECT the state is {state:?}");
        }
        Ok(Draining { server, client, reader })
    }

    /// It has come to its end by itself.
    fn ended(mut self) -> Result<()> {
        self.reader.fails("NBD_DISCONNECT")?;
        println!("the client ended as {:?}", self.client.wait()?);
        self.server.wait_closed()
    }
}

fn attach(context: &Context) -> Result<()> {
    let device = Device::open(0)?;
    let draining = Draining::new(context)?;
    attaches_again_by(&device)?;
    draining.ended()
}

fn signal(context: &Context) -> Result<()> {
    let next = Server::new(Export::memory(1 << 20)?);
    let socket = next.connect(Transport::Unix)?;
    let fd = socket.as_raw_fd();
    let draining = Draining::new(context)?;
    let mut child = fork_child(&[fd], move |_| {
        let device = Device::open(0)?;
        alarm_storm(5_000, SaFlags::empty())?;
        for (name, cmd, arg) in [
            ("NBD_SET_SOCK", req::SET_SOCK, fd as u64),
            ("NBD_SET_SIZE", req::SET_SIZE, 4096),
            ("NBD_DO_IT", req::DO_IT, 0),
        ] {
            let given = device.ioctl(cmd, arg);
            ensure!(given == Err(Errno::EINTR), "{name} gave {given:?}");
        }
        Ok(())
    })?;
    child.success()?;
    draining.ended()?;
    drop(socket);
    let device = Device::open(0)?;
    attaches_again_by(&device).context("after that")
}

/// Begun again, the call could end the next attachment.
fn clear_restarts_nothing(_: &Context) -> Result<()> {
    // The wait is short: a signal may miss it.
    for round in 1..=20 {
        let server = silent_server()?;
        let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
        let reader = Blocked::read(&server)?;
        let mut clearer = fork_child(&[], |ready| {
            let device = Device::open(0)?;
            alarm_storm(1_000, SaFlags::SA_RESTART)?;
            let given = device.ioctl(req::CLEAR_SOCK, 0);
            ready.tell(if given == Err(Errno::EINTR) { "EINTR" } else { "another" })
        })?;
        let said = clearer.next_line()?;
        clearer.success()?;
        reader.fails("NBD_CLEAR_SOCK")?;
        client.wait()?;
        server.wait_closed()?;
        wait_idle(0)?;
        if said == "EINTR" {
            println!("in round {round}");
            return attaches_again();
        }
    }
    bail!("no call of 20 gave EINTR")
}

/// A server that does nothing before it is told that nothing more comes, and then as `then` says with each request.
fn late_server(
    then: impl Fn(&mut Peer<'_>, &Request) -> std::io::Result<()> + Send + Sync + 'static,
) -> Result<Server> {
    Server::scripted(1 << 20, move |peer| {
        let mut owed = Vec::new();
        while let Some(request) = peer.request()? {
            if request.command == Command::Disconnect {
                for request in &owed {
                    then(peer, request)?;
                }
            } else {
                owed.push(request);
            }
        }
        Ok(())
    })
}

/// Direct reads of different places, all under way when this returns.
fn readers(server: &Server, count: u64) -> Result<Vec<JoinHandle<std::io::Result<()>>>> {
    let direct = Arc::new(open_direct("/dev/nbd0")?);
    let start = |place: u64| {
        let direct = direct.clone();
        std::thread::spawn(move || read_direct(&direct, place << 14, 4096).map(drop))
    };
    let readers = (0..count).map(start).collect();
    wait_for("the server to have all reads", || server.seen_of(Command::Read).len() as u64 == count)?;
    Ok(readers)
}

fn disconnected_with(server: &Server, reads: u64) -> Result<Vec<std::io::Result<()>>> {
    let mut client = Setup::for_server(server).attach_in_child(0, server)?;
    let readers = readers(server, reads)?;
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    println!("the client ended as {:?}", client.wait()?);
    wait_for("the reads to end", || readers.iter().all(JoinHandle::is_finished))?;
    server.wait_closed()?;
    wait_idle(0)?;
    readers.into_iter().map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))).collect()
}

fn answers(_: &Context) -> Result<()> {
    let server = late_server(|peer, request| {
        // All of them take longer than any silence may.
        std::thread::sleep(Duration::from_millis(80));
        peer.serve(request)
    })?;
    for (place, read) in disconnected_with(&server, 16)?.into_iter().enumerate() {
        read.with_context(|| format!("read {place}"))?;
    }
    // And so do the pieces of one.
    let server = late_server(|peer, request| {
        for piece in peer.reply(request)?.chunks(256) {
            std::thread::sleep(Duration::from_millis(80));
            peer.send(piece)?;
        }
        Ok(())
    })?;
    for read in disconnected_with(&server, 1)? {
        read.context("a reply in pieces")?;
    }
    attaches_again()
}

fn dribble(_: &Context) -> Result<()> {
    let server = late_server(|peer, request| {
        for byte in peer.reply(request)? {
            std::thread::sleep(Duration::from_millis(100));
            peer.send(&[byte])?;
        }
        Ok(())
    })?;
    let reads = disconnected_with(&server, 1)?;
    ensure!(reads.iter().all(Result::is_err), "a reply of seven minutes was waited for");
    attaches_again()
}
