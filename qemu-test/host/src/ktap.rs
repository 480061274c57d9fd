// SPDX-License-Identifier: GPL-2.0
//! A reader of KTAP (`Documentation/dev-tools/ktap.rst`), line by line.

use serde::Serialize;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It could not be run, for this reason.
    Skipped(String),
    /// It failed, as is known of this driver.
    KnownFailure(String),
    /// It was known to fail on this driver, and passed.
    KnownFailurePassed(String),
}

/// One result line with the diagnostics before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// The test's name.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// How long it took, when the line says so.
    pub milliseconds: Option<u64>,
    /// Diagnostic lines that came before the result.
    pub diagnostics: Vec<String>,
}

impl TestResult {
    /// The first line of what it failed with, if it says so.
    pub fn error(&self) -> Option<&str> {
        let marked = self.diagnostics.iter().find_map(|line| line.strip_prefix("error: "));
        // One that was ended from outside has not said it itself.
        marked.or_else(|| self.diagnostics.iter().map(String::as_str).find(|line| !line.starts_with("log: ")))
    }
}

/// What a line means.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to tell yet.
    Nothing,
    /// The number of tests to come.
    Plan(usize),
    /// A test has ended.
    Result(TestResult),
    /// No more tests can be run.
    BailOut(String),
}

/// The state between lines. Only the outermost level counts as results; what is nested is kept as diagnostics.
#[derive(Default)]
pub struct Parser {
    diagnostics: Vec<String>,
}

impl Parser {
    /// Takes one line.
    pub fn line(&mut self, line: &str) -> Event {
        let line = line.trim_end();
        if line.is_empty() || line.starts_with("KTAP version") || line.starts_with("TAP version") {
            return Event::Nothing;
        }
        if let Some(count) = line.strip_prefix("1..").and_then(|rest| rest.parse().ok()) {
            return Event::Plan(count);
        }
        if let Some(why) = line.strip_prefix("Bail out!") {
            return Event::BailOut(why.trim().to_owned());
        }
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => {
                let text = line.strip_prefix("# ").or_else(|| line.strip_prefix('#')).unwrap_or(line);
                self.diagnostics.push(text.to_owned());
                return Event::Nothing;
            }
        };
        Event::Result(self.result(passed, rest))
    }

    /// Diagnostics after the last result.
    pub fn rest(&mut self) -> Vec<String> {
        std::mem::take(&mut self.diagnostics)
    }

    fn result(&mut self, passed: bool, rest: &str) -> TestResult {
        let (description, directive) = rest.split_once(" #").unwrap_or((rest, ""));
        let name = description.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let name = name.strip_prefix("- ").unwrap_or(name).trim();
        let mut milliseconds = None;
        let mut words = Vec::new();
        for word in directive.split_whitespace() {
            match word.strip_prefix("time=").and_then(|time| time.strip_suffix("ms")) {
                Some(time) => milliseconds = time.parse().ok(),
                None => words.push(word),
            }
        }
        let reason = words.get(1..).unwrap_or_default().join(" ");
        let status = match (words.first().map(|word| word.to_ascii_uppercase()).as_deref(), passed) {
            (Some("SKIP"), _) => Status::Skipped(reason),
            (Some("TODO"), false) => Status::KnownFailure(reason),
            (Some("TODO"), true) => Status::KnownFailurePassed(reason),
            (_, true) => Status::Passed,
            (_, false) => Status::Failed,
        };
        TestResult { name: name.to_owned(), status, milliseconds, diagnostics: self.rest() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(text: &str) -> Vec<TestResult> {
        let mut parser = Parser::default();
        let events = text.lines().map(|line| parser.line(line));
        let result = |event| if let Event::Result(result) = event { Some(result) } else { None };
        events.filter_map(result).collect()
    }

    #[test]
    fn each_kind_of_result() {
        let found = results(
            "KTAP version 1\n1..6\nok 1 - plain\nnot ok 2 - bad # time=1234ms\n\
             ok 3 - unable # SKIP no fio here time=5ms\nnot ok 4 - known # TODO EBUSY for ever time=7ms\n\
             ok 5 - better # TODO passed, though: EBUSY\nok 6 no_dash\n",
        );
        let of = |index: usize| (found[index].name.as_str(), found[index].status.clone());
        assert_eq!(of(0), ("plain", Status::Passed));
        assert_eq!(of(1), ("bad", Status::Failed));
        assert_eq!(of(2), ("unable", Status::Skipped("no fio here".into())));
        assert_eq!(of(3), ("known", Status::KnownFailure("EBUSY for ever".into())));
        assert_eq!(of(4), ("better", Status::KnownFailurePassed("passed, though: EBUSY".into())));
        assert_eq!(of(5), ("no_dash", Status::Passed));
        let times: Vec<_> = found.iter().map(|result| result.milliseconds).collect();
        assert_eq!(times, [None, Some(1234), Some(5), Some(7), None, None]);
    }

    #[test]
    fn diagnostics_belong_to_the_result_that_follows() {
        let found = results("# one\nnot ok 1 - a\nloose output\n#two\nok 2 - b\n");
        assert_eq!(found[0].diagnostics, ["one"]);
        assert_eq!(found[1].diagnostics, ["loose output", "two"]);
    }

    #[test]
    fn nested_results_do_not_count() {
        let found = results("    not ok 1 - inner\nok 1 - outer\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].diagnostics, ["    not ok 1 - inner"]);
    }

    #[test]
    fn plan_bail_out_and_rest() {
        let mut parser = Parser::default();
        assert_eq!(parser.line("1..12"), Event::Plan(12));
        assert_eq!(parser.line("Bail out! rmmod hangs"), Event::BailOut("rmmod hangs".into()));
        assert_eq!(parser.line("1..x"), Event::Nothing);
        assert_eq!(parser.rest(), ["1..x"]);
    }
}
