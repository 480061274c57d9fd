// SPDX-License-Identifier: GPL-2.0
//! The userspace way: a client of NBD behind ublk, as good as the limit's. A thread for each of the device's queues has a
//! connection of its own; it sends together what has come together, and receives large data where it belongs.

mod client;
mod control;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Barrier;

use anyhow::{Context, Result, anyhow};

use super::job::Job;
use crate::process::fork_child;
use client::Client;
use control::{Control, Shape};

/// The block device.
pub const NAME: &str = "ublkb0";

/// The character device, where its server gets the requests.
const QUEUES: &str = "/dev/ublkc0";

/// Is there such a thing? The module is loaded, if it is.
pub fn available() -> bool {
    let _ = crate::process::run("modprobe", &["ublk_drv"]);
    Path::new(control::DEVICE).exists()
}

/// Makes the device, serves it by a process of its own, does something, and removes it.
pub fn attached_to(job: &Job, sockets: &[OwnedFd], body: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut control = Control::open()?;
    let shape = control.add(sockets.len(), job.depth, job.block)?;
    let keep: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut child = fork_child(&keep, |ready| {
        // It can be opened but once: all queues share it.
        let device = OpenOptions::new().read(true).write(true).open(QUEUES);
        let device = &device.with_context(|| format!("open {QUEUES}"))?;
        let started = Barrier::new(shape.queues + 1);
        std::thread::scope(|scope| {
            let start = |(queue, socket)| {
                let started = &started;
                scope.spawn(move || serve(shape, queue, device, socket, started))
            };
            let threads: Vec<_> = sockets.iter().take(shape.queues).enumerate().map(start).collect();
            started.wait();
            ready.tell("ready")?;
            for thread in threads {
                thread.join().map_err(|_| anyhow!("a queue's thread panicked"))??;
            }
            Ok(())
        })
    })?;
    child.expect_line("ready")?;
    control.start(child.pid())?;
    let done = body();
    control.stop()?;
    child.success()?;
    control.delete()?;
    done
}

/// One queue, until the device is stopped.
fn serve(shape: Shape, queue: usize, device: &File, socket: &OwnedFd, started: &Barrier) -> Result<()> {
    let client = Client::start(shape, queue, device, socket);
    // Whatever came of it: the others wait.
    started.wait();
    client?.run()
}
