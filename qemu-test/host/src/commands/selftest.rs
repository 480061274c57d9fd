// SPDX-License-Identifier: GPL-2.0
//! `selftest`: that this harness sees what goes wrong in a guest, shown with real failures.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use super::Places;
use super::test::{Watch, boot_until_done};
use crate::boot::{End, Interrupts, Message};
use crate::report::Report;
use crate::terminal::Terminal;

/// Options of `selftest`.
#[derive(clap::Args)]
pub struct SelftestArgs {
    #[command(flatten)]
    places: Places,
}

/// A way to fail, provoked for real in a guest, and what must be seen of it.
struct Case {
    name: &'static str,
    job: &'static str,
    time_limit: u64,
    /// How the machine must end.
    end: fn(&End) -> bool,
    /// Tests that pass and fail by the report.
    tally: (usize, usize),
    /// The kernel's report that must be found, during the test `provoked`.
    complaint: Option<&'static str>,
}

/// A job that crashes during the second of three tests, and is well when it is asked for the third alone.
fn crashes_in_the_middle(names: &[String]) -> String {
    match names {
        [last] => format!("echo 1..1; echo 'ok 1 - {last}'"),
        _ => "echo 1..3; echo 'ok 1 - first'; echo 'rnbd-test: start second' >/dev/kmsg; \
              echo c >/proc/sysrq-trigger; sleep 60"
            .to_owned(),
    }
}

const CASES: [Case; 4] = [
    Case {
        name: "a backtrace of the kernel during a test fails that test alone",
        job: "echo 1..2; echo 'rnbd-test: start provoked' >/dev/kmsg; echo l >/proc/sysrq-trigger; sleep 1; \
              echo 'rnbd-test: end provoked' >/dev/kmsg; echo 'ok 1 - provoked'; echo 'ok 2 - other'",
        time_limit: 120,
        end: |end| *end == End::Job(0),
        tally: (1, 1),
        complaint: Some("Call Trace:"),
    },
    Case {
        name: "a crash of the kernel ends the run and is told",
        job: "echo 1..1; echo 'rnbd-test: start provoked' >/dev/kmsg; echo c >/proc/sysrq-trigger; sleep 60",
        time_limit: 120,
        end: |end| matches!(end, End::Panic(_)),
        tally: (0, 1),
        complaint: Some("NULL pointer dereference|Kernel panic - not syncing"),
    },
    Case {
        name: "a guest that powers off early is told",
        job: "echo 1..1; poweroff -f; sleep 60",
        time_limit: 120,
        end: |end| *end == End::Early,
        tally: (0, 1),
        complaint: None,
    },
    Case {
        name: "a guest that hangs is killed at the time limit",
        job: "echo 1..1; sleep 600",
        time_limit: 20,
        end: |end| matches!(end, End::TimeLimit(_)),
        tally: (0, 1),
        complaint: None,
    },
];

/// `selftest`.
pub fn selftest(args: &SelftestArgs) -> Result<ExitCode> {
    let interrupts = Interrupts::install()?;
    let terminal = Terminal::new();
    for case in &CASES {
        let job = format!("job() {{ {}; }}\n", case.job);
        let mut prepared = args.places.prepare("selftest", &job, false, &terminal)?;
        prepared.time_limit = case.time_limit;
        let mut report = Report::new("none", false);
        let quiet = Terminal::hidden();
        let outcome = prepared.boot(&quiet, &interrupts, &mut |message| {
            if let Message::Line(line) = message {
                report.line(line, &quiet);
            }
        })?;
        let log = prepared.console();
        ensure!(outcome.end != End::Interrupted, "interrupted");
        ensure!((case.end)(&outcome.end), "{}: the machine ended as {:?}: {log}", case.name, outcome.end);
        if let Some(wanted) = case.complaint {
            let seen = outcome.complaints.iter().any(|complaint| {
                let named = complaint.test.as_deref() == Some("provoked");
                named && wanted.split('|').any(|text| complaint.text.contains(text))
            });
            ensure!(seen, "{}: it was not seen: {:?}: {log}", case.name, outcome.complaints);
        }
        report.finish(outcome, &quiet);
        ensure!(report.tally() == case.tally, "{}: it counts as {:?}: {log}", case.name, report.tally());
        terminal.good(case.name);
    }
    let quiet = Watch { terminal: Terminal::hidden(), interrupts };
    let names = ["first", "second", "third"].map(str::to_owned);
    let report = Report::new("none", true);
    let (report, last) = boot_until_done(&args.places, report, &names, &crashes_in_the_middle, &quiet)?;
    let missing = names.iter().find(|name| report.result(name).is_none());
    let log = last.console();
    ensure!(missing.is_none(), "no result of {missing:?}: {log}");
    ensure!(report.tally() == (2, 1), "a crash in the middle counts as {:?}: {log}", report.tally());
    terminal.good("after a crash the tests that are left run in another boot");
    Ok(ExitCode::SUCCESS)
}
