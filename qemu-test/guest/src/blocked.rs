// SPDX-License-Identifier: GPL-2.0
//! Requests that a server has seen and does not answer, and the tasks that wait for them.

use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;

use crate::device::{io_errno, open_direct, read_direct, write_direct};
use crate::process::{PATIENCE, describe_task, wait_for};
use crate::server::{Action, Command, Export, Server};

/// The part of a [`silent_server`]'s export that it does not answer for.
const SILENT: std::ops::Range<u64> = 65536..131072;

/// A server of 1 MiB that never answers requests of its second 64 KiB.
pub fn silent_server() -> Result<Server> {
    Ok(Server::with_behaviour(Export::memory(1 << 20)?, |request| {
        if SILENT.contains(&request.offset) { Action::Ignore } else { Action::Serve }
    }))
}

/// One that goes on so when it is told that nothing more comes: what ends without its answers ends when its time is over.
pub fn stubborn_server() -> Result<Server> {
    Server::scripted(1 << 20, |peer| {
        while let Some(request) = peer.request()? {
            if request.command != Command::Disconnect && !SILENT.contains(&request.offset) {
                peer.serve(&request)?;
            }
        }
        Ok(())
    })
}

/// How many such requests a [`silent_server`] has seen that it does not answer. Others come too: an open may have the
/// partition table read.
pub fn unanswered(server: &Server, command: Command) -> usize {
    server.seen_of(command).iter().filter(|request| SILENT.contains(&request.offset)).count()
}

/// A task of this process that waits for a request without an answer.
pub struct Blocked {
    what: &'static str,
    result: Receiver<Result<(), Errno>>,
}

impl Blocked {
    /// A reader of [`SILENT`], with O_DIRECT.
    pub fn read(server: &Server) -> Result<Blocked> {
        Blocked::start(server, "the reader", Command::Read)
    }

    /// A writer there.
    pub fn write(server: &Server) -> Result<Blocked> {
        Blocked::start(server, "the writer", Command::Write)
    }

    fn start(server: &Server, what: &'static str, command: Command) -> Result<Blocked> {
        let before = unanswered(server, command);
        let direct = open_direct("/dev/nbd0")?;
        let (sender, result) = channel();
        std::thread::Builder::new().name(what.to_owned()).spawn(move || {
            let done = match command {
                Command::Read => read_direct(&direct, SILENT.start, 4096).map(drop),
                _ => write_direct(&direct, SILENT.start + 4096, &[0xee; 4096]),
            };
            drop(direct);
            let _ = sender.send(done.map_err(|error| io_errno(&error)));
        })?;
        wait_for("the server to see the request", || unanswered(server, command) > before)?;
        Ok(Blocked { what, result })
    }

    /// True while nothing has ended the request.
    pub fn waits(&self) -> bool {
        matches!(self.result.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
    }

    /// The request must fail now, within the patience that we have with everything.
    pub fn fails(&self, why: &str) -> Result<()> {
        ensure!(self.ends(why)?.is_err(), "{} succeeded after {why}", self.what);
        Ok(())
    }

    /// The request must be answered now.
    pub fn succeeds(&self, why: &str) -> Result<()> {
        let result = self.ends(why)?;
        result.map_err(|errno| anyhow!("{} failed after {why}: {errno}", self.what))
    }

    fn ends(&self, why: &str) -> Result<Result<(), Errno>> {
        let result = self.result.recv_timeout(*PATIENCE).with_context(|| {
            let told = describe_task(std::process::id() as i32);
            format!("{} hangs after {why}\n{told}", self.what)
        })?;
        println!("{} got {result:?} after {why}", self.what);
        Ok(result)
    }
}
