// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading of the driver, with the raw errno.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module, init_module};

pub use crate::demo::Driver;

/// Why a test of loading and unloading skips.
pub const BUILT_IN: &str = "built in: there is no module to load or unload";

impl Driver {
    /// The module's name, as in `/sys/module`.
    pub fn module(self) -> &'static str {
        match self {
            Driver::Rnbd => "rnbd",
            Driver::Nbd => "nbd",
        }
    }

    /// The module's file in `dir`.
    pub fn file(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.ko", self.module()))
    }

    /// The driver that is not this one.
    pub fn other(self) -> Driver {
        match self {
            Driver::Rnbd => Driver::Nbd,
            Driver::Nbd => Driver::Rnbd,
        }
    }

    pub fn loaded(self) -> bool {
        Path::new("/sys/module").join(self.module()).join("initstate").exists()
    }

    /// Whether it is part of the kernel: it is always there then, and is neither loaded nor unloaded.
    pub fn built_in(self) -> bool {
        let here = Path::new("/sys/module").join(self.module());
        here.join("parameters").exists() && !here.join("initstate").exists()
    }

    /// Why a test that wants these parameters, or to load the driver itself, cannot be run with one that is built in.
    pub fn unsuitable(self, params: Option<&str>) -> Option<String> {
        if !self.built_in() {
            return None;
        }
        let Some(params) = params else { return Some(BUILT_IN.to_owned()) };
        let differs = params.split_whitespace().find(|param| match param.split_once('=') {
            Some((name, value)) => self.parameter(name).as_deref() != Some(value),
            None => true,
        })?;
        Some(format!("built in, and the kernel was not booted with {}.{differs}", self.module()))
    }

    /// `insmod`. The outer error is ours (no such file), the inner one the kernel's.
    pub fn insert(self, dir: &Path, params: &str) -> Result<Result<(), Errno>> {
        let path = self.file(dir);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let params = CString::new(params)?;
        Ok(finit_module(&file, &params, ModuleInitFlags::empty()))
    }

    /// The same with the file's content: nothing is allocated to read it.
    pub fn insert_image(self, image: &[u8], params: &str) -> Result<Result<(), Errno>> {
        Ok(init_module(image, &CString::new(params)?))
    }

    pub fn load(self, dir: &Path, params: &str) -> Result<()> {
        self.insert(dir, params)?
            .map_err(|errno| anyhow!("loading {}.ko with {params:?}: {errno}", self.module()))
    }

    /// `rmmod`, without waiting.
    pub fn remove(self) -> Result<(), Errno> {
        let name = CString::new(self.module()).map_err(|_| Errno::EINVAL)?;
        delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
    }

    /// A module parameter as sysfs shows it.
    pub fn parameter(self, name: &str) -> Option<String> {
        let path = format!("/sys/module/{}/parameters/{name}", self.module());
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    }
}

/// What an unloaded driver must not leave behind; empty when all is clean.
pub fn leftovers() -> Vec<String> {
    let mut left = Vec::new();
    let mut list = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if wanted(&name) {
                left.push(format!("{dir}/{name}"));
            }
        }
    };
    let is_nbd = |name: &str| name.starts_with("nbd");
    list("/sys/block", &is_nbd);
    list("/sys/class/block", &is_nbd);
    list("/sys/kernel/debug", &is_nbd);
    list("/sys/kernel/debug/block", &is_nbd);
    list("/sys/class/bdi", &|name| name.starts_with("43:"));
    if fs::read_to_string("/proc/devices").is_ok_and(|text| text.contains(" 43 nbd")) {
        left.push("major 43 in /proc/devices".to_owned());
    }
    for (pid, _, name, _) in crate::process::processes() {
        if is_nbd(&name) && fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            left.push(format!("kernel thread {pid} ({name})"));
        }
    }
    left
}
