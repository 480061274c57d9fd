// SPDX-License-Identifier: GPL-2.0
//! Filesystems on the device, and their mounts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::process::run;
use crate::tests::Context;

/// A mounted filesystem, unmounted when dropped, whatever happened.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(context: &Context, device: &Path, kind: &str) -> Result<Mounted> {
        let dir = context.scratch.join("mnt");
        std::fs::create_dir_all(&dir)?;
        mount(Some(device), &dir, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind}"))?;
        Ok(Mounted(dir))
    }

    /// Where a file of it is.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    pub fn unmount(self) -> Result<()> {
        umount2(&self.0, MntFlags::empty()).context("umount")?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Makes an ext4 without work of its own in the background.
pub fn mkfs_ext4(device: &str) -> Result<()> {
    let calm = "lazy_itable_init=0,lazy_journal_init=0";
    run("mkfs.ext4", &["-q", "-F", "-E", calm, device]).map(drop)
}
