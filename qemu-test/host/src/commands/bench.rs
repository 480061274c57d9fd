// SPDX-License-Identifier: GPL-2.0
//! `bench`: both drivers and the limit in one boot, and what came of it as a table, JSON and a plot.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::test::quoted;
use super::{Places, Prepared};
use crate::bench::line::Line;
use crate::bench::results::{Collected, Measure, Origin, Results};
use crate::bench::{plot, table};
use crate::boot::{End, Interrupts, Message, Outcome};
use crate::machine::Accel;
use crate::terminal::Terminal;

/// Options of `bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    places: Places,
    /// Fewer jobs and rounds, to end in a few minutes
    #[arg(long)]
    quick: bool,
    /// Measure the time that passes, though the machine may be emulated or busy, not instructions
    ///
    /// Without it time is measured, too, in a second boot, if KVM works.
    #[arg(long)]
    time: bool,
    /// How often all is measured; 9, or 3 if quick
    #[arg(long)]
    rounds: Option<usize>,
    /// How often a device is attached in each round, by netlink and by ioctl
    #[arg(long, default_value_t = 20)]
    attaches: usize,
    /// Where the order of drivers and jobs, and fio's random numbers, come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only jobs whose name has this in it
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// Where the results go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The name of --out outside of this root, for messages
    #[arg(long, value_name = "DIR")]
    out_outside: Option<PathBuf>,
    /// The day, for the results
    #[arg(long)]
    date: String,
    /// The commit, for the results
    #[arg(long)]
    commit: String,
}

impl BenchArgs {
    fn job(&self) -> String {
        let rounds = self.rounds.unwrap_or(if self.quick { 3 } else { 9 });
        let quick = if self.quick { " --quick" } else { "" };
        format!(
            "job() {{ rnbd-test bench --modules /modules{quick} --rounds {rounds} --attaches {} --seed {} --only {}; }}\n",
            self.attaches,
            self.seed,
            quoted(&self.only)
        )
    }

    /// One boot, and its results, if it came to its end.
    fn measure(
        &self,
        measure: Measure,
        terminal: &Terminal,
        interrupts: &Interrupts,
    ) -> Result<Option<Results>> {
        let mut places = self.places.clone();
        // The whole takes long, and nothing in it is to be cut short.
        places.time_limit = places.time_limit.max(6 * 3600);
        if measure == Measure::Instructions {
            places.size.accel = Accel::Icount;
            // One after the other they run as one, and wait for each other in slices that no real machine has.
            places.size.cpus = 1;
        }
        let prepared = places.prepare("bench", &self.job(), true, terminal)?;
        let mut collected = Collected::default();
        let mut kernel = String::new();
        let mut strange = Vec::new();
        let outcome = prepared.boot(terminal, interrupts, &mut |message| match message {
            Message::Started(_, release) => kernel = release.to_owned(),
            Message::Line(line) => {
                match serde_json::from_str::<Line>(line) {
                    Ok(line) => collected.add(line),
                    Err(_) => strange.push(line.to_owned()),
                }
                let (done, all) = collected.progress();
                terminal.busy(&format!("{done} of {all} measured"));
            }
            _ => {}
        })?;
        if !good(&outcome) || !strange.is_empty() {
            tell(&outcome, &strange, &prepared, terminal);
            return Ok(None);
        }
        let size = &places.size;
        let machine = format!("{} CPU, {} MiB, QEMU, {}", size.cpus, size.memory, prepared.note);
        let (date, commit, quick) = (self.date.clone(), self.commit.clone(), self.quick);
        Ok(Some(collected.results(Origin { date, commit, kernel, machine, measure, quick })))
    }

    fn keep(&self, results: &Results, terminal: &Terminal) -> Result<()> {
        let name = format!("{}{}", results.origin.measure.name(), if self.quick { "-quick" } else { "" });
        fs::create_dir_all(&self.out).with_context(|| format!("create {}", self.out.display()))?;
        let file = |extension: &str| self.out.join(format!("{name}.{extension}"));
        let write = |extension: &str, text: String| {
            fs::write(file(extension), text).with_context(|| format!("write {}", file(extension).display()))
        };
        write("json", serde_json::to_string_pretty(results)? + "\n")?;
        write("md", table::markdown(results))?;
        plot::write(results, &file("svg"))?;
        terminal.line(&format!("{}:", results.origin.measure.unit()));
        table::jobs(results).lines().chain([""]).for_each(|line| terminal.line(line));
        table::latencies(results).lines().for_each(|line| terminal.line(line));
        let folder = self.out_outside.as_ref().unwrap_or(&self.out);
        terminal.line(&format!("  results: {}/{name}.json, .md, .svg", folder.display()));
        Ok(())
    }
}

fn good(outcome: &Outcome) -> bool {
    outcome.end == End::Job(0) && outcome.complaints.is_empty()
}

fn tell(outcome: &Outcome, strange: &[String], prepared: &Prepared, terminal: &Terminal) {
    terminal.bad(&match &outcome.end {
        End::Job(0) if outcome.complaints.is_empty() => "the guest says what is no result".to_owned(),
        End::Job(0) => "the kernel complained".to_owned(),
        End::Job(status) => format!("the benchmark ended with status {status}"),
        End::Early => "the guest ended before the benchmark did".to_owned(),
        End::Panic(panic) => panic.clone(),
        End::TimeLimit(limit) => format!("not done after {} s: the machine was killed", limit.as_secs()),
        End::Interrupted => "interrupted".to_owned(),
    });
    strange.iter().for_each(|line| terminal.detail(line));
    if strange.is_empty() {
        outcome.tail.iter().for_each(|line| terminal.detail(line));
    }
    terminal.line(&format!("  console log: {}", prepared.console()));
}

/// `bench`.
pub fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let interrupts = Interrupts::install()?;
    let terminal = Terminal::new();
    let mut measures = vec![if args.time { Measure::Time } else { Measure::Instructions }];
    if !args.time && args.places.has_kvm()? {
        measures.push(Measure::Time);
    }
    for measure in measures {
        match args.measure(measure, &terminal, &interrupts)? {
            Some(results) => args.keep(&results, &terminal)?,
            None => return Ok(ExitCode::FAILURE),
        }
    }
    Ok(ExitCode::SUCCESS)
}
