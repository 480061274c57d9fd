// SPDX-License-Identifier: GPL-2.0
//! A server that refuses requests: the caller gets an error, and the device lives on.

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use super::{Checks, Context, Test};
use crate::attach::{Setup, with_attached};
use crate::blocked::{Blocked, silent_server};
use crate::device::{
    Device, flag, io_errno, open_direct, read_direct, round_trip, sysfs_path, wait_idle, write_direct,
};
use crate::kmsg::Log;
use crate::modules::Driver;
use crate::process::wait_for;
use crate::server::{Action, Command, Export, Request, Server, wire};

pub const TESTS: &[Test] = &[
    Test::new(
        "errors.each_errno",
        "every error of the protocol fails the request and nothing else",
        each_errno,
    )
    .quick(),
    Test::new("errors.mapped", "each error of the protocol has its errno", mapped)
        .known_on_nbd("every error is EIO"),
    Test::new(
        "errors.not_supported",
        "trim and write-zeroes turn themselves off when the server does not know them",
        not_supported,
    )
    .known_on_nbd("they stay on, and are asked for again and again"),
    Test::new(
        "errors.no_timeout",
        "without a time-out a request that takes long is said in the log, and waits",
        |context| no_timeout(context, 1),
    ),
    Test::new("errors.no_timeout_many", "the same on one of two connections, which lives on", |context| {
        no_timeout(context, 2)
    })
    .known_on_nbd("the connection is dropped, and the request sent on the other"),
    Test::new("errors.buffered", "a refused write-back shows at fsync, a refused read at read", buffered),
    Test::new("errors.some_of_many", "of many requests at once only the refused ones fail", some_of_many),
    Test::new("errors.beyond_server", "an export smaller than the device says so by errors", beyond_server),
    Test::new("errors.bad_reply", "a reply that breaks the protocol ends the connection", bad_reply),
];

/// The errors that the protocol names, and one that it does not.
const ERRORS: [(&str, u32); 9] = [
    ("EPERM", 1),
    ("EIO", 5),
    ("ENOMEM", 12),
    ("EINVAL", 22),
    ("ENOSPC", 28),
    ("EOVERFLOW", 75),
    ("ENOTSUP", 95),
    ("ESHUTDOWN", 108),
    ("unknown", 9999),
];

/// Requests in megabyte N + 1 are refused with error N.
fn refusing(size: u64) -> Result<Server> {
    Ok(Server::with_behaviour(Export::memory(size)?, |request| {
        let index = (request.offset >> 20) as usize;
        match index.checked_sub(1).and_then(|index| ERRORS.get(index)) {
            Some((_, error)) if request.command != Command::Flush => Action::Refuse(*error),
            _ => Action::Serve,
        }
    }))
}

fn each_errno(_: &Context) -> Result<()> {
    let server = refusing(16 << 20)?;
    let flags = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FLUSH;
    with_attached(&server, Setup::for_server(&server).flags(flags), |device| {
        let direct = open_direct("/dev/nbd0")?;
        let mut checks = Checks::default();
        for (index, (name, number)) in ERRORS.into_iter().enumerate() {
            let offset = (index as u64 + 1) << 20;
            let read = read_direct(&direct, offset, 4096).map(drop).map_err(|error| io_errno(&error));
            let write = write_direct(&direct, offset, &[1; 4096]).map_err(|error| io_errno(&error));
            let trim = device.discard(offset, 4096);
            let zero = device.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, 4096);
            let show = |result: Result<(), nix::errno::Errno>| match result {
                Ok(()) => "success".to_owned(),
                Err(errno) => format!("{errno:?}"),
            };
            println!(
                "{name} ({number}): read {}, write {}, trim {}, write-zeroes {}",
                show(read),
                show(write),
                show(trim),
                show(zero)
            );
            checks.that(&format!("a read refused with {name} fails"), read.is_err());
            checks.that(&format!("a write refused with {name} fails"), write.is_err());
            // What follows on the connection is still in step.
            round_trip(&direct, 0, &[index as u8 + 1; 65536])?;
        }
        checks.that("the connection lives", server.open_connections() == 1);
        checks.done()
    })
}

/// What a read or a write that is refused with each of [`ERRORS`] gives.
const ERRNOS: [Errno; 9] = [
    Errno::EREMOTEIO,
    Errno::EIO,
    Errno::EIO,
    Errno::EIO,
    Errno::ENOSPC,
    Errno::EIO,
    Errno::EIO,
    Errno::ENODEV,
    Errno::EIO,
];

fn mapped(_: &Context) -> Result<()> {
    let server = refusing(16 << 20)?;
    with_attached(&server, Setup::for_server(&server), |_| {
        let direct = open_direct("/dev/nbd0")?;
        let mut checks = Checks::default();
        for (index, ((name, _), want)) in ERRORS.into_iter().zip(ERRNOS).enumerate() {
            let offset = (index as u64 + 1) << 20;
            let read = read_direct(&direct, offset, 4096).map(drop).map_err(|error| io_errno(&error));
            checks.equal(&format!("a read refused with {name}"), read, Err(want));
            let write = write_direct(&direct, offset, &[1; 4096]).map_err(|error| io_errno(&error));
            checks.equal(&format!("a write refused with {name}"), write, Err(want));
        }
        checks.done()
    })
}

fn not_supported(_: &Context) -> Result<()> {
    const NOT_SUPPORTED: u32 = 95;
    const LIMITS: [&str; 2] = ["queue/discard_max_bytes", "queue/write_zeroes_max_bytes"];
    let limits = |device: &Device| LIMITS.map(|name| device.sysfs(name).unwrap_or_default());
    let server = Server::with_behaviour(Export::memory(1 << 20)?, |request| match request.command {
        Command::Trim | Command::WriteZeroes => Action::Refuse(NOT_SUPPORTED),
        _ => Action::Serve,
    });
    let setup = Setup::for_server(&server).flags(flag::SEND_TRIM | flag::SEND_WRITE_ZEROES);
    let mut on = None;
    // The second time to see that the next attachment has them again.
    for round in 0..2 {
        server.forget();
        with_attached(&server, setup, |device| {
            let mut checks = Checks::default();
            let before = limits(device);
            checks.that("both are on at first", !before.iter().any(|limit| limit == "0"));
            checks.equal("as before", on.get_or_insert_with(|| before.clone()).clone(), before);
            round_trip(&open_direct("/dev/nbd0")?, 0, &[7; 65536])?;
            // A discard is a hint: that nobody took it is no error.
            checks.equal("the first discard", device.discard(0, 4096), Ok(()));
            checks.equal("zeroing", device.zero_out(8192, 4096), Ok(()));
            checks.equal("limits then", limits(device), ["0".to_owned(), "0".to_owned()]);
            checks.equal("the second discard", device.discard(0, 4096), Err(Errno::EOPNOTSUPP));
            checks.equal("zeroing again", device.zero_out(16384, 4096), Ok(()));
            device.ioctl(crate::device::req::SET_BLKSIZE, 4096)?;
            checks.equal("limits with another block size", limits(device), ["0".to_owned(), "0".to_owned()]);
            for command in [Command::Trim, Command::WriteZeroes] {
                checks.equal(&format!("{command:?} was asked for"), server.seen_of(command).len(), 1);
            }
            // Zeroes were written instead, and nothing was trimmed.
            for (offset, want) in [(0, 7), (8192, 0), (12288, 7), (16384, 0), (20480, 7)] {
                let data = server.export().read(offset, 4096)?;
                checks.that(&format!("what is at {offset}"), data == vec![want; 4096]);
            }
            checks.done()
        })
        .with_context(|| format!("attachment {round}"))?;
    }
    Ok(())
}

fn no_timeout(context: &Context, connections: usize) -> Result<()> {
    let server = silent_server()?;
    let device = Device::open(0)?;
    let attachment =
        Setup::for_server(&server).timeout(0).connections(connections).attach(&device, &server)?;
    let mut log = Log::from_now()?;
    // The block layer's own bound: a request is looked at after this time, and again. It is 30 s at first.
    std::fs::write(sysfs_path(0, "queue/io_timeout"), "300").context("queue/io_timeout")?;
    let read = Blocked::read(&server)?;
    let mut lines = Vec::new();
    wait_for("the log to tell of the request", || {
        lines.extend(log.lines());
        lines.iter().any(|line| line.to_lowercase().contains("possible stuck request"))
    })?;
    ensure!(read.waits(), "the request was ended");
    ensure!(server.open_connections() == connections, "the connection was dropped");
    round_trip(&open_direct("/dev/nbd0")?, 0, &[4; 4096]).context("while another request waits")?;
    let told = lines.iter().filter(|line| line.contains("ossible stuck")).count();
    println!("told {told} times");
    let advised = lines.iter().any(|line| line.contains("disconnect to end it"));
    ensure!(advised || context.driver == Driver::Nbd, "the log does not say what to do: {lines:?}");
    attachment.detach()?;
    read.fails("NBD_DISCONNECT")?;
    drop(device);
    server.wait_closed()?;
    wait_idle(0)
}

fn buffered(_: &Context) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let server = refusing(16 << 20)?;
    with_attached(&server, Setup::for_server(&server), |device| {
        let mut checks = Checks::default();
        device.file().write_all_at(&[1; 4096], 2 << 20)?;
        checks.that("fsync tells of the lost write", device.file().sync_all().is_err());
        checks.that("a later fsync succeeds", device.file().sync_all().is_ok());
        let read = device.file().read_exact_at(&mut [0; 4096], 3 << 20);
        checks.that("a refused read fails", read.is_err());
        let other = Device::open(0)?;
        other.file().write_all_at(&[2; 4096], 0)?;
        checks.that("a good write succeeds", other.file().sync_all().is_ok());
        checks.done()
    })?;
    ensure!(server.export().read(0, 4096)? == vec![2; 4096], "the good write is not there");
    Ok(())
}

fn some_of_many(_: &Context) -> Result<()> {
    // Blocks whose number is divisible by 3 are refused.
    let server = Server::with_behaviour(Export::memory(16 << 20)?, |request| {
        if (request.offset / 4096) % 3 == 0 { Action::Refuse(28) } else { Action::Serve }
    });
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        // A request for two blocks would be refused for both.
        std::fs::write(sysfs_path(0, "queue/nomerges"), "2")?;
        let mut tasks = Vec::new();
        for task in 0..8u64 {
            tasks.push(std::thread::spawn(move || -> Result<()> {
                let direct = open_direct("/dev/nbd0")?;
                for block in (task..512).step_by(8) {
                    let result = round_trip(&direct, block * 4096, &[block as u8; 4096]);
                    ensure!(result.is_err() == (block % 3 == 0), "block {block}: {result:?}");
                }
                Ok(())
            }));
        }
        for task in tasks {
            task.join().map_err(|_| anyhow::anyhow!("a task panicked"))??;
        }
        Ok(())
    })
}

fn beyond_server(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(1 << 20)?);
    let setup = Setup { size: 2 << 20, ..Setup::for_server(&server) };
    with_attached(&server, setup, |_| {
        let direct = open_direct("/dev/nbd0")?;
        round_trip(&direct, (1 << 20) - 4096, &[6; 4096])?;
        let beyond = read_direct(&direct, 1 << 20, 4096);
        ensure!(beyond.is_err(), "a read beyond the export succeeded");
        round_trip(&direct, 0, &[7; 4096])
    })
}

fn bad_reply(_: &Context) -> Result<()> {
    const BAD: u64 = 65536;
    type Answer = fn(&Request) -> Vec<u8>;
    let cases: [(&str, Answer); 4] = [
        ("a wrong magic", |request| wire::reply(0x1234_5678, 0, request.cookie).to_vec()),
        ("an unknown cookie", |request| wire::reply(wire::REPLY_MAGIC, 0, !request.cookie).to_vec()),
        ("a stale cookie", |request| {
            wire::reply(wire::REPLY_MAGIC, 0, request.cookie.wrapping_sub(1 << 32)).to_vec()
        }),
        ("rubbish", |_| vec![0xff; 4096]),
    ];
    for (what, answer) in cases {
        let server = Server::with_behaviour(Export::memory(1 << 20)?, move |request| {
            if request.offset == BAD { Action::Send(answer(request)) } else { Action::Serve }
        });
        let device = Device::open(0)?;
        let attachment = Setup::for_server(&server).attach(&device, &server)?;
        let direct = open_direct("/dev/nbd0")?;
        round_trip(&direct, 0, &[1; 4096])?;
        let read = read_direct(&direct, BAD, 4096);
        ensure!(read.is_err(), "a read answered with {what} succeeded");
        drop(direct);
        println!("{what}: NBD_DO_IT returned {:?}", attachment.ended()?);
        drop(device);
        server.wait_closed()?;
        wait_idle(0)?;
    }
    let server = Server::new(Export::memory(1 << 20)?);
    with_attached(&server, Setup::for_server(&server), |_| {
        round_trip(&open_direct("/dev/nbd0")?, BAD, &[1; 4096])
    })
}
