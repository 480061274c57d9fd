// SPDX-License-Identifier: GPL-2.0
//! The demo's lines.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::kmsg::mark;

/// A step: what is done, and with what result.
pub fn step(what: &str, body: impl FnOnce() -> Result<String>) -> Result<()> {
    mark(&format!("start {what}"));
    let start = Instant::now();
    let result = body();
    let time = start.elapsed().as_secs_f64();
    mark(&format!("end {what}"));
    let (word, outcome) = match &result {
        Ok(outcome) => ("ok  ", outcome.as_str()),
        Err(_) => ("FAIL", ""),
    };
    say(&format!("  {word}   {what:<46} {outcome:<31} {time:>5.1} s"));
    result.map(drop).with_context(|| what.to_owned())
}

/// A line between steps.
pub fn title(text: &str) {
    say(text);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever reads has gone: the exit status still tells the result.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
