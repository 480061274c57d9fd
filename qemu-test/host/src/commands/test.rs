// SPDX-License-Identifier: GPL-2.0
//! `test`: boots as often as it takes to have every test's result, on one driver or on both.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use super::{Drivers, Places, Prepared};
use crate::boot::{Interrupts, Message};
use crate::comparison::Comparison;
use crate::report::Report;
use crate::terminal::Terminal;

/// Options of `test`.
#[derive(clap::Args)]
pub struct TestArgs {
    #[command(flatten)]
    places: Places,
    /// The driver under test
    #[arg(long, default_value = "rnbd")]
    driver: Drivers,
    /// Then run those that retell an incident on nbd.ko too, and show both results beside each other
    ///
    /// What nbd.ko does is shown, and fails nothing.
    #[arg(long, conflicts_with = "driver")]
    compare: bool,
    /// Only the quick subset
    #[arg(long)]
    quick: bool,
    /// For tests that can go on for ever: ten minutes of each
    #[arg(long, conflicts_with = "quick")]
    soak: bool,
    /// The seed that a test printed, to run it again as it was
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Names or globs of tests; all when none is given
    names: Vec<String>,
}

/// Who follows the boots.
pub struct Watch {
    /// Where lines go.
    pub terminal: Terminal,
    /// What may end them.
    pub interrupts: Interrupts,
}

/// A word for the shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl TestArgs {
    /// The names of the tests that are asked for.
    fn select(&self, incidents: bool) -> Result<Vec<String>> {
        let mut command = Command::new(self.places.test_program()?);
        command.args(["list", "--names-only"]);
        command.args(self.quick.then_some("--quick")).args(incidents.then_some("--incidents"));
        // What follows `--` is a name, however it looks.
        let output = command.arg("--").args(&self.names).output().context("start rnbd-test")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim().trim_start_matches("rnbd-test: "));
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }
}

/// Runs `names` on `driver`, and shows what came of it.
fn run(args: &TestArgs, driver: &str, names: &[String], watch: &Watch) -> Result<Report> {
    let job = |left: &[String]| {
        let quick = if args.quick { " --quick" } else { "" };
        let soak = if args.soak { " --soak" } else { "" };
        let seed = args.seed.map(|seed| format!("RNBD_TEST_SEED={seed} ")).unwrap_or_default();
        let names: Vec<String> = left.iter().map(|name| quoted(name)).collect();
        let names = names.join(" ");
        format!("{seed}rnbd-test run --driver {driver} --modules /modules{quick}{soak} -- {names}")
    };
    let report = Report::new(driver, driver == "nbd");
    let (report, last) = boot_until_done(&args.places, report, names, &job, watch)?;
    conclude(&report, &last, watch)?;
    Ok(report)
}

/// Shows what a reader must know at the end, and keeps the report.
pub fn conclude(report: &Report, last: &Prepared, Watch { terminal, .. }: &Watch) -> Result<()> {
    report.summarise(terminal);
    let json = last.folder.join("results.json");
    report.write(&json)?;
    terminal.line(&format!("  console log: {}", last.console()));
    terminal.line(&format!("  results:     {}", last.places.outside(&json)));
    Ok(())
}

/// Prints the last line of a run of tests, and gives its exit status.
pub fn tally(passed: usize, failed: usize, interrupted: bool, terminal: &Terminal) -> ExitCode {
    terminal.line(&format!("{passed} passed, {failed} failed"));
    match (interrupted, failed) {
        (true, _) => ExitCode::from(130),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Boots the command that `job` gives for `names`, and, after a boot that ended before its tests did, again for those that are left.
/// Returns the report, and what was booted last.
pub fn boot_until_done<'a>(
    places: &'a Places,
    mut report: Report,
    names: &[String],
    job: &dyn Fn(&[String]) -> String,
    Watch { terminal, interrupts }: &Watch,
) -> Result<(Report, Prepared<'a>)> {
    let mut left = names.to_vec();
    loop {
        let folder = format!("test-{}", report.driver());
        let job = format!("job() {{ export RNBD_PATIENCE={}; {}; }}\n", places.patience, job(&left));
        let prepared = places.prepare(&folder, &job, report.driver() == "rnbd", terminal)?;
        report.boot(&prepared.log_name());
        let outcome = prepared.boot(terminal, interrupts, &mut |message| match message {
            Message::Started(after, release) => report.started(after, release),
            Message::Line(line) => report.line(line, terminal),
            _ => {}
        })?;
        report.finish(outcome, terminal);
        let before = left.len();
        left.retain(|name| report.result(name).is_none());
        let in_vain = left.len() == before;
        if left.is_empty() || in_vain || !report.broke() || report.interrupted() {
            return Ok((report, prepared));
        }
        terminal.note("again", &format!("another boot, for {} more", left.len()));
        terminal.detail(&format!("console log until here: {}", prepared.console()));
    }
}

/// Runs on nbd.ko what of the tests retells an incident, and shows it beside what rnbd.ko has done. What nbd.ko does
/// fails nothing; what is counted is results that are missing. True when somebody ended it.
fn compare(args: &TestArgs, rnbd: &Report, watch: &Watch) -> Result<(usize, bool)> {
    let incidents = args.select(true)?;
    if incidents.is_empty() {
        return Ok((0, false));
    }
    watch.terminal.line("The incidents on nbd.ko, to compare. What it does is shown, and fails nothing:");
    let nbd = run(args, "nbd", &incidents, watch)?;
    let comparison = Comparison::new(&incidents, &nbd, rnbd);
    comparison.print(&watch.terminal);
    Ok((comparison.missing(), nbd.interrupted()))
}

/// `test`.
pub fn test(args: &TestArgs) -> Result<ExitCode> {
    let names = args.select(false)?;
    let watch = Watch { terminal: Terminal::new(), interrupts: Interrupts::install()? };
    let (mut passed, mut failed) = (0, 0);
    let mut interrupted = false;
    for driver in args.driver.each() {
        let report = run(args, driver, &names, &watch)?;
        let tally = report.tally();
        passed += tally.0;
        failed += tally.1;
        interrupted = report.interrupted();
        if interrupted {
            break;
        }
        if args.compare {
            let (missing, ended) = compare(args, &report, &watch)?;
            failed += missing;
            interrupted = ended;
        }
    }
    Ok(tally(passed, failed, interrupted, &watch.terminal))
}
