// SPDX-License-Identifier: GPL-2.0
//! The process that sets a device up, or has attached it.

use std::fmt;
use std::fs;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::Serialize;

/// A process, as the driver knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owner {
    pub pid: i32,
    /// Its name; empty if that is not known.
    pub comm: String,
    /// None if that cannot be found out.
    pub alive: Option<bool>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.comm.as_str() {
            "" => write!(f, "{}", self.pid),
            comm => write!(f, "{} ({comm})", self.pid),
        }
    }
}

impl Owner {
    /// Looks whether the process is alive. The number alone may be another one's by now, and so the name counts too.
    pub fn of(pid: i32, comm: String) -> Owner {
        let alive = if in_initial_namespace() { Some(lives(pid, &comm)) } else { None };
        Owner { pid, comm, alive }
    }
}

/// The driver tells numbers of the initial pid namespace.
fn in_initial_namespace() -> bool {
    // PROC_PID_INIT_INO
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

fn lives(pid: i32, comm: &str) -> bool {
    // Answers also where /proc hides other users' processes.
    if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return false;
    }
    let Ok(stat) = procfs::process::Process::new(pid).and_then(|process| process.stat()) else { return true };
    // A zombie with threads is one whose first thread has ended, and no more.
    let ended = stat.state == 'Z' && stat.num_threads <= 1;
    !ended && (comm.is_empty() || stat.comm == comm)
}

/// What a process is called; empty if it is gone.
pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|text| text.trim_end().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_told_from_the_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        while comm(pid) != "sleep" {
            std::thread::yield_now();
        }
        assert!(lives(pid, "sleep"));
        assert!(lives(pid, ""));
        assert!(!lives(pid, "another"), "a number that was given out again");
        child.kill().unwrap();
        // Not reaped yet: a zombie.
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(Pid::from_raw(pid)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        assert!(!lives(pid, "sleep"));
        child.wait().unwrap();
        assert!(!lives(pid, "sleep"));
    }
}
