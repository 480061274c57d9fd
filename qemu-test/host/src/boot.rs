// SPDX-License-Identifier: GPL-2.0
//! One boot: starts the machine, follows its console and its results, and tells how it ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::complaint::{Complaint, Detector};
use crate::machine::{Accel, Machine, Ports, Size};

/// How a boot ended, as far as the machine goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The job ended with this status, and the guest powered off.
    Job(i32),
    /// The guest ended before its job did.
    Early,
    /// The kernel panicked.
    Panic(String),
    /// The time limit came first.
    TimeLimit(Duration),
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

/// What a boot leaves.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Everything the kernel complained of.
    pub complaints: Vec<Complaint>,
    /// The test that was running at the end.
    pub running: Option<String>,
    /// The console's last lines.
    pub tail: Vec<String>,
}

/// What is told to whoever watches.
pub enum Message<'a> {
    /// The guest's first process runs, after this time; the kernel's release.
    Started(Duration, &'a str),
    /// A line of the job.
    Line(&'a str),
    /// The kernel complains.
    Complaint(&'a Complaint),
    /// A test starts.
    Running(Option<&'a str>),
}

/// What to boot.
pub struct Boot<'a> {
    /// The machine's size.
    pub size: &'a Size,
    /// The accelerator, already chosen.
    pub accel: Accel,
    /// The kernel's image.
    pub kernel: &'a Path,
    /// The guest's root.
    pub initramfs: &'a Path,
    /// Where logs go.
    pub folder: &'a Path,
    /// After this time the machine is killed.
    pub limit: Duration,
}

enum Input {
    Console(String),
    Result(String),
    /// One of the two ports was closed: QEMU ends.
    Closed,
    Interrupted,
}

const TAIL: usize = 30;

/// Far above what any kernel takes to its first process: beyond it, the machine is stuck.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Result lines of the guest's init, not of the job.
const INIT: &str = "@init ";
const EXIT: &str = "@exit ";

impl Boot<'_> {
    /// The console's log.
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// Boots, and returns when the machine is off.
    pub fn run(&self, interrupts: &Interrupts, watch: &mut dyn FnMut(Message)) -> Result<Outcome> {
        let (sender, receiver) = channel();
        let console = listen(&self.folder.join("console"), sender.clone(), Input::Console)?;
        let results = listen(&self.folder.join("results"), sender.clone(), Input::Result)?;
        interrupts.send_to(sender);
        let ports = Ports::Sockets { console: &console, results: &results };
        let messages = self.folder.join("qemu.log");
        let mut machine =
            Machine::start(self.size, self.accel, self.kernel, Some(self.initramfs), &ports, &messages)?;
        let mut log = File::create(self.console_log())?;
        let mut raw_results = File::create(self.folder.join("results.log"))?;
        let followed = self.follow(&receiver, &mut machine, &mut log, &mut raw_results, watch);
        machine.kill();
        for socket in [&console, &results] {
            let _ = std::fs::remove_file(socket);
        }
        let mut outcome = followed?;
        if outcome.tail.is_empty() {
            let said = std::fs::read_to_string(&messages).unwrap_or_default();
            outcome.tail = said.lines().map(|line| format!("qemu: {line}")).collect();
        }
        Ok(outcome)
    }

    fn follow(
        &self,
        receiver: &Receiver<Input>,
        machine: &mut Machine,
        log: &mut File,
        raw_results: &mut File,
        watch: &mut dyn FnMut(Message),
    ) -> Result<Outcome> {
        let start = Instant::now();
        let mut detector = Detector::default();
        let mut tail: Vec<String> = Vec::new();
        let mut status = None;
        let mut panic = None;
        let mut open_ports = 2;
        let mut cut = None;
        let mut limit = self.limit.min(BOOT_LIMIT);
        while open_ports > 0 {
            let left = limit.saturating_sub(start.elapsed());
            let input = match receiver.recv_timeout(left.min(Duration::from_millis(500))) {
                Ok(input) => input,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    cut = Some(End::TimeLimit(limit));
                    break;
                }
                // QEMU that cannot start never opens the ports.
                Err(RecvTimeoutError::Timeout) if machine.ended()?.is_some() => break,
                Err(RecvTimeoutError::Timeout) => continue,
            };
            match input {
                Input::Closed => open_ports -= 1,
                Input::Interrupted => {
                    cut = Some(End::Interrupted);
                    break;
                }
                Input::Console(line) => {
                    writeln!(log, "{line}").context("write the console's log")?;
                    if let (None, Some(at)) = (&panic, line.find("Kernel panic - not syncing")) {
                        panic = Some(line[at..].to_owned());
                    }
                    let before = detector.running().map(str::to_owned);
                    if detector.line(&line) {
                        detector
                            .found()
                            .last()
                            .into_iter()
                            .for_each(|complaint| watch(Message::Complaint(complaint)));
                    }
                    if detector.running() != before.as_deref() {
                        watch(Message::Running(detector.running()));
                    }
                    tail.push(line);
                    if tail.len() > TAIL {
                        tail.remove(0);
                    }
                }
                Input::Result(line) => {
                    if let Some(release) = line.strip_prefix(INIT) {
                        limit = self.limit;
                        watch(Message::Started(start.elapsed(), release));
                    } else if let Some(code) = line.strip_prefix(EXIT) {
                        status = code.trim().parse().ok();
                    } else {
                        writeln!(raw_results, "{line}").context("write the results' log")?;
                        watch(Message::Line(&line));
                    }
                }
            }
        }
        let end = match (cut, panic, status) {
            (Some(cut), ..) => cut,
            (_, Some(panic), _) => End::Panic(panic),
            (_, _, Some(status)) => End::Job(status),
            _ => End::Early,
        };
        let running = detector.running().map(str::to_owned);
        Ok(Outcome { end, complaints: detector.found().to_vec(), running, tail })
    }
}

/// Listens at `path`; the one who connects is QEMU, and what it sends comes line by line.
fn listen(path: &Path, sender: Sender<Input>, input: fn(String) -> Input) -> Result<PathBuf> {
    let path = path.with_extension("sock");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            let lines = BufReader::new(stream).split(b'\n');
            for line in lines.map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if sender.send(input(line.trim_end_matches('\r').to_owned())).is_err() {
                    return;
                }
            }
        }
        let _ = sender.send(Input::Closed);
    });
    Ok(path)
}

/// Ctrl-C and SIGTERM, for whichever boot is running.
#[derive(Clone, Default)]
pub struct Interrupts(std::sync::Arc<std::sync::Mutex<Option<Sender<Input>>>>);

impl Interrupts {
    /// Catches the signals from now on.
    pub fn install() -> Result<Interrupts> {
        let interrupts = Interrupts::default();
        let theirs = interrupts.clone();
        ctrlc::set_handler(move || {
            let told = theirs.0.lock().ok().and_then(|sender| sender.as_ref()?.send(Input::Interrupted).ok());
            if told.is_none() {
                std::process::exit(130);
            }
        })
        .context("catch Ctrl-C")?;
        Ok(interrupts)
    }

    fn send_to(&self, sender: Sender<Input>) {
        if let Ok(mut current) = self.0.lock() {
            *current = Some(sender);
        }
    }
}
