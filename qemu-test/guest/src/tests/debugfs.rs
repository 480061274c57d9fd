// SPDX-License-Identifier: GPL-2.0
//! The same in debugfs: nbd.ko's files, and tables of connections and of requests.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::state::SYSFS;
use super::{Checks, Context, Test, ours_only, skip};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, silent_server};
use crate::device::{Device, open_direct, req, round_trip, sysfs, wait_idle};
use crate::process::{fork_child, wait_for};
use crate::server::{Command, Export, Server, Transport};

pub const TESTS: &[Test] = &[
    Test::new("state.connections", "debugfs has a table of connections, living and dead", connections),
    Test::new(
        "state.connections_path",
        "a path in the table of connections is one word, whatever is in it",
        path,
    ),
    Test::new("state.requests", "debugfs has a table of the requests that wait", requests),
    Test::new("state.debugfs", "debugfs has nbd.ko's files, while attached", debugfs),
    Test::new("state.readers", "reading all of it while devices come and go", readers).limit(90),
];

const SIZE: u64 = 1 << 20;

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

/// The row of a connection, by its columns; of the last one, which is in words, the first word.
fn row_of(table: &str, index: usize) -> Result<BTreeMap<&str, &str>> {
    let mut lines = table.lines().map(columns);
    let header = lines.next().unwrap_or_default();
    let row = lines.find(|row| row.first() == Some(&&*index.to_string()));
    let row = row.with_context(|| format!("no row of connection {index}:\n{table}"))?;
    Ok(header.into_iter().zip(row).collect())
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
    let us = std::process::id().to_string();
    for index in 0..3 {
        let row = row_of(&table, index)?;
        let inflight = if index == busy { "1" } else { "0" };
        for (column, want) in [
            ("family", "tcp4"),
            ("state", "live"),
            ("since_ms", "-"),
            ("epoch", "0"),
            ("owner", &us),
            ("inflight", inflight),
            ("reason", "-"),
        ] {
            checks.equal(&format!("{column} of connection {index}"), row.get(column).copied(), Some(want));
        }
    }
    let bytes = |column: &str| -> u64 {
        let of = |index| row_of(&table, index).ok()?.get(column)?.parse::<u64>().ok();
        (0..3).filter_map(of).sum()
    };
    // A write and a read of 4096 bytes, at least, and what is not answered.
    checks.that(&format!("{} bytes sent", bytes("sent")), bytes("sent") >= 4096 + 3 * 28);
    checks.that(&format!("{} bytes received", bytes("received")), bytes("received") >= 4096 + 2 * 16);
    let dies = (busy + 1) % 3;
    server.close_one(dies);
    wait_for("a row to tell of the death", || {
        debug_file("connections").is_ok_and(|table| table.contains("dead"))
    })?;
    let table = debug_file("connections")?;
    println!("{table}");
    let row = row_of(&table, dies)?;
    checks.equal("state of the dead one", row.get("state").copied(), Some("dead"));
    checks.that("when it died", row.get("since_ms").is_some_and(|since| since.parse::<u64>().is_ok()));
    checks.that("why it died", row.get("reason").is_some_and(|reason| !matches!(*reason, "" | "-")));
    checks.that("the reader still waits", read.waits());
    attachment.detach()?;
    read.fails("NBD_DISCONNECT")?;
    checks.done()
}

fn path(context: &Context) -> Result<()> {
    ours_only(context)?;
    let server = Server::new(Export::memory(SIZE)?);
    let name = context.scratch.join("a b\n0 tcp4 \\ \u{e9}");
    server.listen_unix(&name)?;
    let socket = UnixStream::connect(&name)?;
    let device = Device::open(0)?;
    device.ioctl(req::SET_SOCK, socket.as_raw_fd() as u64)?;
    let table = debug_file("connections")?;
    println!("{table}");
    let mut checks = Checks::default();
    checks.equal("lines", table.lines().count(), 2);
    let row = row_of(&table, 0)?;
    checks.equal("family", row.get("family").copied(), Some("unix"));
    let peer = row.get("peer").copied().unwrap_or_default();
    checks.that(&format!("peer is {peer}"), peer.ends_with(r"/a\040b\0120\040tcp4\040\134\040\303\251"));
    device.ioctl(req::CLEAR_SOCK, 0)?;
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
            checks.equal(name, &*debug_file(name)?, want);
            Ok(())
        };
        // Of the thread in NBD_DO_IT.
        let pid = sysfs(0, "pid").context("there is no pid")?;
        shows("tasks", &format!("recv: {pid}\n"))?;
        shows("size_bytes", &format!("{SIZE}\n"))?;
        shows("blocksize_bits", "12\n")?;
        shows("flags", "Hex: 0x00000001\n\nKnown flags:\nNBD_FLAG_HAS_FLAGS\n")?;
        // In jiffies: how many a second is the kernel's affair.
        let jiffies: u64 = debug_file("timeout")?.trim().parse().context("timeout")?;
        checks.that(&format!("17 s are {jiffies} jiffies"), jiffies > 0 && jiffies % 17 == 0);
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
