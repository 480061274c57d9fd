// SPDX-License-Identifier: GPL-2.0
//! A server that refuses requests: the caller gets an error, and the device lives on.

use anyhow::{Result, ensure};

use super::{Checks, Context, Test};
use crate::attach::{Setup, with_attached};
use crate::device::{Device, flag, io_errno, open_direct, read_direct, round_trip, wait_idle, write_direct};
use crate::server::{Action, Command, Export, Request, Server, wire};

pub const TESTS: &[Test] = &[
    Test::new(
        "errors.each_errno",
        "every error of the protocol fails the request and nothing else",
        each_errno,
    )
    .quick(),
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
