// SPDX-License-Identifier: GPL-2.0
//! Requests that fail before they come to the driver, and requests whose end is lost.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Fault;
use crate::attach::{Setup, attaches_again};
use crate::device::{
    Device, io_errno, open_direct, read_direct, req, round_trip, sysfs_path, wait_idle, write_direct,
};
use crate::process::{patient, wait_for};
use crate::server::{Command, Export, Server, pattern};
use crate::tests::{Context, Test, seed, tried};

pub const TESTS: &[Test] = &[
    Test::new(
        "fault.make_request",
        "bios that fail at random before the driver gets them (fail_make_request)",
        make_request,
    )
    .limit(120),
    Test::new(
        "fault.io_timeout",
        "replies that are lost: another connection, none, no time-out (fail_io_timeout)",
        io_timeout,
    )
    .limit(180),
];

const SIZE: u64 = 1 << 20;

/// Has faults of a kind hit nbd0, for as long as this lives.
struct Hit(&'static str);

impl Hit {
    fn new(attribute: &'static str) -> Result<Hit> {
        fs::write(sysfs_path(0, attribute), "1").context(attribute)?;
        Ok(Hit(attribute))
    }
}

impl Drop for Hit {
    fn drop(&mut self) {
        let _ = fs::write(sysfs_path(0, self.0), "0");
    }
}

fn make_request(context: &Context) -> Result<()> {
    let fault = Fault::new("fail_make_request")?;
    let mut rng = SmallRng::seed_from_u64(seed()?);
    let server = Server::new(Export::memory(SIZE)?);
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).connections(2).attach(&device, &server)?;
    let direct = open_direct("/dev/nbd0")?;
    server.forget();
    let hit = Hit::new("make-it-fail")?;
    fault.arm(50, -1)?;
    let (mut failed, mut written) = (0, 0);
    let mut known = vec![None; (SIZE / 4096) as usize];
    for version in 1..=context.rounds(600, 60) as u64 {
        let block = rng.random_range(0..known.len());
        let offset = block as u64 * 4096;
        let done = if rng.random_bool(0.5) {
            let done = write_direct(&direct, offset, &pattern::data(offset, 4096, version));
            if done.is_ok() {
                known[block] = Some(version);
                written += 1;
            }
            done
        } else {
            read_direct(&direct, offset, 4096)
                .map(|data| match known[block] {
                    Some(version) => data[..] == pattern::data(offset, 4096, version),
                    None => data.iter().all(|byte| *byte == 0),
                })
                .map(|right| assert!(right, "wrong data at {offset}"))
        };
        if let Err(error) = done {
            ensure!(io_errno(&error) == Errno::EIO, "{error}");
            failed += 1;
        }
    }
    drop((fault, hit));
    ensure!(failed > 0, "nothing has failed");
    let sent = server.seen_of(Command::Write).len();
    ensure!(sent == written, "{written} writes succeeded, the server has seen {sent}");
    ensure!(server.open_connections() == 2, "a connection was dropped");
    round_trip(&direct, 0, &[9; 65536])?;
    drop(direct);
    attachment.detach()?;
    drop(device);
    server.wait_closed()?;
    tried(failed, "faults");
    attaches_again()
}

/// One reply is lost each time. The server has answered, and the driver must do as if it had not.
fn io_timeout(_: &Context) -> Result<()> {
    let fault = Fault::new("fail_io_timeout")?;
    fault.set("times", "0")?;
    let hit = Hit::new("io-timeout-fail")?;
    let server = Server::new(Export::memory(SIZE)?);
    let reads = || server.seen_of(Command::Read).len();

    let device = Device::open(0)?;
    let setup = Setup::for_server(&server).timeout(patient(2).as_secs()).connections(2);
    let attachment = setup.attach(&device, &server)?;
    let direct = open_direct("/dev/nbd0")?;
    round_trip(&direct, 4096, &[0x5a; 4096])?;
    server.forget();
    fault.arm(100, 1)?;
    let data = read_direct(&direct, 4096, 4096).context("a read whose first reply is lost")?;
    ensure!(data.iter().all(|byte| *byte == 0x5a), "the read got other data");
    ensure!(reads() == 2, "{} requests for one read whose reply was lost", reads());
    wait_for("one connection to be left", || server.open_connections() == 1)?;

    fault.arm(100, 1)?;
    ensure!(read_direct(&direct, 4096, 4096).is_err(), "a read succeeded whose only reply was lost");
    let ended = attachment.ended()?;
    ensure!(ended == Err(Errno::ETIMEDOUT), "NBD_DO_IT returned {ended:?}");
    drop((direct, device));
    wait_idle(0)?;

    // Without a time-out it waits until the attachment ends.
    let device = Device::open(0)?;
    let attachment = Setup::for_server(&server).attach(&device, &server)?;
    let direct = open_direct("/dev/nbd0")?;
    server.forget();
    fault.arm(100, 1)?;
    let reader = std::thread::spawn(move || read_direct(&direct, 8192, 4096).map(drop));
    wait_for("the server to have answered", || reads() == 1)?;
    device.ioctl(req::DISCONNECT, 0)?;
    let ended = attachment.ended()?;
    ensure!(ended == Ok(0), "NBD_DO_IT returned {ended:?}");
    wait_for("the reader to be told", || reader.is_finished())?;
    ensure!(reader.join().is_ok_and(|read| read.is_err()), "a read succeeded whose only reply was lost");
    drop((device, fault, hit));
    server.wait_closed()?;
    tried(3, "faults");
    attaches_again()
}
