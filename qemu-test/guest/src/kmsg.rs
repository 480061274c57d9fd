// SPDX-License-Identifier: GPL-2.0
//! The kernel log: marks written to it, lines read from it, complaints looked for.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

#[path = "../../reports.rs"]
mod reports;

use reports::{REPORTS, Race, Side};

/// A reader that starts at the log's present end.
pub struct Log(File);

impl Log {
    pub fn from_now() -> Result<Log> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("open /dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Log(file))
    }

    /// The messages that have come since the last call, without their prefix.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(count) => {
                    let text = String::from_utf8_lossy(&record[..count]);
                    let message = text.split_once(';').map_or(&*text, |(_, message)| message);
                    lines.push(message.lines().next().unwrap_or_default().to_owned());
                }
                // Messages were overwritten before we read them: go on behind the gap.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return lines,
            }
        }
    }
}

/// Those of `lines` that are complaints of the kernel.
pub fn complaints(lines: &[String]) -> Vec<&String> {
    // Our own marks hold the tests' names, which may be anything.
    let ours = |line: &str| line.starts_with("rnbd-test: ");
    let complains = |line: &str| REPORTS.iter().any(|complaint| line.contains(complaint));
    let mut race: Option<(&String, Race)> = None;
    let mut found = Vec::new();
    for line in lines.iter().filter(|line| !ours(line)) {
        match (Race::begins(line), &mut race) {
            (Some(begun), _) => race = Some((line, begun)),
            (None, Some((head, open))) => match open.line(line) {
                Side::Unknown => {}
                Side::Ours => {
                    found.push(*head);
                    race = None;
                }
                Side::Theirs => race = None,
            },
            (None, None) if complains(line) => found.push(line),
            (None, None) => {}
        }
    }
    found
}

/// Writes a line to the kernel log, so that the console shows which test was running.
pub fn mark(text: &str) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record.
        let _ = kmsg.write_all(format!("<5>rnbd-test: {text}\n").as_bytes());
    }
}
