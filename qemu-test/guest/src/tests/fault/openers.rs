// SPDX-License-Identifier: GPL-2.0
//! Loading the module while others open what it has made so far: a load that fails would take it away from under them.
//! Needs a kernel with fault injection (`make test DEBUG=1`).

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::allocation::load_at_each;
use crate::process::{Child, fork_child, pipe, wait_for};
use crate::tests::{Context, Test};

pub const TESTS: &[Test] = &[Test::new(
    "fault.load_opened",
    "of loading the module, while others open and close its devices: it does not fail after an open",
    load_opened,
)
.unloaded()
.limit(400)];

/// More than one: the first is open when another one cannot be made.
const PARAMS: &str = "nbds_max=3";

/// A process that opens a device as soon as it is there, holds it for a moment, closes it, and goes on so.
struct Opener {
    child: Child,
    opens: File,
}

impl Opener {
    fn new() -> Result<Opener> {
        let (opens, mut told) = pipe()?;
        fcntl(&opens, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let child = fork_child(&[told.as_raw_fd()], |_| {
            loop {
                if let Ok(opened) = File::open("/dev/nbd0") {
                    told.write_all(&[1])?;
                    std::thread::sleep(Duration::from_millis(10));
                    drop(opened);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })?;
        Ok(Opener { child, opens })
    }

    /// How often it has opened the device since the last time.
    fn opens(&self) -> usize {
        (&self.opens).read(&mut [0; 4096]).unwrap_or(0)
    }
}

fn load_opened(context: &Context) -> Result<()> {
    let mut opener = Opener::new()?;
    let driver = context.driver;
    let (mut failed, mut opened) = (0, 0);
    let look = |fails: bool| {
        if fails {
            failed += 1;
            let opens = opener.opens();
            ensure!(opens == 0, "the load failed after a device was opened {opens} times");
        }
        Ok(())
    };
    let remove = || {
        // Between a close and the next open. What was opened was opened before.
        wait_for("rmmod", || driver.remove().is_ok())?;
        opened += opener.opens();
        Ok(())
    };
    load_at_each(context, PARAMS, look, remove)?;
    println!("{failed} loads failed; {opened} opens");
    ensure!(opened > 0, "nobody has opened a device");
    ensure!(!opener.child.ended(), "the opener has ended");
    opener.child.kill()
}
