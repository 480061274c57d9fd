// SPDX-License-Identifier: GPL-2.0
//! What the kernel's fault injection makes fail. Needs a kernel that has it (`make test DEBUG=1`).

mod allocation;
mod io;
mod openers;
mod threads;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Test, skip};

pub const TESTS: [&[Test]; 4] = [allocation::TESTS, openers::TESTS, io::TESTS, threads::TESTS];

/// A kind of fault, as debugfs shows it. Nothing fails until it is told to, and nothing any more when this is dropped.
struct Fault(PathBuf);

impl Fault {
    /// Skips the test where this kernel has none of the kind.
    fn new(name: &str) -> Result<Fault> {
        let folder = PathBuf::from("/sys/kernel/debug").join(name);
        if !folder.exists() {
            return skip(format!("this kernel has no {name}"));
        }
        let fault = Fault(folder);
        // No trace of the stack each time.
        fault.set("verbose", "0")?;
        Ok(fault)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
    }

    fn get(&self, file: &str) -> Result<String> {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// From now on each time with this probability, but not more often than so many times.
    fn arm(&self, percent: u32, times: i32) -> Result<()> {
        self.set("times", &times.to_string())?;
        self.set("probability", &percent.to_string())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        let _ = self.set("probability", "0");
    }
}

/// Allocations: also those that may wait, as most do, and those of single pages.
fn allocations() -> Result<[Fault; 2]> {
    let slab = Fault::new("failslab")?;
    slab.set("ignore-gfp-wait", "N")?;
    let pages = Fault::new("fail_page_alloc")?;
    pages.set("ignore-gfp-wait", "N")?;
    pages.set("ignore-gfp-highmem", "N")?;
    pages.set("min-order", "0")?;
    Ok([slab, pages])
}
