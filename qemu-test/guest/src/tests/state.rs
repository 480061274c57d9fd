// SPDX-License-Identifier: GPL-2.0
//! What a device says of its own state, without a debugger (invariant G8), in sysfs. `debugfs` and `trace` have the
//! rest.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Checks, Context, Test, ours_only};
use crate::attach::{Setup, with_attached};
use crate::device::{Device, flag, node, req, sysfs, wait_attached, wait_idle};
use crate::process::{hold_open, wait_for};
use crate::puppet::Puppet;
use crate::server::{Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new(
        "state.sysfs",
        "nbd/ tells phase, generation, owner and connections, from idle to idle",
        sysfs_of,
    )
    .quick(),
    Test::new(
        "state.incident",
        "nbd/ tells of a dead setter with a holder, and of its replacement",
        incident,
    ),
    Test::new("state.last_error", "nbd/last_error tells why the last connection died", last_error),
    Test::new("state.files", "nbd/ has one value a file, readable, and goes with the device", files),
];

/// Its files.
pub const SYSFS: [&str; 7] =
    ["state", "generation", "owner_pid", "owner_comm", "connections", "live_connections", "last_error"];
const SIZE: u64 = 1 << 20;

/// A value in `/sys/block/nbd0/nbd/`.
fn value(name: &str) -> Result<String> {
    sysfs(0, &format!("nbd/{name}")).with_context(|| format!("nbd0 has no nbd/{name}"))
}

fn number(name: &str) -> Result<u64> {
    let text = value(name)?;
    text.parse().with_context(|| format!("nbd/{name} is {text:?}"))
}

fn sysfs_of(context: &Context) -> Result<()> {
    ours_only(context)?;
    let mut checks = Checks::default();
    checks.equal("state before", value("state")?, "idle".into());
    let before = number("generation")?;
    let server = Server::new(Export::memory(SIZE)?);
    let sockets = [server.connect(Transport::Unix)?, server.connect(Transport::Unix)?];
    let fds = sockets.each_ref().map(AsRawFd::as_raw_fd);
    let mut client = Puppet::new(0, &fds)?;
    for fd in fds {
        client.ioctl(req::SET_SOCK, fd as u64)?.context("NBD_SET_SOCK")?;
    }
    drop(sockets);
    checks.equal("state in setup", value("state")?, "setup".into());
    checks.that("a setup is a new generation", number("generation")? > before);
    let generation = number("generation")?;
    let pid = client.pid().to_string();
    let owner = |checks: &mut Checks, when: &str| -> Result<()> {
        checks.equal(&format!("owner_pid {when}"), value("owner_pid")?, pid.clone());
        checks.equal(&format!("owner_comm {when}"), value("owner_comm")?, Puppet::COMM.into());
        checks.equal(&format!("connections {when}"), number("connections")?, 2);
        Ok(())
    };
    owner(&mut checks, "in setup")?;
    client.ioctl(req::SET_SIZE, SIZE)?.context("NBD_SET_SIZE")?;
    client.ioctl(req::SET_FLAGS, flag::HAS_FLAGS | flag::CAN_MULTI_CONN)?.context("NBD_SET_FLAGS")?;
    client.begin(req::DO_IT, 0)?;
    wait_attached(0)?;
    checks.equal("state attached", value("state")?, "running".into());
    owner(&mut checks, "attached")?;
    checks.equal("generation attached", number("generation")?, generation);
    checks.equal("live_connections attached", number("live_connections")?, 2);
    server.close_one(0);
    wait_for("a connection to be told dead", || number("live_connections").is_ok_and(|live| live == 1))?;
    checks.equal("connections, one being dead", number("connections")?, 2);
    Device::open(0)?.ioctl(req::DISCONNECT, 0)?;
    client.finish()?.context("NBD_DO_IT")?;
    wait_idle(0)?;
    wait_for("state to be idle", || value("state").is_ok_and(|state| state == "idle"))?;
    checks.equal("generation after", number("generation")?, generation);
    checks.equal("connections after", number("connections")?, 0);
    checks.equal("live_connections after", number("live_connections")?, 0);
    checks.that("no owner after", matches!(value("owner_pid")?.as_str(), "" | "0"));
    checks.equal("owner_comm after", value("owner_comm")?, String::new());
    checks.done()
}

/// The incident: what took a debugger to learn.
fn incident(context: &Context) -> Result<()> {
    ours_only(context)?;
    let mut checks = Checks::default();
    let holder = hold_open(node(0))?;
    let server = Server::new(Export::memory(SIZE)?);
    let socket = server.connect(Transport::Unix)?;
    let mut setter = Puppet::new(0, &[socket.as_raw_fd()])?;
    setter.set_up(socket.as_raw_fd(), SIZE)?.context("setup")?;
    drop(socket);
    let generation = number("generation")?;
    // It shares the open file: the setup can still be started, by an owner that is dead.
    let child = setter.fork()?;
    let pid = setter.pid().to_string();
    setter.kill()?;
    checks.equal("state of an orphan", value("state")?, "setup".into());
    checks.equal("its owner", value("owner_pid")?, pid);
    checks.equal("its connections", number("connections")?, 1);
    let next = Server::new(Export::memory(SIZE)?);
    with_attached(&next, Setup::for_server(&next), |_| {
        checks.equal("state after", value("state")?, "running".into());
        checks.that("the replacement is a new generation", number("generation")? > generation);
        checks.equal("its owner", value("owner_pid")?, std::process::id().to_string());
        Ok(())
    })?;
    drop((child, holder));
    checks.done()
}

fn last_error(context: &Context) -> Result<()> {
    ours_only(context)?;
    let mut told = Vec::new();
    type Way = fn(&Server) -> Result<()>;
    let ways: [(&str, Way); 3] = [
        ("the server closes", |server| {
            server.close();
            Ok(())
        }),
        ("the server resets", Server::reset),
        ("no reply", |server| server.blurt(&[0xff; 64])),
    ];
    for (what, way) in ways {
        let server = Server::new(Export::memory(SIZE)?);
        let device = Device::open(0)?;
        let setup = Setup::for_server(&server).transport(Transport::Tcp4);
        let attachment = setup.attach(&device, &server)?;
        way(&server)?;
        println!("{what}: NBD_DO_IT returned {:?}", attachment.ended()?);
        drop(device);
        wait_idle(0)?;
        let error = value("last_error")?;
        println!("{what}: {error}");
        ensure!(!error.is_empty(), "{what}: last_error is empty");
        told.push(error);
    }
    ensure!(told[0] != told[2] && told[1] != told[2], "different ends are told alike: {told:?}");
    Ok(())
}

fn files(context: &Context) -> Result<()> {
    ours_only(context)?;
    let dir = Path::new("/sys/block/nbd0/nbd");
    let mut checks = Checks::default();
    for name in SYSFS {
        let path = dir.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        checks.that(&format!("{name} is one line: {text:?}"), text.lines().count() <= 1);
        checks.that(&format!("{name} ends its line: {text:?}"), text.is_empty() || text.ends_with('\n'));
        let mode = fs::metadata(&path)?.permissions();
        checks.that(&format!("{name} cannot be written"), mode.readonly());
    }
    checks.done()
}
