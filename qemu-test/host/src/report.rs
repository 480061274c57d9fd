// SPDX-License-Identifier: GPL-2.0
//! What a run of tests came to: collects results, judges, prints for people, writes JSON for programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::boot::{End, Outcome};
use crate::complaint::Complaint;
use crate::ktap::{Event, Parser, Status, TestResult};
use crate::terminal::{Terminal, seconds};

/// The tests on one driver, in as many boots as it took.
#[derive(Serialize)]
pub struct Report {
    driver: String,
    release: String,
    boot_milliseconds: u64,
    tests: Vec<TestResult>,
    /// What is wrong with the run as a whole.
    problems: Vec<String>,
    /// Boots that ended before their tests did, of a driver that may do so.
    ended_early: Vec<String>,
    complaints: Vec<Heard>,
    /// The C driver is run to see what it does: what its kernel says and how its boots end is shown, and fails
    /// nothing.
    tolerant: bool,
    interrupted: bool,
    #[serde(skip)]
    boot: CurrentBoot,
    #[serde(skip)]
    parser: Parser,
}

/// A complaint, and the log that it is in.
#[derive(Serialize)]
struct Heard {
    #[serde(flatten)]
    complaint: Complaint,
    console: String,
}

/// What is known of the boot that runs, or that was the last one.
#[derive(Default)]
struct CurrentBoot {
    console: String,
    plan: Option<usize>,
    /// Results that came before it.
    earlier: usize,
    bailed_out: Option<String>,
    broke: bool,
}

impl Report {
    /// An empty report. A tolerant one takes whatever the kernel does.
    pub fn new(driver: &str, tolerant: bool) -> Report {
        Report {
            driver: driver.to_owned(),
            release: String::new(),
            boot_milliseconds: 0,
            tests: Vec::new(),
            problems: Vec::new(),
            ended_early: Vec::new(),
            complaints: Vec::new(),
            tolerant,
            interrupted: false,
            boot: CurrentBoot::default(),
            parser: Parser::default(),
        }
    }

    /// Whose tests these are.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// A boot begins. Its console's log is found so, from the folder of all runs.
    pub fn boot(&mut self, console: &str) {
        let console = console.to_owned();
        self.boot = CurrentBoot { console, earlier: self.tests.len(), ..CurrentBoot::default() };
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
            Event::Plan(count) => self.boot.plan = Some(count),
            Event::BailOut(why) => self.boot.bailed_out = Some(why),
            Event::Result(result) => self.result_came(result, terminal),
        }
    }

    fn result_came(&mut self, result: TestResult, terminal: &Terminal) {
        print_result(&result, terminal);
        self.tests.push(result);
    }

    /// Takes the end of the boot into account.
    pub fn finish(&mut self, outcome: Outcome, terminal: &Terminal) {
        let console = &self.boot.console;
        let heard = |complaint| Heard { complaint, console: console.clone() };
        self.complaints.extend(outcome.complaints.into_iter().map(heard));
        self.interrupted = outcome.end == End::Interrupted;
        let broke = match &outcome.end {
            End::Job(status) => match self.boot.bailed_out.take() {
                Some(why) => Some(format!("the tests could not go on: {why}")),
                None => {
                    self.problems.extend(self.not_right(*status));
                    None
                }
            },
            End::Early => Some("the guest ended before its job did".to_owned()),
            End::Panic(panic) => Some(panic.clone()),
            End::TimeLimit(limit) => {
                Some(format!("not done after {} s: the machine was killed", limit.as_secs()))
            }
            End::Interrupted => Some("interrupted".to_owned()),
        };
        if let Some(why) = broke {
            self.boot.broke = true;
            self.broke_for(why, outcome.running, terminal);
        }
        // What no result has taken.
        self.parser.rest().iter().for_each(|line| terminal.detail(line));
        if !matches!(outcome.end, End::Job(_) | End::Interrupted) {
            terminal.line("  the console's last lines:");
            outcome.tail.iter().for_each(|line| terminal.detail(line));
        }
    }

    /// What does not fit together in a boot whose job ended.
    fn not_right(&self, status: i32) -> Option<String> {
        let tests = &self.tests[self.boot.earlier..];
        match self.boot.plan {
            None => Some("no test results came".to_owned()),
            Some(plan) if plan != tests.len() => {
                Some(format!("{plan} tests were to run, {} reported", tests.len()))
            }
            _ if status != 0 && !tests.iter().any(|test| self.is_failed(test)) => {
                Some(format!("rnbd-test ended with status {status}"))
            }
            _ => None,
        }
    }

    /// A boot that ended early fails the test that was running. Where none was, or where it ended behind a test's
    /// result, it is the run that failed.
    fn broke_for(&mut self, why: String, running: Option<String>, terminal: &Terminal) {
        let lost = running.filter(|test| self.result(test).is_none() && !self.interrupted);
        if let Some(name) = lost {
            let mut diagnostics = vec![format!("error: {why}")];
            diagnostics.extend(self.parser.rest());
            let result = TestResult { name, status: Status::Failed, milliseconds: None, diagnostics };
            self.result_came(result, terminal);
        } else if self.tolerant && !self.interrupted && self.tests.len() > self.boot.earlier {
            terminal.detail(&why);
            self.ended_early.push(why);
        } else {
            self.problems.push(why);
        }
    }

    /// True when the last boot ended before its tests did.
    pub fn broke(&self) -> bool {
        self.boot.broke
    }

    /// True when somebody ended it.
    pub fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// What the kernel complained of during a test.
    pub fn complaints_during(&self, test: &str) -> Vec<String> {
        self.heard_during(test).map(describe).collect()
    }

    /// A test's result, if it has come.
    pub fn result(&self, name: &str) -> Option<&TestResult> {
        self.tests.iter().find(|test| test.name == name)
    }

    /// Tests that failed, or passed while the kernel complained.
    fn failed_tests(&self) -> impl Iterator<Item = &TestResult> {
        self.tests.iter().filter(|test| self.is_failed(test))
    }

    fn is_failed(&self, test: &TestResult) -> bool {
        test.status == Status::Failed || (!self.tolerant && self.heard_during(&test.name).next().is_some())
    }

    fn heard_during<'a>(&'a self, test: &'a str) -> impl Iterator<Item = &'a Heard> {
        self.complaints.iter().filter(move |heard| heard.complaint.test.as_deref() == Some(test))
    }

    /// Failures that belong to no test: of the run, or complaints between tests.
    fn other_failures(&self) -> Vec<String> {
        let known = |test: &String| self.tests.iter().any(|result| result.name == *test);
        let complaints = self.complaints.iter().map(|heard| &heard.complaint).filter(|_| !self.tolerant);
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

    /// What all tests together have tried: faults, bad inputs and the like, and how many; seeds.
    fn tried(&self) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for (count, what) in self.tests.iter().filter_map(tried).filter_map(|text| text.split_once(' ')) {
            *sums.entry(what).or_default() += count.parse::<u64>().unwrap_or(0);
        }
        let lines = self.tests.iter().flat_map(|test| &test.diagnostics);
        let seeds = lines.filter(|line| line.starts_with("seed ")).count();
        if seeds > 0 {
            sums.insert("seeds", seeds as u64);
        }
        sums
    }

    fn count(&self, wanted: impl Fn(&TestResult) -> bool) -> usize {
        self.tests.iter().filter(|test| wanted(test)).count()
    }

    /// Passed and failed; what is wrong with the run as a whole counts as one failure more.
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
        let tried = self.tried();
        if !tried.is_empty() {
            let counts: Vec<_> = tried.iter().map(|(what, count)| format!("{count} {what}")).collect();
            terminal.line(&format!("  tried: {}", counts.join(", ")));
        }
        if skipped > 0 {
            terminal.line(&format!("  {skipped} skipped"));
        }
        if known > 0 {
            terminal.line(&format!("  {known} failed as known of {}", self.driver));
        }
        if self.tolerant && !self.complaints.is_empty() {
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
            for heard in self.heard_during(&test.name) {
                terminal.detail(&format!("the kernel complained: {}", describe(heard)));
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

fn describe(Heard { complaint, console }: &Heard) -> String {
    format!("{} (line {} of {console})", complaint.text, complaint.line)
}

/// What a test says that it has tried.
fn tried(result: &TestResult) -> Option<&str> {
    result.diagnostics.iter().find_map(|text| text.strip_prefix("tried: "))
}

fn print_result(result: &TestResult, terminal: &Terminal) {
    let time = result.milliseconds.map(|time| seconds(Duration::from_millis(time))).unwrap_or_default();
    let line = |note: &str| format!("{:<44} {time:>9}{note}", result.name);
    match &result.status {
        Status::Passed => {
            terminal.good(&line(&tried(result).map(|what| format!("  {what}")).unwrap_or_default()));
        }
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

    fn report(lines: &[&str], outcome: Outcome, tolerant: bool) -> Report {
        let terminal = Terminal::hidden();
        let mut report = Report::new("rnbd", tolerant);
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
    fn the_test_that_ran_at_an_early_end_has_failed() {
        let lines = ["1..3", "ok 1 - a", "# seen so far"];
        let early = Outcome { running: Some("b".into()), ..outcome(End::Early) };
        let report = report(&lines, early, false);
        assert_eq!((report.tally(), report.broke()), ((1, 1), true));
        assert_eq!(
            report.result("b").unwrap().diagnostics,
            ["error: the guest ended before its job did", "seen so far"]
        );
    }

    #[test]
    fn a_tolerant_run_goes_on_after_a_boot_that_had_results() {
        let bail = ["1..3", "ok 1 - a", "not ok 2 - b # TODO known", "Bail out! rmmod hangs"];
        let mut first = report(&bail, outcome(End::Job(1)), true);
        assert_eq!((first.tally(), first.broke()), ((1, 0), true));
        let terminal = Terminal::hidden();
        first.boot("second.log");
        ["1..1", "ok 1 - c"].iter().for_each(|line| first.line(line, &terminal));
        first.finish(outcome(End::Job(0)), &terminal);
        assert_eq!((first.tally(), first.broke()), ((2, 0), false));
        assert_eq!(report(&bail, outcome(End::Job(1)), false).tally(), (1, 1), "not so when it is ours");
        assert_eq!(report(&[], outcome(End::Early), true).tally(), (0, 1), "nothing came");
    }

    #[test]
    fn what_was_tried_is_added_up() {
        let lines =
            ["1..4", "# tried: 7 faults", "ok 1 - a", "# seed 5 (...)", "# tried: 1 bad inputs", "ok 2 - b"];
        let more = ["# tried: 35 faults", "ok 3 - c", "# tried", "ok 4 - d"];
        let report = report(&[&lines[..], &more].concat(), outcome(End::Job(0)), false);
        assert_eq!(report.tried(), [("bad inputs", 1), ("faults", 42), ("seeds", 1)].into());
    }

    #[test]
    fn a_complaint_fails_the_test_that_ran_or_else_the_run() {
        let with = |test| Outcome { complaints: vec![complaint(test)], ..outcome(End::Job(0)) };
        assert_eq!(report(&TWO, with(Some("b")), false).tally(), (1, 1));
        assert_eq!(report(&TWO, with(None), false).tally(), (2, 1));
        assert_eq!(report(&TWO, with(Some("b")), true).tally(), (2, 0));
    }
}
