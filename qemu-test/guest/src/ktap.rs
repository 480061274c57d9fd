// SPDX-License-Identifier: GPL-2.0
//! KTAP, as `Documentation/dev-tools/ktap.rst` has it, on standard output.

use std::io::Write;
use std::time::Duration;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail,
    Skip(String),
    /// It fails on this driver for a known reason, and did.
    KnownFailure(String),
    /// It should have failed on this driver, and did not.
    KnownFailurePassed(String),
}

pub struct Ktap {
    number: usize,
    failed: usize,
    problems: usize,
}

impl Ktap {
    pub fn begin(plan: usize) -> Ktap {
        say("KTAP version 1");
        say(&format!("1..{plan}"));
        Ktap { number: 0, failed: 0, problems: 0 }
    }

    pub fn diagnostic(&self, text: &str) {
        for line in text.lines() {
            say(&format!("# {line}"));
        }
    }

    /// The result of a check that passes if there are no problems.
    pub fn judge(&mut self, name: &str, problems: &[String]) {
        problems.iter().for_each(|problem| self.diagnostic(problem));
        let verdict = if problems.is_empty() { Verdict::Pass } else { Verdict::Fail };
        self.result(name, &verdict, None);
    }

    pub fn result(&mut self, name: &str, verdict: &Verdict, time: Option<Duration>) {
        self.number += 1;
        let (word, directive) = match verdict {
            Verdict::Pass => ("ok", String::new()),
            Verdict::Fail => ("not ok", String::new()),
            Verdict::Skip(reason) => ("ok", format!(" SKIP {reason}")),
            Verdict::KnownFailure(reason) => ("not ok", format!(" TODO {reason}")),
            Verdict::KnownFailurePassed(reason) => ("ok", format!(" TODO passed, though: {reason}")),
        };
        if *verdict == Verdict::Fail {
            self.failed += 1;
        }
        let time = time.map(|time| format!(" time={}ms", time.as_millis())).unwrap_or_default();
        say(&format!("{word} {} - {name} #{directive}{time}", self.number));
    }

    /// What is wrong, though it is no test's.
    pub fn problem(&mut self, text: &str) {
        self.problems += 1;
        self.diagnostic(text);
    }

    pub fn bail_out(&self, why: &str) {
        say(&format!("Bail out! {why}"));
    }

    /// True when no test has failed, and nothing else was wrong.
    pub fn all_good(&self) -> bool {
        self.failed == 0 && self.problems == 0
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever reads has gone: the exit status still tells the result.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
