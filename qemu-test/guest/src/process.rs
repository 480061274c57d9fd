// SPDX-License-Identifier: GPL-2.0
//! Helper processes: forked children that do something and die, real programs with a time bound, and what is
//! to be told of tasks that hang.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Bound of every wait for a condition: far above what any of them takes, even under emulation.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| patient(20));

/// This many seconds, and more in a kernel that the harness knows to be slow: bounds alone are to be made so.
pub fn patient(seconds: u64) -> Duration {
    let factor = std::env::var("RNBD_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    Duration::from_secs(seconds * factor.unwrap_or(1))
}

pub fn wait_for(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    wait_for_within(*PATIENCE, what, condition)
}

pub fn wait_for_within(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < bound, "waited {} s for {what}, in vain", bound.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A pipe's two ends (read, write), closed on exec.
pub fn pipe() -> Result<(fs::File, fs::File)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// A forked child. Killed and reaped when dropped.
pub struct Child {
    pid: Pid,
    status: Option<WaitStatus>,
    ready: fs::File,
}

/// What a child uses to tell its parent how far it has come.
pub struct Ready(fs::File);

impl Ready {
    pub fn tell(&mut self, text: &str) -> Result<()> {
        writeln!(self.0, "{text}")?;
        Ok(())
    }
}

/// Forks a child that runs `body` and exits. Of the parent's descriptors it keeps only `keep` and 0 to 2, so
/// that it does not hold a socket or a device open by accident.
pub fn fork_child(keep: &[RawFd], body: impl FnOnce(&mut Ready) -> Result<()>) -> Result<Child> {
    let (reader, writer) = pipe()?;
    // SAFETY: the child runs our own code, which takes no lock that another thread may hold but the
    // allocator's, and glibc makes that one usable after fork.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Child { pid: child, status: None, ready: reader }),
        ForkResult::Child => {
            let mut kept: Vec<RawFd> = keep.to_vec();
            kept.push(writer.as_raw_fd());
            close_all_but(&kept);
            let mut ready = Ready(writer);
            let code = match body(&mut ready) {
                Ok(()) => 0,
                Err(error) => {
                    let _ = ready.tell(&format!("error: {error:#}"));
                    1
                }
            };
            // SAFETY: ends the child at once, without running the parent's destructors.
            unsafe { libc::_exit(code) }
        }
    }
}

fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| *fd as u32).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: closes descriptors that the child does not use.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

impl Child {
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The next line that the child tells.
    pub fn next_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            let mut poll =
                [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&self.ready), nix::poll::PollFlags::POLLIN)];
            let bound = nix::poll::PollTimeout::try_from(*PATIENCE)?;
            ensure!(nix::poll::poll(&mut poll, bound)? > 0, "child {} says nothing", self.pid);
            ensure!(self.ready.read(&mut byte)? == 1, "child {} ended early", self.pid);
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        match line.strip_prefix("error: ") {
            Some(error) => bail!("child {}: {error}", self.pid),
            None => Ok(line),
        }
    }

    pub fn expect_line(&mut self, want: &str) -> Result<()> {
        let line = self.next_line()?;
        ensure!(line == want, "child {} said {line:?}, not {want:?}", self.pid);
        Ok(())
    }

    pub fn ended(&mut self) -> bool {
        if self.status.is_none() {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(status) => self.status = Some(status),
                Err(_) => self.status = Some(WaitStatus::Exited(self.pid, -1)),
            }
        }
        self.status.is_some()
    }

    pub fn wait(&mut self) -> Result<WaitStatus> {
        let pid = self.pid;
        wait_for(&format!("child {pid} to end"), || self.ended())
            .with_context(|| describe_task(pid.as_raw()))?;
        self.status.ok_or_else(|| anyhow!("no status of child {pid}"))
    }

    /// Waits for the end, and leaves the process a zombie: the kernel keeps its task, so that no new process gets the
    /// same one.
    pub fn wait_unreaped(&mut self) -> Result<()> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        wait_for(&format!("child {} to end", self.pid), || {
            !matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive))
        })
    }

    /// Waits, and fails with the child's own message when it did.
    pub fn success(&mut self) -> Result<()> {
        let status = self.wait()?;
        if matches!(status, WaitStatus::Exited(_, 0)) {
            return Ok(());
        }
        let mut rest = String::new();
        let _ = self.ready.read_to_string(&mut rest);
        bail!("child {} ended as {status:?}: {}", self.pid, rest.trim());
    }

    pub fn kill(&mut self) -> Result<()> {
        if !self.ended() {
            kill(self.pid, Signal::SIGKILL)?;
            self.wait()?;
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A process that holds `path` open and does nothing else, like the stuck `blkid` of the incident.
pub fn hold_open(path: impl AsRef<std::path::Path>) -> Result<Child> {
    let path = path.as_ref().to_owned();
    let mut child = fork_child(&[], move |ready| {
        let _held = fs::File::open(&path)?;
        ready.tell("held")?;
        loop {
            nix::unistd::pause();
        }
    })?;
    child.expect_line("held")?;
    Ok(child)
}

/// Runs a program to its end within `bound`; its output is returned whatever its exit status.
pub fn run_within(bound: Duration, command: &mut Command) -> Result<Output> {
    let name = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let mut status = None;
    let waited = wait_for_within(bound, &format!("{name} to end"), || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if let Err(error) = waited {
        let told = describe_task(child.id() as i32);
        let _ = child.kill();
        return Err(error.context(told));
    }
    let status = status.ok_or_else(|| anyhow!("no status of {name}"))?;
    // A daemon that the program left behind may keep the pipes open: wait only a moment for them.
    let take = |output: std::sync::mpsc::Receiver<Vec<u8>>| {
        let mut text = Vec::new();
        while let Ok(part) = output.recv_timeout(Duration::from_millis(500)) {
            text.extend(part);
        }
        text
    };
    Ok(Output { status, stdout: take(stdout), stderr: take(stderr) })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count) = pipe.read(&mut part) {
                if count == 0 || sender.send(part[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    receiver
}

/// Runs a program that must succeed; its standard output is returned.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = run_within(patient(90), Command::new(program).args(args))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        args.join(" "),
        output.status,
        stdout,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(stdout)
}

/// True when `program` is in PATH.
pub fn have(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|dir| std::path::Path::new(dir).join(program).exists())
}

/// State, wait channel and kernel stack of every thread of a process, for the report of a hang.
pub fn describe_task(pid: i32) -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return format!("process {pid} is gone");
    };
    for task in tasks.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        text += &format!(
            "task {} ({}) state {} wchan {}\n",
            task.file_name().to_string_lossy(),
            read("comm").trim(),
            task_state(&read("stat")),
            read("wchan").trim()
        );
        for line in read("stack").lines().take(12) {
            text += &format!("    {line}\n");
        }
    }
    text.trim_end().to_owned()
}

fn task_state(stat: &str) -> char {
    // The name in parentheses may hold anything, so look behind its last closing one.
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).unwrap_or('?')
}

/// (pid, parent, name, state) of all processes.
pub fn processes() -> Vec<(i32, i32, String, char)> {
    let mut list = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let name = stat
            .split_once('(')
            .and_then(|(_, rest)| rest.rsplit_once(')'))
            .map_or(String::new(), |(name, _)| name.to_owned());
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
            .unwrap_or(0);
        list.push((pid, parent, name, task_state(&stat)));
    }
    list
}

/// Every descendant of `root`, children first.
pub fn descendants(root: i32) -> Vec<(i32, String, char)> {
    let all = processes();
    let mut found: Vec<(i32, String, char)> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for (pid, its_parent, name, state) in &all {
            if *its_parent == parent {
                found.push((*pid, name.clone(), *state));
                parents.push(*pid);
            }
        }
    }
    found
}

/// Has this process handle a signal, by doing nothing: a wait that signals interrupt ends with EINTR, or is begun again
/// where `flags` say so.
pub fn handle(signal: Signal, flags: SaFlags) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), flags, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// SIGALRM to this process as often as that, with a handler: a wait that signals interrupt ends with EINTR, or is begun
/// again where `flags` say so. Where the time is short a slow machine does nothing else.
pub fn alarm_storm(microseconds: libc::suseconds_t, flags: SaFlags) -> Result<()> {
    handle(Signal::SIGALRM, flags)?;
    let every = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the timer is read only, the old one is not asked for.
    let result = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    Errno::result(result)?;
    Ok(())
}
