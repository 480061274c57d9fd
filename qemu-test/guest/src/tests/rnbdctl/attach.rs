// SPDX-License-Identifier: GPL-2.0
//! `connect` and `disconnect`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::json;

use super::{Detached, Run, SIZE, Served, ctl, json, says};
use crate::device::{capacity, node, open_direct, read_direct, round_trip, sysfs, wait_idle};
use crate::server::{Command, Export, Server};
use crate::tests::clients::{NbdServer, exercise, image};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("rnbdctl.unix", "connects to qemu-nbd's UNIX socket, twice, and disconnects", unix).quick(),
    Test::new("rnbdctl.tcp", "connects the first free device to an export of nbd-server, over TCP", tcp)
        .limit(120),
    Test::new("rnbdctl.options", "what a device is to be like reaches the driver", options),
    Test::new("rnbdctl.new_device", "makes a device that goes when it is disconnected", new_device),
    Test::new(
        "rnbdctl.block_sizes",
        "the device keeps to the sizes of requests that a server takes",
        block_sizes,
    ),
];

fn unix(context: &Context) -> Result<()> {
    let server = Served::start(context, "socket")?;
    for round in 0..2 {
        let _detached = Detached(0);
        let told = json(&["connect", &server.socket, "--device", "nbd0", "--connections", "2", "--json"])?;
        let mut checks = Checks::default();
        for (key, want) in [
            ("index", json!(0)),
            ("device", json!("/dev/nbd0")),
            ("size", json!(SIZE)),
            ("block_size", json!(512)),
            ("connections", json!(2)),
            ("read_only", json!(false)),
        ] {
            checks.equal(key, &told[key], &want);
        }
        checks.equal("capacity", capacity(0), SIZE);
        checks.done()?;
        exercise(round)?;
        says(&ctl(&["disconnect", "nbd0"])?, &["nbd0: detached"])?;
        wait_idle(0)?;
    }
    says(&ctl(&["disconnect", "/dev/nbd0"])?, &["was not attached"])
}

fn tcp(context: &Context) -> Result<()> {
    let path = image(context, "disk", SIZE)?;
    let server = NbdServer::start(context, &path)?;
    let [host, port, _, export] = server.place();
    let address = format!("{host}:{port}");
    let _detached = (Detached(0), Detached(1));
    // It listens before it has made parameters for TLS, which takes its time under emulation.
    let told = ctl(&["connect", &address, "--export", export, "--handshake-timeout", "600"])?;
    says(&told, &["/dev/nbd0 (index 0): 4 MiB, 1 connection, from 127.0.0.1:"])?;
    let told = json(&["connect", &address, "--export", export, "--json"])?;
    let mut checks = Checks::default();
    checks.equal("the next free device", &told["index"], &json!(1));
    checks.done()?;
    round_trip(&open_direct("/dev/nbd1")?, 8192, &[0xa5; 4096])?;
    ctl(&["disconnect", "0", "1"])?;
    let data = fs::read(&path)?;
    checks = Checks::default();
    checks.that("what was written is in the server's file", data[8192..12288] == [0xa5; 4096]);
    checks.done()
}

fn options(context: &Context) -> Result<()> {
    let server = Served::start(context, "socket")?;
    let _detached = Detached(1);
    let wanted = ["--block-size", "4096", "--timeout", "7", "--dead-timeout", "3", "--backend", "pool/image"];
    let args = [&["connect", &*server.socket, "--device", "/dev/nbd1", "--read-only"], &wanted[..]].concat();
    says(&ctl(&args)?, &["/dev/nbd1 (index 1): 4 MiB, 1 connection, read-only"])?;
    let mut checks = Checks::default();
    for (attribute, want) in [
        ("ro", "1"),
        ("queue/logical_block_size", "4096"),
        ("queue/io_timeout", "7000"),
        ("backend", "pool/image"),
    ] {
        checks.equal(attribute, sysfs(1, attribute).as_deref(), Some(want));
    }
    let status = json(&["status", "nbd1", "--json"])?;
    checks.equal("time-out", &status["timeout_s"], &json!(7));
    checks.equal("backend", &status["backend"], &json!("pool/image"));
    checks.equal("read-only", &status["read_only"], &json!(true));
    checks.done()?;
    Run::with(&["reconfigure", "nbd1", "--timeout", "9"])?.refused(1, &["cannot change nbd1"])?;
    says(&ctl(&["reconfigure", "nbd1", "--timeout", "9", "--backend", "pool/image"])?, &["nbd1: changed"])?;
    let mut checks = Checks::default();
    checks.equal("time-out", sysfs(1, "queue/io_timeout").as_deref(), Some("9000"));
    checks.done()?;
    ctl(&["disconnect", "nbd1"]).map(drop)
}

fn new_device(context: &Context) -> Result<()> {
    let server = Served::start(context, "socket")?;
    let _detached = Detached(5);
    ctl(&["connect", &server.socket, "--device", "nbd5", "--destroy-on-disconnect"])?;
    round_trip(&open_direct(node(5))?, 0, &[0x3c; 4096])?;
    says(&ctl(&["disconnect", "nbd5"])?, &["nbd5: detached"])?;
    crate::process::wait_for("the device to go", || !Path::new("/sys/block/nbd5").exists())?;
    Run::with(&["disconnect", "nbd5"])?.refused(4, &["there is no nbd5"])
}

/// The block sizes that a server of 1 MiB names in its handshake.
const SIZES: [u32; 3] = [4096, 4096, 64 << 10];

/// The server's side of the handshake, of the shortest kind.
fn shake_hands(mut stream: &UnixStream) -> std::io::Result<()> {
    let reply = |kind: u32, data: &[u8]| {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let words = [7, kind, data.len() as u32].map(u32::to_be_bytes).concat();
        [&magic[..], &words, data].concat()
    };
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    // The flags, the option, and its data: no name, and one wish.
    stream.read_exact(&mut [0; 4 + 16 + 8])?;
    let export = [&[0; 2][..], &(1_u64 << 20).to_be_bytes(), &[0, 1]].concat();
    let sizes = [&[0, 3][..], &SIZES.map(u32::to_be_bytes).concat()].concat();
    stream.write_all(&[reply(3, &export), reply(3, &sizes), reply(1, &[])].concat())
}

fn block_sizes(context: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let path = context.scratch_file("socket");
    let listener = UnixListener::bind(&path)?;
    let _detached = Detached(0);
    let told = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| -> Result<()> {
            let (stream, _) = listener.accept()?;
            shake_hands(&stream)?;
            server.serve_unix(stream)
        });
        let told = json(&["connect", &path, "--device", "nbd0", "--json"]);
        // Whether or not it has come: then it is this.
        drop(UnixStream::connect(&path));
        accepted.join().map_err(|_| anyhow!("the server died"))?.and(told)
    })?;
    let mut checks = Checks::default();
    checks.equal("block size", &told["block_size"], &json!(SIZES[0]));
    checks.equal("logical block size", sysfs(0, "queue/logical_block_size").as_deref(), Some("4096"));
    read_direct(&open_direct(node(0))?, 0, 1 << 20)?;
    ctl(&["disconnect", "nbd0"])?;
    let reads = server.seen_of(Command::Read);
    let longest = reads.iter().map(|read| read.length).max();
    println!("{} reads, the longest of {longest:?} bytes", reads.len());
    checks.that("all has been read", reads.iter().map(|read| u64::from(read.length)).sum::<u64>() >= 1 << 20);
    checks.that("no request is larger than the server takes", longest <= Some(SIZES[2]));
    checks.done()
}
