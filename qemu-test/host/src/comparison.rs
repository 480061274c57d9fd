// SPDX-License-Identifier: GPL-2.0
//! What both drivers make of the same tests, beside each other.

use crate::ktap::{Status, TestResult};
use crate::report::Report;
use crate::terminal::Terminal;

/// The results of some tests on both drivers.
pub struct Comparison<'a>(Vec<Row<'a>>);

struct Row<'a> {
    test: &'a str,
    nbd: Option<&'a TestResult>,
    rnbd: Option<&'a TestResult>,
    /// What nbd.ko's kernel complained of. (For rnbd.ko, that is a failure of its own report.)
    complaints: Vec<String>,
}

/// Of a line that a test fails with, so much is shown; the whole is in the JSON.
const BRIEF: usize = 110;

impl<'a> Comparison<'a> {
    /// Looks `tests` up in both reports.
    pub fn new(tests: &'a [String], nbd: &'a Report, rnbd: &'a Report) -> Comparison<'a> {
        let row = |test: &'a String| Row {
            test,
            nbd: nbd.result(test),
            rnbd: rnbd.result(test),
            complaints: nbd.complaints_during(test),
        };
        Comparison(tests.iter().map(row).collect())
    }

    /// Tests without a result of nbd.ko: there is nothing to compare with. (Without one of rnbd.ko, its own report
    /// has failed.)
    pub fn missing(&self) -> usize {
        self.0.iter().filter(|row| row.nbd.is_none()).count()
    }

    /// A line a test, and below it why the one that fails does.
    pub fn print(&self, terminal: &Terminal) {
        self.lines().iter().for_each(|(line, details)| {
            terminal.line(line);
            details.iter().for_each(|detail| terminal.detail(detail));
        });
    }

    fn lines(&self) -> Vec<(String, Vec<String>)> {
        let line = |test: &str, nbd: &str, rnbd: &str| format!("  {test:<34} {nbd:<9} {rnbd}");
        let mut lines = vec![(line("The incidents", "nbd.ko", "rnbd.ko"), Vec::new())];
        for row in &self.0 {
            let mut details = Vec::new();
            for (driver, result) in [("nbd.ko", row.nbd), ("rnbd.ko", row.rnbd)] {
                let why = result.map(why).unwrap_or_default();
                details.extend(why.into_iter().map(|why| format!("{driver}: {why}")));
            }
            if let Some(first) = row.complaints.first() {
                let more = row.complaints.len() - 1;
                let more = if more > 0 { format!(", and {more} more") } else { String::new() };
                details.push(format!("nbd.ko: the kernel complained: {first}{more}"));
            }
            lines.push((line(row.test, word(row.nbd), word(row.rnbd)), details));
        }
        lines
    }
}

fn word(result: Option<&TestResult>) -> &'static str {
    match result.map(|result| &result.status) {
        Some(Status::Passed | Status::KnownFailurePassed(_)) => "passes",
        Some(Status::Failed | Status::KnownFailure(_)) => "FAILS",
        Some(Status::Skipped(_)) => "skipped",
        None => "no result",
    }
}

/// The bug that it is known for, and what was seen this time.
fn why(result: &TestResult) -> Vec<String> {
    let seen = || result.error().map(|error| format!("seen: {}", brief(error)));
    match &result.status {
        Status::Passed => Vec::new(),
        Status::Skipped(reason) => vec![reason.clone()],
        Status::Failed => seen().into_iter().collect(),
        Status::KnownFailure(reason) => [Some(reason.clone()), seen()].into_iter().flatten().collect(),
        Status::KnownFailurePassed(reason) => vec![format!("not this time: {reason}")],
    }
}

fn brief(text: &str) -> String {
    match text.char_indices().nth(BRIEF) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(driver: &str, lines: &[&str]) -> Report {
        let terminal = Terminal::hidden();
        let mut report = Report::new(driver, driver == "nbd");
        lines.iter().for_each(|line| report.line(line, &terminal));
        report
    }

    #[test]
    fn both_results_and_the_reason_are_shown() {
        let tests = ["a", "b", "c"].map(str::to_owned);
        let nbd = [
            "# seed 7",
            "# error: attaching again: EBUSY",
            "# second line",
            "# log: block nbd0: x",
            "not ok 1 - a # TODO for ever",
            "ok 2 - b",
        ];
        let (nbd, rnbd) = (report("nbd", &nbd), report("rnbd", &["ok 1 - a", "ok 2 - b", "not ok 3 - c"]));
        let comparison = Comparison::new(&tests, &nbd, &rnbd);
        let lines = comparison.lines();
        let words = |line: usize| lines[line].0.split_whitespace().collect::<Vec<_>>();
        assert_eq!(words(1), ["a", "FAILS", "passes"]);
        assert_eq!(lines[1].1, ["nbd.ko: for ever", "nbd.ko: seen: attaching again: EBUSY"]);
        assert_eq!(words(2), ["b", "passes", "passes"]);
        assert_eq!(words(3), ["c", "no", "result", "FAILS"]);
        assert_eq!(comparison.missing(), 1);
    }

    #[test]
    fn long_errors_are_cut() {
        assert_eq!(brief("short"), "short");
        assert_eq!(brief(&"ü".repeat(300)).chars().count(), BRIEF + 1);
    }
}
