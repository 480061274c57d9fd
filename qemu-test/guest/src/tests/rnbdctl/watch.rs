// SPDX-License-Identifier: GPL-2.0
//! `watch`: lines for programs, a live view for people.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, bail, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Detached, Served, ctl, program, says};
use crate::modules::Driver;
use crate::process::{PATIENCE, wait_for};
use crate::tests::{Checks, Context, Test};

pub const TESTS: &[Test] = &[
    Test::new("rnbdctl.watch", "tells what changes and which connections die, a line each", lines),
    Test::new("rnbdctl.watch_json", "the same as JSON", as_json),
    Test::new("rnbdctl.watch_terminal", "has a live view on a terminal, and leaves it as it was", terminal),
];

/// A running `rnbdctl watch`, ended when dropped.
struct Watching {
    process: Child,
    output: Receiver<String>,
    heard: String,
}

impl Watching {
    fn start(args: &[&str]) -> Result<Watching> {
        let mut command = Command::new(program()?);
        let mut process = command
            .arg("watch")
            .args(["--interval", "0.2"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("no output")?;
        Ok(Watching { process, output: parts(BufReader::new(output)), heard: String::new() })
    }

    /// On a terminal, of which this returns the other end.
    fn on_terminal() -> Result<Watching> {
        let terminal = openpty(None, None)?;
        let slave: OwnedFd = terminal.slave;
        let process = Command::new(program()?)
            .args(["watch", "--interval", "0.2"])
            .stdin(Stdio::null())
            .stdout(slave)
            .spawn()?;
        let output = parts(BufReader::new(File::from(terminal.master)));
        Ok(Watching { process, output, heard: String::new() })
    }

    /// Waits for a line with all of these words.
    fn line(&mut self, words: &[&str]) -> Result<String> {
        loop {
            let Ok(line) = self.output.recv_timeout(*PATIENCE) else {
                bail!("it did not say {words:?}, but {}", self.heard)
            };
            println!("{line:?}");
            self.heard += &line;
            if words.iter().all(|word| line.contains(word)) {
                return Ok(line);
            }
        }
    }

    /// Ends it as Ctrl-C does. All that it still says.
    fn end(mut self) -> Result<String> {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT)?;
        let mut status = None;
        wait_for("rnbdctl watch to end", || {
            status = self.process.try_wait().ok().flatten();
            status.is_some()
        })?;
        ensure!(status.is_some_and(|status| status.success()), "it ended with {status:?}");
        let mut rest = String::new();
        while let Ok(line) = self.output.recv_timeout(*PATIENCE) {
            rest += &line;
        }
        Ok(rest)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What can be read, line by line, as it comes.
fn parts(mut from: impl BufRead + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        loop {
            let mut line = Vec::new();
            // The other end of a terminal that is closed gives an error, with what came before it.
            let read = from.read_until(b'\n', &mut line);
            let last = !read.is_ok_and(|count| count > 0);
            if line.is_empty() || sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() || last {
                break;
            }
        }
    });
    receiver
}

/// Attaches the device, kills its server, and detaches it.
fn happen(
    context: &Context,
    watching: &mut Watching,
    running: &[&str],
    dead: &[&str],
) -> Result<(String, String)> {
    let server = Served::start(context, "socket")?;
    let _detached = Detached(0);
    ctl(&["connect", &server.socket, "--device", "nbd0", "--connections", "2", "--dead-timeout", "600"])?;
    let running = watching.line(running)?;
    drop(server);
    let first = watching.line(dead)?;
    watching.line(dead)?;
    ctl(&["disconnect", "nbd0"])?;
    Ok((running, first))
}

fn lines(context: &Context) -> Result<()> {
    let mut watching = Watching::start(&[])?;
    watching.line(&["watching 2 devices"])?;
    let (running, dead) = happen(
        context,
        &mut watching,
        &["nbd0 is running", "4 MiB"],
        &["nbd0: a connection died (LINK_DEAD)"],
    )?;
    watching.line(&["nbd0 is idle"])?;
    if context.driver == Driver::Rnbd {
        says(&running, &["2 of 2 connections live"])?;
        says(&dead, &[" of 2 live; generation ", "the server closed it"])?;
    }
    watching.end().map(drop)
}

fn as_json(context: &Context) -> Result<()> {
    let mut watching = Watching::start(&["nbd0", "--json"])?;
    watching.line(&["\"begin\""])?;
    let (running, dead) = happen(context, &mut watching, &["\"changed\"", "running"], &["\"link_dead\""])?;
    let (running, dead): (Value, Value) = (serde_json::from_str(&running)?, serde_json::from_str(&dead)?);
    let mut checks = Checks::default();
    for event in [&running, &dead] {
        checks.equal("index", &event["index"], &json!(0));
        checks.equal("state", &event["device"]["state"], &json!("running"));
        checks.that("there is a time", event["time"].is_string());
    }
    checks.done()?;
    watching.end().map(drop)
}

fn terminal(context: &Context) -> Result<()> {
    let mut watching = Watching::on_terminal()?;
    watching.line(&["2 devices are idle; Ctrl-C ends"])?;
    says(&watching.heard, &["\x1b[?1049h"])?;
    happen(context, &mut watching, &["nbd0", "running", "4 MiB"], &["nbd0: a connection died (LINK_DEAD)"])?;
    says(&watching.end()?, &["\x1b[?25h\x1b[?1049l"])
}
