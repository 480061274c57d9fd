// SPDX-License-Identifier: GPL-2.0
//! A process with the device open that does, step by step, what a test tells it: so that a test can have several
//! processes set a device up in an order of its choice.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use crate::device::{Device, raw_ioctl, req};
use crate::process::{Child, PATIENCE, describe_task, fork_child, processes, wait_for};

pub struct Puppet {
    pid: i32,
    control: BufReader<UnixStream>,
    /// Where a process that it forks listens: our end.
    next: Option<UnixStream>,
    /// Set when it is a child of ours, to be reaped.
    child: Option<Child>,
}

/// What an ioctl gave.
pub type Answer = Result<i32, Errno>;

impl Puppet {
    /// What the kernel knows its process as.
    pub const COMM: &'static str = "puppet";

    /// A process that has opened `/dev/nbdN` and holds `sockets`.
    pub fn new(index: u32, sockets: &[RawFd]) -> Result<Puppet> {
        let (ours, theirs) = UnixStream::pair()?;
        let (next, its_next) = UnixStream::pair()?;
        let mut keep = sockets.to_vec();
        keep.extend([theirs.as_raw_fd(), its_next.as_raw_fd()]);
        let child = fork_child(&keep, |_| obey(&Device::open(index)?, theirs, Some(its_next)))?;
        Puppet::greet(ours, Some(next), Some(child))
    }

    fn greet(control: UnixStream, next: Option<UnixStream>, child: Option<Child>) -> Result<Puppet> {
        control.set_read_timeout(Some(*PATIENCE))?;
        let mut puppet = Puppet { pid: 0, control: BufReader::new(control), next, child };
        puppet.pid = puppet.answer().context("a new process")?.parse()?;
        Ok(puppet)
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.control.get_mut(), "{line}").with_context(|| format!("tell process {}", self.pid))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.control.read_line(&mut line);
        let count = read.with_context(|| describe_task(self.pid))?;
        ensure!(count > 0, "process {} has ended", self.pid);
        Ok(line.trim_end().to_owned())
    }

    pub fn ioctl(&mut self, cmd: u32, arg: u64) -> Result<Answer> {
        self.begin(cmd, arg)?;
        self.finish()
    }

    /// Has it start an ioctl that may take long.
    pub fn begin(&mut self, cmd: u32, arg: u64) -> Result<()> {
        self.tell(&format!("ioctl {cmd} {arg}"))
    }

    /// True when that has ended.
    pub fn has_answered(&self) -> Result<bool> {
        let mut poll = [PollFd::new(self.control.get_ref().as_fd(), PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut poll, PollTimeout::ZERO)? > 0)
    }

    /// Waits for the end of that.
    pub fn finish(&mut self) -> Result<Answer> {
        let value: i32 = self.answer()?.parse()?;
        Ok(if value < 0 { Err(Errno::from_raw(-value)) } else { Ok(value) })
    }

    /// Has a thread of its own make an ioctl.
    pub fn ioctl_in_thread(&mut self, cmd: u32, arg: u64) -> Result<Answer> {
        self.tell(&format!("thread {cmd} {arg}"))?;
        self.finish()
    }

    /// The thread that the process began with ends; another one obeys from now on.
    pub fn lose_leader(&mut self) -> Result<()> {
        self.tell("lose-leader 0 0")?;
        self.answer().map(drop)
    }

    /// NBD_SET_SOCK, NBD_SET_BLKSIZE of 512, NBD_SET_SIZE_BLOCKS. The first errno is returned.
    pub fn set_up(&mut self, socket: RawFd, size: u64) -> Result<Answer> {
        for (cmd, arg) in
            [(req::SET_SOCK, socket as u64), (req::SET_BLKSIZE, 512), (req::SET_SIZE_BLOCKS, size / 512)]
        {
            let answer = self.ioctl(cmd, arg)?;
            if answer.is_err() {
                return Ok(answer);
            }
        }
        Ok(Ok(0))
    }

    /// Has it fork, once. The new process shares its open files.
    pub fn fork(&mut self) -> Result<Puppet> {
        let Some(next) = self.next.take() else { bail!("process {} has forked already", self.pid) };
        self.tell("fork 0 0")?;
        Puppet::greet(next, None, None)
    }

    /// Kills it and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        match &mut self.child {
            Some(child) => child.kill(),
            None => {
                // No child of ours: who reaps it is another's affair.
                let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
                let pid = self.pid;
                wait_for(&format!("process {pid} to die"), || {
                    !processes().iter().any(|process| process.0 == pid && process.3 != 'Z')
                })
            }
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The process's side: reads orders until the test closes its end.
fn obey(device: &Device, control: UnixStream, mut next: Option<UnixStream>) -> Result<()> {
    std::fs::write("/proc/self/comm", Puppet::COMM)?;
    let mut control = BufReader::new(control);
    writeln!(control.get_mut(), "{}", getpid())?;
    loop {
        let mut line = String::new();
        if control.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let order = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0u64);
        let (cmd, arg) = (number() as u32, number());
        let fd = device.fd();
        let ask = move || match raw_ioctl(fd, cmd, arg) {
            Ok(value) => value,
            Err(errno) => -(errno as i32),
        };
        let value = match order {
            "ioctl" => ask(),
            "thread" => std::thread::spawn(ask).join().unwrap_or(-1),
            "fork" => {
                let Some(theirs) = next.take() else { bail!("no end for a second fork") };
                // SAFETY: this process has one thread, which goes on in both.
                if let ForkResult::Child = unsafe { fork() }? {
                    control = BufReader::new(theirs);
                    writeln!(control.get_mut(), "{}", getpid())?;
                }
                continue;
            }
            "lose-leader" => {
                let device = device.same_open()?;
                let first = format!("/proc/self/task/{}/stat", getpid());
                std::thread::spawn(move || {
                    let dead = || std::fs::read_to_string(&first).map_or(true, |stat| stat.contains(") Z "));
                    let _ = wait_for("the first thread to end", dead);
                    let _ = obey(&device, control.into_inner(), None);
                    std::process::exit(0);
                });
                // SAFETY: ends this thread alone. Its stack is not used by the other one.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
                unreachable!("exit returned");
            }
            other => bail!("unknown order {other}"),
        };
        writeln!(control.get_mut(), "{value}")?;
    }
}
