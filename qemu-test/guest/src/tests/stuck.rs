// SPDX-License-Identifier: GPL-2.0
//! Readers on a server that does not answer: what ends them, and what does not.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Context, Test};
use crate::attach::{Setup, attaches_again};
use crate::blocked::{Blocked, silent_server, unanswered};
use crate::device::{Device, open_direct, read_direct, round_trip};
use crate::process::{Child, describe_task, fork_child, wait_for, wait_for_within};
use crate::server::{Command, Server};

pub const TESTS: &[Test] = &[
    Test::new(
        "stuck.buffered_killed",
        "SIGKILL ends a reader through the page cache, and the device works on",
        buffered_killed,
    ),
    Test::new(
        "stuck.direct_killed",
        "what SIGKILL does to a reader with O_DIRECT; the generation's end ends it in any case",
        direct_killed,
    ),
    Test::new("stuck.others", "a reader that is stuck does not hold up the others", others),
];

/// A child that reads what the server is silent about. Returns once the server was asked.
fn reader(server: &Server, direct: bool) -> Result<Child> {
    let before = unanswered(server, Command::Read);
    let child = fork_child(&[], |_| {
        if direct {
            read_direct(&open_direct("/dev/nbd0")?, 65536, 4096)?;
        } else {
            Device::open(0)?.file().read_exact_at(&mut [0; 4096], 65536)?;
        }
        Ok(())
    })?;
    wait_for("the server to be asked", || unanswered(server, Command::Read) > before)?;
    Ok(child)
}

fn buffered_killed(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let mut child = reader(&server, false)?;
    child.kill().context("a buffered reader waits killably")?;
    round_trip(&open_direct("/dev/nbd0")?, 0, &[3; 4096])?;
    client.kill()?;
    server.wait_closed()?;
    attaches_again()
}

fn direct_killed(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut client = Setup::for_server(&server).attach_in_child(0, &server)?;
    let mut child = reader(&server, true)?;
    kill(Pid::from_raw(child.pid()), Signal::SIGKILL)?;
    // Direct I/O waits for its pages to be let go, whatever signal comes: that is the block layer's affair.
    let ended = wait_for_within(Duration::from_secs(2), "it to die", || child.ended()).is_ok();
    if ended {
        println!("it ended as {:?}", child.wait()?);
    } else {
        println!("SIGKILL has not ended the reader yet:\n{}", describe_task(child.pid()));
    }
    round_trip(&open_direct("/dev/nbd0")?, 0, &[4; 4096])?;
    client.kill()?;
    child.wait().context("the reader, after the generation's end")?;
    server.wait_closed()?;
    attaches_again()
}

fn others(_: &Context) -> Result<()> {
    let server = silent_server()?;
    let mut blocked = Vec::new();
    let setup = Setup::for_server(&server);
    let device = Device::open(0)?;
    let attachment = setup.attach(&device, &server)?;
    for _ in 0..8 {
        blocked.push(Blocked::read(&server)?);
    }
    let direct = open_direct("/dev/nbd0")?;
    for round in 0..32 {
        // The first 64 KiB are answered for.
        round_trip(&direct, 4096 * (round % 16), &[round as u8; 4096])?;
        ensure!(blocked.iter().all(Blocked::waits), "a reader without an answer has ended");
    }
    drop(direct);
    attachment.detach()?;
    for reader in &blocked {
        reader.fails("NBD_DISCONNECT")?;
    }
    drop(device);
    attaches_again()
}
