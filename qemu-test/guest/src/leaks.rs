// SPDX-License-Identifier: GPL-2.0
//! Memory that nobody has a pointer to any more, as the kernel's leak detector (kmemleak) sees it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::{Context, Result};

const CONTROL: &str = "/sys/kernel/debug/kmemleak";

/// The detector leaves younger memory alone, for its pointer may still be in a register.
const AGE: Duration = Duration::from_secs(6);

/// Lines of a report that are shown: a few objects with their stacks.
const SHOWN: usize = 80;

/// Never makes the file: where it is absent, debugfs would refuse that as forbidden, not as not found.
fn order(text: &str) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(CONTROL)?.write_all(text.as_bytes())
}

/// What is lost from here on.
pub struct Leaks;

impl Leaks {
    /// Begins to watch; none, if this kernel has no leak detector.
    pub fn watch() -> Result<Option<Leaks>> {
        // What the kernel lost before is not ours.
        match order("scan").and_then(|()| order("clear")) {
            Ok(()) => Ok(Some(Leaks)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("kmemleak"),
        }
    }

    /// What was lost since, a paragraph an object.
    pub fn found(&self) -> Result<Vec<String>> {
        let mut report = String::new();
        // A lost object counts when two looks in a row have found it so.
        for _ in 0..2 {
            std::thread::sleep(AGE);
            order("scan").context("kmemleak: scan")?;
            report = fs::read_to_string(CONTROL).context("kmemleak")?;
            if report.is_empty() {
                break;
            }
        }
        let objects = report.lines().filter(|line| line.starts_with("unreferenced object")).count();
        let mut told: Vec<String> = report.lines().take(SHOWN).map(str::to_owned).collect();
        if objects > 0 {
            told.insert(0, format!("{objects} objects were lost:"));
        }
        Ok(told)
    }
}
