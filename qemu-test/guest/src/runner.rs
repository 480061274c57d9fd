// SPDX-License-Identifier: GPL-2.0
//! Runs each test in a process of its own: load the driver, run, kill what is left, unload, look for leaks and
//! complaints of the kernel.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::kmsg::{Log, complaints, mark};
use crate::ktap::{Ktap, Verdict};
use crate::leaks::Leaks;
use crate::modules::{Driver, leftovers};
use crate::netlink::Client;
use crate::process::{descendants, describe_task, fork_child, patient, pipe, wait_for, wait_for_within};
use crate::races::Races;
use crate::tests::{self, Context as TestContext, Skip, Test};

#[derive(clap::Args)]
pub struct Args {
    /// The driver under test
    #[arg(long, default_value = "rnbd")]
    driver: Driver,
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
    #[command(flatten)]
    selection: Selection,
}

#[derive(clap::Args)]
pub struct Selection {
    /// Only the quick subset; with names, fewer rounds of those
    #[arg(long)]
    quick: bool,
    /// Only tests that retell an incident for which rnbd exists
    #[arg(long)]
    incidents: bool,
    /// For those that can go on for ever: ten minutes of it
    #[arg(long, conflicts_with = "quick")]
    soak: bool,
    /// Names or globs of tests; all when none is given
    names: Vec<String>,
}

#[derive(clap::Args)]
pub struct BodyArgs {
    name: String,
    #[arg(long)]
    driver: Driver,
    #[arg(long)]
    modules: PathBuf,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    soak: bool,
}

/// Exit status of a test's process when it skips; the reason is then on its last line.
const SKIPPED: u8 = 4;
const SKIP_MARK: &str = "SKIP: ";
/// Before what a test fails with, among its diagnostics.
const ERROR_MARK: &str = "error: ";

pub fn list(selection: &Selection, names_only: bool) -> Result<()> {
    for test in select(selection)? {
        if names_only {
            println!("{}", test.name);
        } else {
            println!("{:<34} {}", test.name, test.about);
        }
    }
    Ok(())
}

fn select(args: &Selection) -> Result<Vec<&'static Test>> {
    let mut patterns = Vec::new();
    for name in &args.names {
        let pattern = glob::Pattern::new(name).with_context(|| format!("bad glob {name:?}"))?;
        ensure!(
            tests::all().any(|test| pattern.matches(test.name)),
            "no test is named {name:?}; `rnbd-test list` shows them"
        );
        patterns.push(pattern);
    }
    let named = |test: &Test| patterns.iter().any(|pattern| pattern.matches(test.name));
    Ok(tests::all()
        .filter(|test| if patterns.is_empty() { test.quick || !args.quick } else { named(test) })
        .filter(|test| test.incident || !args.incidents)
        .collect())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let selected = select(&args.selection)?;
    ensure!(nix::unistd::geteuid().is_root(), "run me as root: I load a kernel module");
    let file = args.driver.file(&args.modules);
    ensure!(
        args.driver.built_in() || file.exists(),
        "{} does not exist; name its directory with --modules",
        file.display()
    );
    prepare_system()?;
    // What the C driver loses is its own affair.
    let leaks = if args.driver == Driver::Rnbd { Leaks::watch()? } else { None };
    let races = Races::watch()?;
    let judged = usize::from(leaks.is_some()) + usize::from(races.is_some());
    let mut ktap = Ktap::begin(selected.len() + judged);
    let mut log = Log::from_now()?;
    for test in selected {
        if let Err(error) = run_one(args, test, &mut log, &mut ktap) {
            ktap.bail_out(&format!("{error:#}").replace('\n', "; "));
            return Ok(ExitCode::FAILURE);
        }
    }
    if let Some(leaks) = leaks {
        ktap.judge("kernel.leaks", &leaks.found()?);
    }
    if let Some(races) = races {
        let (told, wrong) = races.summary()?;
        ktap.diagnostic(&told);
        ktap.judge("kernel.races", &wrong);
    }
    complaints_outside(args, &mut log, &mut ktap);
    Ok(if ktap.all_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the tests need of any booted system: a loopback interface, debugfs, qemu-nbd's directory for its socket,
/// orphans that come to us, neither driver loaded.
pub fn prepare_system() -> Result<()> {
    // SAFETY: makes this process the reaper of its orphaned descendants; no memory is involved.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    Errno::result(result).context("PR_SET_CHILD_SUBREAPER")?;
    let output = Command::new("ip").args(["link", "set", "lo", "up"]).output();
    output.context("start ip, to bring up the loopback interface")?;
    // The kernel drops lines of ours when they come fast, and then does not say which test was running.
    // The kernel refuses even the same value where its command line has set one.
    let limit = "/proc/sys/kernel/printk_devkmsg";
    if fs::read_to_string(limit)?.trim() != "on" {
        fs::write(limit, "on\n").context("let every line into /dev/kmsg")?;
    }
    if !Path::new("/var/lock").exists() {
        // It is a link into /run on most systems.
        let lock = fs::read_link("/var/lock").unwrap_or_else(|_| "lock".into());
        fs::create_dir_all(Path::new("/var").join(lock)).context("make /var/lock for qemu-nbd")?;
    }
    if !Path::new("/sys/kernel/debug/block").exists() {
        let none: Option<&str> = None;
        let flags = nix::mount::MsFlags::empty();
        // Without debugfs the tests that look there skip.
        let _ = nix::mount::mount(none, "/sys/kernel/debug", Some("debugfs"), flags, none);
    }
    for driver in [Driver::Rnbd, Driver::Nbd] {
        if driver.loaded() {
            unload(driver).with_context(|| format!("{} is loaded and in use", driver.module()))?;
        }
    }
    Ok(())
}

/// What a test must leave as it found it.
pub struct Before {
    sockets: u64,
}

impl Before {
    pub fn now() -> Before {
        Before { sockets: sockets_in_use() }
    }
}

fn sockets_in_use() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let used = text.lines().next().and_then(|line| line.split_whitespace().nth(2));
    used.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// What the kernel has complained of since the last test. Of the C driver it is shown alone.
fn complaints_outside(args: &Args, log: &mut Log, ktap: &mut Ktap) {
    for complaint in complaints(&log.lines()) {
        let problem = format!("outside of any test, the kernel complains: {complaint}");
        match args.driver {
            Driver::Rnbd => ktap.problem(&problem),
            Driver::Nbd => ktap.diagnostic(&problem),
        }
    }
}

/// An error here means that no further test can be run.
fn run_one(args: &Args, test: &'static Test, log: &mut Log, ktap: &mut Ktap) -> Result<()> {
    complaints_outside(args, log, ktap);
    mark(&format!("start {}", test.name));
    let start = Instant::now();
    if let Some(reason) = args.driver.unsuitable(test.params) {
        ktap.result(test.name, &Verdict::Skip(reason), Some(start.elapsed()));
        mark(&format!("end {}", test.name));
        return Ok(());
    }
    let before = Before::now();
    let mut problems = Vec::new();
    let mut verdict = Verdict::Pass;
    let loaded = match test.params {
        Some(params) if !args.driver.built_in() => args.driver.load(&args.modules, params),
        _ => Ok(()),
    };
    match loaded {
        Ok(()) => verdict = run_body(args, test, ktap, &mut problems)?,
        Err(error) => problems.push(format!("{error:#}")),
    }
    let cleaned = clean_up(args.driver, &before, &mut problems);
    if let Err(error) = &cleaned {
        problems.push(format!("{error:#}"));
    }
    let lines = log.lines();
    for complaint in complaints(&lines) {
        problems.push(format!("the kernel complains: {complaint}"));
    }
    let failed = !problems.is_empty() || verdict == Verdict::Fail;
    for problem in &problems {
        ktap.diagnostic(problem);
    }
    if failed {
        // The end of the log, without a line's repetitions.
        let mut told = lines.clone();
        told.dedup();
        for line in &told[told.len().saturating_sub(25)..] {
            ktap.diagnostic(&format!("log: {line}"));
        }
        verdict = Verdict::Fail;
    }
    if let (Driver::Nbd, Some(reason)) = (args.driver, test.known_on_nbd) {
        verdict = match verdict {
            Verdict::Fail => Verdict::KnownFailure(reason.to_owned()),
            Verdict::Pass => Verdict::KnownFailurePassed(reason.to_owned()),
            other => other,
        };
    }
    ktap.result(test.name, &verdict, Some(start.elapsed()));
    mark(&format!("end {}", test.name));
    cleaned
}

fn run_body(args: &Args, test: &Test, ktap: &Ktap, problems: &mut Vec<String>) -> Result<Verdict> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("body").arg(test.name).arg("--driver").arg(args.driver.module());
    command.arg("--modules").arg(&args.modules);
    if args.selection.quick {
        command.arg("--quick");
    }
    if args.selection.soak {
        command.arg("--soak");
    }
    let (reader, writer) = pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("start the test's process")?;
    // The command holds our copies of the pipe's write end.
    drop(command);
    let lines = read_lines(reader);
    // What takes a number of rounds instead takes longer than that on a busy machine.
    let soaked = if args.selection.soak { 3 * tests::SOAK_SECONDS } else { 0 };
    let limit = patient(test.limit) + Duration::from_secs(soaked);
    let pid = child.id() as i32;
    let mut status = None;
    let ended = wait_for_within(limit, "the test to end", || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if ended.is_err() {
        problems.push(format!("not done after {} s; its tasks:", limit.as_secs()));
        problems.push(describe_task(pid));
        for (task, ..) in descendants(pid) {
            problems.push(describe_task(task));
        }
        kill_all(pid);
        let _ = child.kill();
        if wait_for("it to die", || child.try_wait().is_ok_and(|s| s.is_some())).is_err() {
            // What cannot be killed keeps the driver from being unloaded: that ends the run, after this result.
            problems.push(format!("cannot be killed:\n{}", describe_task(pid)));
        }
    }
    // Orphans of the test may still hold the pipe: what they have to say does not matter.
    let mut output: Vec<String> = Vec::new();
    while let Ok(line) = lines.recv_timeout(Duration::from_millis(300)) {
        output.push(line);
    }
    let skipped = match output.last() {
        Some(line) if line.starts_with(SKIP_MARK) => output.pop(),
        _ => None,
    };
    for line in output {
        ktap.diagnostic(&line);
    }
    Ok(match (status.and_then(|status| status.code()), skipped) {
        (Some(0), _) => Verdict::Pass,
        (Some(code), Some(reason)) if code == i32::from(SKIPPED) => {
            Verdict::Skip(reason[SKIP_MARK.len()..].to_owned())
        }
        (Some(1), _) => Verdict::Fail,
        _ => {
            problems.push(format!("the test's process ended as {status:?}"));
            Verdict::Fail
        }
    })
}

fn read_lines(reader: fs::File) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn kill_all(root: i32) {
    for (pid, ..) in descendants(root) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Ends what the test left running, unloads the driver and looks for what remains. An error means that the
/// driver cannot be unloaded, so that nothing more can be run.
pub fn clean_up(driver: Driver, before: &Before, problems: &mut Vec<String>) -> Result<()> {
    let me = std::process::id() as i32;
    let reaped = wait_for("left-over processes to die", || {
        kill_all(me);
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
        descendants(me).is_empty()
    });
    if let Err(error) = reaped {
        problems.push(format!("{error:#}"));
        for (pid, ..) in descendants(me) {
            problems.push(describe_task(pid));
        }
    }
    detach_all();
    for driver in [driver, driver.other()] {
        if driver.loaded() {
            unload(driver)?;
        }
    }
    // What is built in stays, with its devices.
    let gone = || if driver.built_in() { Vec::new() } else { leftovers() };
    let mut left = Vec::new();
    let clean = wait_for("nothing to be left of the driver", || {
        left = gone();
        left.is_empty()
    });
    if clean.is_err() {
        problems.push(format!("left after unloading: {}", left.join(", ")));
    }
    let released = wait_for("sockets to be released", || sockets_in_use() <= before.sockets);
    if released.is_err() {
        problems.push(format!("sockets in use: {} before, {} after", before.sockets, sockets_in_use()));
    }
    Ok(())
}

/// Ends what was attached by netlink: no process does so with its end. What goes wrong is seen when the driver is to
/// be unloaded. A child does it, for a driver that hangs would hang this process too.
fn detach_all() {
    let child = fork_child(&[], |_| {
        let client = Client::open()?;
        let devices = client.status(None)?.unwrap_or_default();
        for device in devices.iter().filter(|device| device.connected != 0) {
            let _ = client.disconnect(device.index)?;
        }
        Ok(())
    });
    if let Ok(mut child) = child {
        let _ = child.wait();
    }
}

fn unload(driver: Driver) -> Result<()> {
    let mut result = Ok(());
    wait_for(&format!("{} to be unloaded", driver.module()), || {
        result = driver.remove();
        result.is_ok()
    })
    .with_context(|| format!("rmmod {}: {result:?}", driver.module()))
}

/// The process that runs one test's body.
pub fn body(args: BodyArgs) -> Result<ExitCode> {
    let test = tests::all().find(|test| test.name == args.name).context("no such test")?;
    let scratch = std::env::temp_dir().join("rnbd-test");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    let context = TestContext {
        driver: args.driver,
        modules: args.modules,
        quick: args.quick,
        soak: args.soak,
        scratch: scratch.clone(),
    };
    let result = (test.body)(&context);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => {
                println!("{SKIP_MARK}{skip}");
                ExitCode::from(SKIPPED)
            }
            None => {
                println!("{ERROR_MARK}{error:#}");
                ExitCode::FAILURE
            }
        },
    };
    let _ = fs::remove_dir_all(&scratch);
    Ok(code)
}
