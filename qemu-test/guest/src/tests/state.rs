// SPDX-License-Identifier: GPL-2.0
//! What a device says of its own state, without a debugger (invariant G8): sysfs, debugfs, tracepoints.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Checks, Context, Test, skip};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, flag, node, open_direct, req, round_trip, sysfs, wait_attached, wait_idle};
use crate::modules::Driver;
use crate::process::{fork_child, hold_open, wait_for};
use crate::puppet::Puppet;
use crate::server::{Command, Export, Server, Transport};

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
    Test::new("state.connections", "debugfs has a table of connections, living and dead", connections),
    Test::new("state.requests", "debugfs has a table of the requests that wait", requests),
    Test::new("state.debugfs", "debugfs has nbd.ko's files, while attached", debugfs),
    Test::new("state.readers", "reading all of it while devices come and go", readers).limit(90),
    Test::new("state.tracepoints", "a request leaves its four marks, by nbd.ko's names", tracepoints),
    Test::new("state.trace_phases", "phases and the death of connections leave marks", trace_phases),
];

const SYSFS: [&str; 7] =
    ["state", "generation", "owner_pid", "owner_comm", "connections", "live_connections", "last_error"];
const SIZE: u64 = 1 << 20;

/// nbd.ko has none of this.
fn ours_only(context: &Context) -> Result<()> {
    if context.driver == Driver::Nbd {
        return skip("nbd.ko does not show it");
    }
    Ok(())
}

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

/// nbd.ko's directory of a device in debugfs.
fn debug_dir() -> Result<PathBuf> {
    if !Path::new("/sys/kernel/debug/block").exists() {
        return skip("there is no debugfs");
    }
    Ok(PathBuf::from("/sys/kernel/debug/nbd/nbd0"))
}

fn debug_file(name: &str) -> Result<String> {
    let path = debug_dir()?.join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn columns(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn connections(context: &Context) -> Result<()> {
    ours_only(context)?;
    const COLUMNS: [&str; 12] = [
        "index", "family", "local", "peer", "state", "reason", "since", "epoch", "owner", "inflight", "sent",
        "received",
    ];
    let server = silent_server()?;
    let device = Device::open(0)?;
    let setup = Setup::for_server(&server).connections(3).transport(Transport::Tcp4);
    let attachment = setup.attach(&device, &server)?;
    round_trip(&open_direct("/dev/nbd0")?, 0, &[1; 4096])?;
    let read = Blocked::read(&server)?;
    let mut checks = Checks::default();
    let table = debug_file("connections")?;
    println!("{table}");
    let mut lines = table.lines();
    let header = columns(lines.next().unwrap_or_default());
    for column in COLUMNS {
        // A unit may follow: since_ms.
        let there = header.iter().any(|name| name.starts_with(column));
        checks.that(&format!("there is a column {column}"), there);
    }
    checks.equal("rows", lines.clone().count(), 3);
    checks.that("every row has a peer of the loopback", lines.all(|line| line.contains("127.0.0.1")));
    // One without requests, so that what dies is only the connection.
    let busy = server.seen_of(Command::Read).last().map_or(0, |read| read.connection);
    server.close_one((busy + 1) % 3);
    wait_for("a row to tell of the death", || {
        debug_file("connections").is_ok_and(|table| table.contains("dead"))
    })?;
    println!("{}", debug_file("connections")?);
    checks.that("the reader still waits", read.waits());
    attachment.detach()?;
    read.fails("NBD_DISCONNECT")?;
    checks.done()
}

fn requests(context: &Context) -> Result<()> {
    ours_only(context)?;
    for round in 0..context.rounds(20, 2) {
        let server = silent_server()?;
        let device = Device::open(0)?;
        let attachment = Setup::for_server(&server).attach(&device, &server)?;
        let (read, write) = (Blocked::read(&server)?, Blocked::write(&server)?);
        let tables: Result<Vec<String>> = (0..20).map(|_| debug_file("requests")).collect();
        attachment.detach()?;
        read.fails("NBD_DISCONNECT")?;
        write.fails("NBD_DISCONNECT")?;
        drop(device);
        wait_idle(0)?;
        for table in tables? {
            tells_of_both(&table).with_context(|| format!("round {round}:\n{table}"))?;
        }
    }
    Ok(())
}

/// A read of sector 128 and a write of sector 136 wait.
fn tells_of_both(table: &str) -> Result<()> {
    let mut checks = Checks::default();
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    for column in ["age", "op", "sector", "connection", "cookie"] {
        let there = columns(header).iter().any(|name| name.starts_with(column));
        checks.that(&format!("there is a column {column}"), there);
    }
    let row = |op: &str, sector: &str| {
        let fits = |line: &str| line.to_lowercase().contains(op) && columns(line).contains(&sector);
        lines.clone().any(fits)
    };
    checks.that("the read is there", row("read", "128"));
    checks.that("the write is there", row("write", "136"));
    checks.equal("rows", lines.clone().count(), 2);
    checks.done()
}

fn debugfs(_: &Context) -> Result<()> {
    debug_dir()?;
    let server = Server::new(Export::memory(SIZE)?);
    with_attached(&server, Setup::for_server(&server).block_size(4096).timeout(17), |_| {
        let mut checks = Checks::default();
        let mut shows = |name: &str, want: &str| -> Result<()> {
            let text = debug_file(name)?;
            checks.that(&format!("{name} shows {want}: {text:?}"), text.contains(want));
            Ok(())
        };
        // Of the thread in NBD_DO_IT.
        shows("tasks", &sysfs(0, "pid").context("there is no pid")?)?;
        shows("size_bytes", &SIZE.to_string())?;
        // In jiffies: how many a second is the kernel's affair.
        shows("timeout", "")?;
        shows("blocksize_bits", "12")?;
        shows("flags", "NBD_FLAG_HAS_FLAGS")?;
        checks.done()
    })
}

fn readers(context: &Context) -> Result<()> {
    ours_only(context)?;
    debug_dir()?;
    let reader = fork_child(&[], |ready| {
        ready.tell("reading")?;
        loop {
            for name in SYSFS {
                let _ = sysfs(0, &format!("nbd/{name}"));
            }
            for name in ["tasks", "flags", "timeout", "connections", "requests"] {
                let _ = debug_file(name);
            }
        }
    });
    let mut reader = reader?;
    reader.expect_line("reading")?;
    for round in 0..context.rounds(60, 10) {
        let server = silent_server()?;
        let device = Device::open(0)?;
        let attachment = Setup::for_server(&server).connections(2).attach(&device, &server)?;
        let read = Blocked::read(&server)?;
        match round % 2 {
            0 => server.close(),
            _ => device.ioctl(req::DISCONNECT, 0).map(drop)?,
        }
        let _ = attachment.ended()?;
        read.fails("the end")?;
        drop(device);
        wait_idle(0)?;
    }
    ensure!(!reader.ended(), "the reader has ended");
    reader.kill()
}

/// The trace of the events that were switched on, with a buffer of its own; gone when dropped.
struct Trace(PathBuf);

impl Trace {
    const EVENTS: [&str; 5] = [
        "nbd_send_request",
        "nbd_header_sent",
        "nbd_payload_sent",
        "nbd_header_received",
        "nbd_payload_received",
    ];

    fn start(events: &[&str]) -> Result<Trace> {
        let dir = Path::new("/sys/kernel/tracing");
        if !dir.join("instances").exists() {
            let flags = nix::mount::MsFlags::empty();
            let _ = nix::mount::mount(Some("tracefs"), dir, Some("tracefs"), flags, None::<&str>);
        }
        if !dir.join("instances").exists() {
            return skip("the kernel does not trace");
        }
        let trace = Trace(dir.join("instances/rnbd-test"));
        let _ = fs::remove_dir(&trace.0);
        fs::create_dir(&trace.0).context("make a trace instance")?;
        for event in events {
            let switch = trace.0.join(format!("events/nbd/{event}/enable"));
            if !switch.exists() {
                bail!("there is no tracepoint nbd:{event}");
            }
            fs::write(switch, "1")?;
        }
        Ok(trace)
    }

    /// Lines of one event.
    fn lines(&self, event: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let mark = format!(" {event}: ");
        Ok(text.lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/nbd/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

fn tracepoints(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    with_attached(&server, Setup::for_server(&server), |_| {
        let trace = Trace::start(&Trace::EVENTS)?;
        round_trip(&open_direct("/dev/nbd0")?, 8192, &[5; 4096])?;
        let mut checks = Checks::default();
        for event in Trace::EVENTS {
            let lines = trace.lines(event)?;
            println!("{event}: {}", lines.first().map_or("none", |line| line.trim()));
            // A write and a read: each of the two is asked and answered once.
            checks.that(&format!("{event} is there twice: {}", lines.len()), lines.len() >= 2);
        }
        checks.done()
    })
}

fn trace_phases(context: &Context) -> Result<()> {
    ours_only(context)?;
    let trace = Trace::start(&["nbd_phase", "nbd_connection_dead"])?;
    let server = Server::new(Export::memory(SIZE)?);
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        server.close_one(0);
        wait_for("the connection to close", || server.open_connections() == 1)?;
        wait_for("its mark", || trace.lines("nbd_connection_dead").is_ok_and(|lines| !lines.is_empty()))
    })?;
    let phases = trace.lines("nbd_phase")?;
    println!("{}", phases.join("\n"));
    let mut checks = Checks::default();
    for phase in ["setup", "running", "draining", "idle"] {
        checks.that(&format!("a mark of {phase}"), phases.iter().any(|line| line.contains(phase)));
    }
    checks.done()
}
