// SPDX-License-Identifier: GPL-2.0
//! Swap on the device.

use anyhow::Result;

use crate::process::run;

/// Swap on the device, off when dropped.
pub struct Swap;

impl Swap {
    pub fn on() -> Result<Swap> {
        run("mkswap", &["/dev/nbd0"])?;
        run("swapon", &["/dev/nbd0"])?;
        Ok(Swap)
    }

    pub fn off(self) -> Result<()> {
        std::mem::forget(self);
        run("swapoff", &["/dev/nbd0"]).map(drop)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = run("swapoff", &["/dev/nbd0"]);
    }
}
