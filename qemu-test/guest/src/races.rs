// SPDX-License-Identifier: GPL-2.0
//! Data races, as the kernel's detector (KCSAN) sees them. Each is reported in the log, where it is looked at; here is
//! whether it has looked at all.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

const CONTROL: &str = "/sys/kernel/debug/kcsan";

/// What is looked at from here on.
pub struct Races {
    watched: u64,
    seen: u64,
}

/// One of the detector's numbers.
fn number(text: &str, name: &str) -> Result<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.with_context(|| format!("{CONTROL} tells no {name}"))?.parse().context(CONTROL)
}

impl Races {
    fn now(text: &str) -> Result<Races> {
        Ok(Races { watched: number(text, "setup_watchpoints")?, seen: number(text, "data_races")? })
    }

    /// Begins to count; none, if this kernel has no such detector.
    pub fn watch() -> Result<Option<Races>> {
        match fs::read_to_string(CONTROL) {
            Ok(text) => Races::now(&text).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(CONTROL),
        }
    }

    /// How much was looked at, and what is wrong with that.
    pub fn summary(&self) -> Result<(String, Vec<String>)> {
        let text = fs::read_to_string(CONTROL).context(CONTROL)?;
        let now = Races::now(&text)?;
        let (watched, seen) = (now.watched - self.watched, now.seen - self.seen);
        let mut wrong = Vec::new();
        if number(&text, "enabled")? == 0 {
            wrong.push("the kernel does not look for data races: KCSAN is turned off".to_owned());
        }
        if watched == 0 {
            wrong.push("the kernel has watched nothing".to_owned());
        }
        // The first words are those that the harness shows, and adds up.
        Ok((format!("tried: {watched} watched places ({seen} races in all of the kernel)"), wrong))
    }
}
