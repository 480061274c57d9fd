// SPDX-License-Identifier: GPL-2.0
//! What a run of tests came to: collects results, judges, prints for people, writes JSON for programs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::boot::{End, Outcome};
use crate::complaint::Complaint;
use crate::ktap::{Event, Parser, Status, TestResult};
use crate::terminal::{Terminal, seconds};

/// One boot's tests on one driver.
#[derive(Serialize)]
pub struct Report {
    driver: String,
    release: String,
    boot_milliseconds: u64,
    tests: Vec<TestResult>,
    /// What is wrong with the run as a whole.
    problems: Vec<String>,
    complaints: Vec<Complaint>,
    /// The C driver is run to see what it does: what its kernel says is shown, and fails nothing.
    complaints_allowed: bool,
    #[serde(skip)]
    plan: Option<usize>,
    #[serde(skip)]
    parser: Parser,
}

impl Report {
    /// An empty report.
    pub fn new(driver: &str, complaints_allowed: bool) -> Report {
        Report {
            driver: driver.to_owned(),
            release: String::new(),
            boot_milliseconds: 0,
            tests: Vec::new(),
            problems: Vec::new(),
            complaints: Vec::new(),
            complaints_allowed,
            plan: None,
            parser: Parser::default(),
        }
    }

    /// The guest is up.
    pub fn started(&mut self, after: Duration, release: &str) {
        self.release = release.to_owned();
        self.boot_milliseconds = after.as_millis() as u64;
    }

    /// Takes a line of results, and prints what it tells.
    pub fn line(&mut self, line: &str, terminal: &Terminal) {
        match self.parser.line(line) {
            Event::Nothing => {}
            Event::Plan(count) => self.plan = Some(count),
            Event::BailOut(why) => self.problems.push(format!("the tests could not go on: {why}")),
            Event::Result(result) => {
                print_result(&result, terminal);
                self.tests.push(result);
            }
        }
    }

    /// Takes the end of the boot into account.
    pub fn finish(&mut self, outcome: Outcome, terminal: &Terminal) {
        let during = outcome.running.as_ref().map(|test| format!(", during {test}")).unwrap_or_default();
        let rest = self.parser.rest();
        let mut show_tail = true;
        match &outcome.end {
            End::Job(status) => {
                show_tail = false;
                let done = self.tests.len();
                match self.plan {
                    Some(plan) if plan != done => {
                        self.problems.push(format!("{plan} tests were to run, {done} reported"));
                    }
                    None => self.problems.push("no test results came".to_owned()),
                    _ => {}
                }
                if *status != 0 && self.failed_tests().next().is_none() && self.problems.is_empty() {
                    self.problems.push(format!("rnbd-test ended with status {status}"));
                }
            }
            End::Early => self.problems.push(format!("the guest ended before its job did{during}")),
            End::Panic(panic) => self.problems.push(format!("{panic}{during}")),
            End::TimeLimit(limit) => {
                self.problems
                    .push(format!("not done after {} s: the machine was killed{during}", limit.as_secs()));
            }
            End::Interrupted => self.problems.push(format!("interrupted{during}")),
        }
        self.complaints = outcome.complaints;
        if self.problems.is_empty() {
            return;
        }
        for line in &rest {
            terminal.detail(line);
        }
        if show_tail && outcome.end != End::Interrupted {
            terminal.line("  the console's last lines:");
            for line in &outcome.tail {
                terminal.detail(line);
            }
        }
    }

    /// Tests that failed, or passed while the kernel complained.
    fn failed_tests(&self) -> impl Iterator<Item = &TestResult> {
        self.tests.iter().filter(|test| self.is_failed(test))
    }

    fn is_failed(&self, test: &TestResult) -> bool {
        let complained =
            || self.complaints.iter().any(|complaint| complaint.test.as_ref() == Some(&test.name));
        test.status == Status::Failed || (!self.complaints_allowed && complained())
    }

    /// Failures that belong to no test: of the run, or complaints between tests.
    fn other_failures(&self) -> Vec<String> {
        let known = |test: &String| self.tests.iter().any(|result| result.name == *test);
        let complaints = self.complaints.iter().filter(|_| !self.complaints_allowed);
        let outside = complaints.filter(|complaint| !complaint.test.as_ref().is_some_and(known));
        let outside = outside.map(|complaint| match &complaint.test {
            // It is among the problems already, as the test that never reported.
            Some(test) => {
                format!("during {test}, which did not end, the kernel complained: {}", complaint.text)
            }
            None => format!("outside of any test, the kernel complained: {}", complaint.text),
        });
        self.problems.iter().cloned().chain(outside).collect()
    }

    fn count(&self, wanted: impl Fn(&TestResult) -> bool) -> usize {
        self.tests.iter().filter(|test| wanted(test)).count()
    }

    /// Passed and failed; a run that broke counts as one failure more.
    pub fn tally(&self) -> (usize, usize) {
        let passed = |test: &TestResult| {
            !self.is_failed(test) && matches!(test.status, Status::Passed | Status::KnownFailurePassed(_))
        };
        (self.count(passed), self.failed_tests().count() + usize::from(!self.other_failures().is_empty()))
    }

    /// Prints what a reader must know at the end.
    pub fn summarise(&self, terminal: &Terminal) {
        let skipped = self.count(|test| matches!(test.status, Status::Skipped(_)));
        let known = self.count(|test| matches!(test.status, Status::KnownFailure(_)));
        if skipped > 0 {
            terminal.line(&format!("  {skipped} skipped"));
        }
        if known > 0 {
            terminal.line(&format!("  {known} failed as known of {}", self.driver));
        }
        if self.complaints_allowed && !self.complaints.is_empty() {
            terminal.line(&format!(
                "  the kernel complained {} times of {}:",
                self.complaints.len(),
                self.driver
            ));
            for complaint in &self.complaints {
                terminal.detail(&describe(complaint));
            }
        }
        for test in self.failed_tests() {
            terminal.bad(&format!("failed: {}", test.name));
            for complaint in self.complaints.iter().filter(|one| one.test.as_ref() == Some(&test.name)) {
                terminal.detail(&format!("the kernel complained: {}", describe(complaint)));
            }
        }
        for problem in self.other_failures() {
            terminal.bad(&problem);
        }
    }

    /// Writes the report as JSON.
    pub fn write(&self, to: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(to, text + "\n").with_context(|| format!("write {}", to.display()))
    }
}

fn describe(complaint: &Complaint) -> String {
    format!("{} (line {} of the console log)", complaint.text, complaint.line)
}

fn print_result(result: &TestResult, terminal: &Terminal) {
    let time = result.milliseconds.map(|time| seconds(Duration::from_millis(time))).unwrap_or_default();
    let line = |note: &str| format!("{:<44} {time:>9}{note}", result.name);
    match &result.status {
        Status::Passed => terminal.good(&line("")),
        Status::Skipped(why) => terminal.note("skip", &line(&format!("  {why}"))),
        Status::KnownFailure(why) => terminal.note("known", &line(&format!("  {why}"))),
        Status::KnownFailurePassed(why) => terminal.note("ok", &line(&format!("  {why}"))),
        Status::Failed => {
            terminal.bad(&line(""));
            for text in &result.diagnostics {
                terminal.detail(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(end: End) -> Outcome {
        Outcome { end, complaints: Vec::new(), running: None, tail: vec!["last line".into()] }
    }

    fn complaint(test: Option<&str>) -> Complaint {
        Complaint { text: "WARNING: x".into(), test: test.map(str::to_owned), line: 7, context: Vec::new() }
    }

    fn report(lines: &[&str], outcome: Outcome, complaints_allowed: bool) -> Report {
        let terminal = Terminal::hidden();
        let mut report = Report::new("rnbd", complaints_allowed);
        for line in lines {
            report.line(line, &terminal);
        }
        report.finish(outcome, &terminal);
        report.summarise(&terminal);
        report
    }

    const TWO: [&str; 3] = ["1..2", "ok 1 - a", "ok 2 - b"];

    #[test]
    fn a_good_run() {
        assert_eq!(report(&TWO, outcome(End::Job(0)), false).tally(), (2, 0));
        let lines = ["1..2", "ok 1 - a # SKIP why", "not ok 2 - b # TODO known"];
        assert_eq!(report(&lines, outcome(End::Job(0)), false).tally(), (0, 0));
    }

    #[test]
    fn a_failed_test_counts_once() {
        let lines = ["1..2", "ok 1 - a", "not ok 2 - b"];
        assert_eq!(report(&lines, outcome(End::Job(1)), false).tally(), (1, 1));
    }

    #[test]
    fn every_way_to_break_is_a_failure() {
        for end in [
            End::Early,
            End::Panic("Kernel panic".into()),
            End::TimeLimit(Duration::from_secs(1)),
            End::Interrupted,
            End::Job(2),
        ] {
            assert_eq!(report(&TWO, outcome(end.clone()), false).tally(), (2, 1), "{end:?}");
        }
        assert_eq!(report(&TWO[..2], outcome(End::Job(0)), false).tally(), (1, 1), "a result is missing");
        assert_eq!(report(&[], outcome(End::Job(0)), false).tally(), (0, 1), "no results");
        assert_eq!(report(&["1..1", "Bail out! x"], outcome(End::Job(1)), false).tally(), (0, 1));
    }

    #[test]
    fn a_complaint_fails_the_test_that_ran_or_else_the_run() {
        let with = |test| Outcome { complaints: vec![complaint(test)], ..outcome(End::Job(0)) };
        assert_eq!(report(&TWO, with(Some("b")), false).tally(), (1, 1));
        assert_eq!(report(&TWO, with(None), false).tally(), (2, 1));
        assert_eq!(report(&TWO, with(Some("b")), true).tally(), (2, 0));
    }
}
