// SPDX-License-Identifier: GPL-2.0
//! Who comes while the last attachment is still ending: the server owes an answer, and has a while to give it. He waits
//! for the end rather than be refused (invariant G3), and a signal ends his wait.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::SaFlags;

use super::{Context, Test};
use crate::attach::{Setup, attaches_again, attaches_again_by};
use crate::blocked::{Blocked, silent_server, stubborn_server};
use crate::device::{Device, req, sysfs, wait_idle};
use crate::modules::Driver;
use crate::process::{Child, alarm_storm, fork_child};
use crate::server::{Export, Server, Transport};

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
