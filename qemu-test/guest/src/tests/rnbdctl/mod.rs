// SPDX-License-Identifier: GPL-2.0
//! The command `rnbdctl`, as people use it, with real servers.

mod attach;
mod change;
mod refused;
mod status;
mod watch;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::clients::{Daemon, QemuNbd, image};
use super::{Context, Test, skip};
use crate::netlink::Client;
use crate::process::{have, patient, run_within, wait_for};

pub const TESTS: [&[Test]; 5] = [attach::TESTS, status::TESTS, change::TESTS, refused::TESTS, watch::TESTS];

const SIZE: u64 = 4 << 20;

/// The program: beside this one, or where the harness has put it.
fn program() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("rnbdctl");
    if beside.exists() {
        return Ok(beside);
    }
    if !have("rnbdctl") {
        return skip("there is no rnbdctl");
    }
    Ok("rnbdctl".into())
}

/// What a run of it has left.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn of(command: &mut Command) -> Result<Run> {
        let output = run_within(patient(60), command)?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("output that is no text");
        let run =
            Run { code: output.status.code(), stdout: text(output.stdout)?, stderr: text(output.stderr)? };
        println!("{command:?}: {:?}\n{}{}", run.code, run.stdout, run.stderr);
        Ok(run)
    }

    fn with(args: &[&str]) -> Result<Run> {
        Run::of(Command::new(program()?).args(args))
    }

    /// It ended with this status, and said each of these words.
    fn refused(self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "exit status {:?}, and not {code}: {}", self.code, self.stderr);
        ensure!(self.stdout.is_empty(), "a refusal has printed {}", self.stdout);
        says(&self.stderr, words)
    }
}

/// Runs it; it must succeed and complain of nothing. What it printed.
fn ctl(args: &[&str]) -> Result<String> {
    let run = Run::with(args)?;
    ensure!(run.code == Some(0) && run.stderr.is_empty(), "rnbdctl {args:?}: {:?} {}", run.code, run.stderr);
    Ok(run.stdout)
}

/// The same of what prints JSON.
fn json(args: &[&str]) -> Result<Value> {
    serde_json::from_str(&ctl(args)?).with_context(|| format!("rnbdctl {args:?} printed no JSON"))
}

/// Text has each of these words in it.
fn says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

/// What is said of a device, all of it.
fn diagnosis(status: &Value) -> String {
    let advice = status["diagnosis"].as_array().into_iter().flatten();
    let parts = advice.flat_map(|advice| [&advice["what"], &advice["to_do"]]);
    parts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

/// Detaches a device when a test ends, however it does.
struct Detached(u32);

impl Drop for Detached {
    fn drop(&mut self) {
        // It is detached already if the test went well.
        let _ = Client::open().map(|client| client.disconnect(self.0));
    }
}

/// qemu-nbd on a UNIX socket, for several connections.
struct Served {
    _daemon: Daemon,
    socket: String,
}

impl Served {
    /// Of one image, however many serve it.
    fn start(context: &Context, name: &str) -> Result<Served> {
        Served::of(&image(context, "disk", SIZE)?, context, name)
    }

    fn of(image: &str, context: &Context, name: &str) -> Result<Served> {
        Served::to(16, image, context, name)
    }

    /// To so many connections at a time.
    fn to(clients: u32, image: &str, context: &Context, name: &str) -> Result<Served> {
        let socket = context.scratch_file(name);
        let daemon = QemuNbd::listen(Path::new(&socket), image, clients)?;
        wait_for("qemu-nbd to listen", || UnixStream::connect(&socket).is_ok())?;
        Ok(Served { _daemon: daemon, socket })
    }
}
