// SPDX-License-Identifier: GPL-2.0
//! Real servers: nbdkit's memory plugin, and qemu-nbd on a raw file in memory. Each is started once, before anything
//! is measured, and serves all jobs.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::job::{SIZE, Serves};
use crate::process::wait_for;
use crate::server::handshake::shake_hands;

/// A server's process; killed when dropped.
pub struct Program {
    serves: Serves,
    child: Child,
    socket: PathBuf,
}

/// Clients of qemu-nbd at a time: those of a job, and those of the one before that it has not seen go.
const CLIENTS: &str = "32";

impl Program {
    /// Starts it; None of our own server, which is no program.
    pub fn start(serves: Serves) -> Result<Option<Program>> {
        let name = serves.name();
        let socket = std::env::temp_dir().join(format!("bench-{name}.socket"));
        let mut command = Command::new(name);
        match serves {
            Serves::Memory => return Ok(None),
            Serves::Nbdkit => {
                command.args(["--foreground", "--unix"]).arg(&socket).args(["memory", &SIZE.to_string()]);
            }
            Serves::QemuNbd => {
                let image = std::env::temp_dir().join("bench.raw");
                // No holes: they would be cheaper to read than data, and dearer to write.
                fs::write(&image, vec![0x5a; SIZE as usize])
                    .with_context(|| format!("write {}", image.display()))?;
                command.args(["--persistent", "--shared", CLIENTS, "--format", "raw", "--socket"]);
                command.arg(&socket).arg(&image);
            }
        }
        // What it has to say is no line of ours.
        let log = std::env::temp_dir().join(format!("bench-{name}.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let program = Program { serves, child, socket };
        wait_for(&format!("{name} to listen"), || program.connect().is_ok())
            .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Some(program))
    }

    pub fn serves(&self) -> Serves {
        self.serves
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// A connection that has come through the handshake.
    pub fn connect(&self) -> Result<OwnedFd> {
        let name = self.serves.name();
        let stream = UnixStream::connect(&self.socket).with_context(|| format!("connect to {name}"))?;
        shake_hands(&stream, SIZE).with_context(|| format!("handshake with {name}"))?;
        Ok(stream.into())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
