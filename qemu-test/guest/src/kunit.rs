// SPDX-License-Identifier: GPL-2.0
//! The tests that are part of rnbd.ko: KUnit runs them when the module is loaded, and keeps the results in debugfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::kmsg::mark;
use crate::ktap::{Ktap, Verdict};
use crate::leaks::Leaks;
use crate::modules::Driver;
use crate::runner::{Before, clean_up, prepare_system};

#[derive(clap::Args)]
pub struct Args {
    /// Directory that holds rnbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
}

const RESULTS: &str = "/sys/kernel/debug/kunit";

/// Loads the module, and prints KTAP with a line for each test case, for the unloading, and for leaks.
pub fn run(args: &Args) -> Result<ExitCode> {
    prepare_system()?;
    ensure!(Path::new(RESULTS).exists(), "this kernel has no KUnit (no {RESULTS}): take the debug kernel");
    let leaks = Leaks::watch()?;
    let before = Before::now();
    // The kernel's own lines between the two marks name suite and case.
    Driver::Rnbd.load(&args.modules, "nbds_max=1")?;
    let cases = cases()?;
    let mut ktap = Ktap::begin(cases.len() + 1 + usize::from(leaks.is_some()));
    for case in &cases {
        for line in &case.diagnostics {
            ktap.diagnostic(line);
        }
        ktap.result(&case.name, &case.verdict, None);
    }
    let name = "kunit.unload";
    mark(&format!("start {name}"));
    let mut problems = Vec::new();
    if let Err(error) = clean_up(Driver::Rnbd, &before, &mut problems) {
        problems.push(format!("{error:#}"));
    }
    ktap.judge(name, &problems);
    mark(&format!("end {name}"));
    if let Some(leaks) = leaks {
        ktap.judge("kunit.leaks", &leaks.found()?);
    }
    Ok(if ktap.all_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One test case, as KUnit reports it.
struct Case {
    /// `suite.case`.
    name: String,
    verdict: Verdict,
    diagnostics: Vec<String>,
}

/// The cases of all suites that the module brought.
fn cases() -> Result<Vec<Case>> {
    let mut suites: Vec<PathBuf> = fs::read_dir(RESULTS)?.flatten().map(|entry| entry.path()).collect();
    suites.sort();
    let mut cases = Vec::new();
    for suite in suites {
        let name = suite.file_name().context("a suite has a name")?.to_string_lossy().into_owned();
        if !name.starts_with("rnbd_") {
            // The kernel's own.
            continue;
        }
        let text = fs::read_to_string(suite.join("results"))?;
        let found = parse(&name, &text);
        ensure!(!found.is_empty(), "suite {name} has no results:\n{text}");
        cases.extend(found);
    }
    ensure!(
        !cases.is_empty(),
        "no suite was run: was rnbd.ko built for this kernel? (KUnit must not be disabled)"
    );
    Ok(cases)
}

/// A suite's `results`: its cases are one level in, and what a case says comes before its result.
fn parse(suite: &str, text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut diagnostics = Vec::new();
    for line in text.lines() {
        let nested = line.starts_with(' ');
        let line = line.trim();
        let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) if nested => (true, rest),
            (_, Some(rest)) if nested => (false, rest),
            _ => {
                let header =
                    ["KTAP version", "1..", "# Subtest:"].iter().any(|start| line.starts_with(start));
                // What KUnit says of every case.
                let usual = line.ends_with(".speed: normal");
                if nested && !header && !usual {
                    diagnostics.push(line.trim_start_matches(['#', ' ']).to_owned());
                }
                continue;
            }
        };
        let (description, directive) = rest.split_once(" # ").unwrap_or((rest, ""));
        let case = description.split_once(' ').map_or(description, |(_, case)| case);
        let verdict = match (passed, directive.strip_prefix("SKIP")) {
            (true, Some(reason)) => Verdict::Skip(reason.trim().to_owned()),
            (true, None) => Verdict::Pass,
            (false, _) => Verdict::Fail,
        };
        let diagnostics = std::mem::take(&mut diagnostics);
        cases.push(Case { name: format!("{suite}.{case}"), verdict, diagnostics });
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_of_a_suite() {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..3\n    # good.speed: normal\n    \
                    ok 1 good\n    \
                    # bad: ASSERTION FAILED at kunit/a.rs:7\n    Expected x == y to be true, but is false\n    \
                    not ok 2 bad\n    ok 3 unable # SKIP no such thing\n# s: pass:1 fail:1 skip:1 total:3\n\
                    not ok 1 s\n";
        let cases = parse("s", text);
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["s.good", "s.bad", "s.unable"]);
        assert_eq!(cases[0].verdict, Verdict::Pass);
        assert_eq!(cases[1].verdict, Verdict::Fail);
        assert_eq!(
            cases[1].diagnostics,
            ["bad: ASSERTION FAILED at kunit/a.rs:7", "Expected x == y to be true, but is false"]
        );
        assert_eq!(cases[2].verdict, Verdict::Skip("no such thing".into()));
        assert!(cases[2].diagnostics.is_empty());
    }

    #[test]
    fn a_suite_that_did_not_run_has_no_cases() {
        assert!(
            parse("s", "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..2\n").is_empty()
        );
    }
}
