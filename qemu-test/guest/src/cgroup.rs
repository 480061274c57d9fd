// SPDX-License-Identifier: GPL-2.0
//! Control groups of version 2, one for a test.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::process::wait_for;
use crate::tests::{Context, skip};

/// A group below the hierarchy's root; removed when dropped.
pub struct Cgroup {
    hierarchy: PathBuf,
    group: PathBuf,
}

impl Cgroup {
    /// A group with this controller; without one, if it is empty.
    pub fn new(context: &Context, controller: &str) -> Result<Cgroup> {
        let hierarchy = context.scratch.join("cgroup");
        fs::create_dir_all(&hierarchy)?;
        let none: Option<&str> = None;
        if let Err(errno) = mount(none, &hierarchy, Some("cgroup2"), MsFlags::empty(), none) {
            return skip(format!("this kernel has no cgroup2: {errno}"));
        }
        let group = hierarchy.join("rnbd-test");
        let cgroup = Cgroup { hierarchy, group };
        if !controller.is_empty() {
            let there = fs::read_to_string(cgroup.hierarchy.join("cgroup.controllers"))?;
            if !there.split_whitespace().any(|one| one == controller) {
                return skip(format!("there is no controller {controller}, but {}", there.trim()));
            }
            fs::write(cgroup.hierarchy.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        fs::create_dir(&cgroup.group).context("make a group")?;
        Ok(cgroup)
    }

    pub fn has(&self, file: &str) -> bool {
        self.group.join(file).exists()
    }

    pub fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.group.join(file), value).with_context(|| format!("{file} = {value}"))
    }

    /// Where a process writes its number to come in.
    pub fn door(&self) -> PathBuf {
        self.group.join("cgroup.procs")
    }

    pub fn add(&self, pid: i32) -> Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    /// Stops all that is in it, and waits until that is so, or that it goes on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let state = u8::from(frozen);
        self.set("cgroup.freeze", &state.to_string())?;
        let want = format!("frozen {state}");
        let events = self.group.join("cgroup.events");
        wait_for(&want, || {
            fs::read_to_string(&events).is_ok_and(|text| text.lines().any(|line| line == want))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is still in it goes to the root.
        let procs = fs::read_to_string(self.door()).unwrap_or_default();
        for pid in procs.lines() {
            let _ = fs::write(self.hierarchy.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
        let _ = umount2(&self.hierarchy, MntFlags::MNT_DETACH);
    }
}
