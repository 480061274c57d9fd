// SPDX-License-Identifier: GPL-2.0
//! `bench`: both drivers and the limit in one boot that counts instructions, and in another that takes the time; what came of
//! it as a table, JSON and plots.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use super::test::quoted;
use super::{Places, Prepared};
use crate::bench::line::Line;
use crate::bench::results::{Collected, Measure, Origin, Results};
use crate::bench::{curves, json, plot, table};
use crate::boot::{End, Interrupts, Message, Outcome};
use crate::machine::Accel;
use crate::terminal::{Terminal, seconds};

/// Options of `bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    places: Places,
    /// Fewer jobs and rounds, to end in five minutes
    #[arg(long)]
    quick: bool,
    /// Only the boots in which instructions are counted
    #[arg(long, conflicts_with = "time")]
    instructions: bool,
    /// Only the boot in which time is taken, which may be that of an emulation on a busy machine
    #[arg(long)]
    time: bool,
    /// How often all is measured; instructions 3 times and time 5 times, or both twice if quick
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

/// Time has noise that instructions have not: it is taken of longer jobs.
const TIMES_LONGER: u64 = 4;

/// How many times longer than a test the benchmark waits for what it has started, on a machine that may be busy.
const PATIENCE: u32 = 10;

/// A boot. In each of them nbd.ko, rnbd.ko and what they are compared with take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Boot {
    /// Instructions of what one processor can tell of: jobs with one connection.
    One,
    /// Instructions of jobs with four: a driver uses one for each processor.
    Four,
    /// Time.
    Time,
}

impl Boot {
    fn measure(self) -> Measure {
        if self == Boot::Time { Measure::Time } else { Measure::Instructions }
    }

    /// Words for `rnbd-test bench`.
    fn words(self, scaling: bool) -> String {
        let axes = match self {
            Boot::One => "devices,openers",
            Boot::Four => "connections",
            Boot::Time => "",
        };
        let scaling = if scaling && !axes.is_empty() { format!(" --scaling {axes}") } else { String::new() };
        match self {
            Boot::One => format!("--connections 1{scaling}"),
            Boot::Four => format!("--connections 4{scaling}"),
            Boot::Time => format!("--longer {TIMES_LONGER}"),
        }
    }
}

impl BenchArgs {
    fn boots(&self) -> impl Iterator<Item = Boot> {
        let wanted = |boot: &Boot| match boot.measure() {
            Measure::Instructions => !self.time,
            Measure::Time => !self.instructions,
        };
        [Boot::One, Boot::Four, Boot::Time].into_iter().filter(wanted)
    }

    fn job(&self, boot: Boot) -> String {
        let extent = match (self.quick, boot) {
            // What takes long, and is told less exactly, is measured less, unless it is all that is asked for.
            (false, Boot::Time) if !self.time => "quick",
            (true, Boot::Time) if !self.time => "few",
            (false, _) => "full",
            (true, _) => "quick",
        };
        let rounds = self.rounds.unwrap_or(match (self.quick, boot.measure()) {
            (true, _) => 2,
            // They agree within one in a hundred.
            (false, Measure::Instructions) => 3,
            (false, Measure::Time) => 5,
        });
        // Attaching has nothing to do with the number of processors.
        let attaches = if boot == Boot::Four { 0 } else { self.attaches };
        let scaling_rounds = if self.quick { 1 } else { 3 };
        format!(
            "job() {{ export RNBD_PATIENCE={}; rnbd-test bench --modules /modules --extent {extent} --rounds {rounds} \
             --attaches {attaches} --seed {} --scaling-rounds {scaling_rounds} --only {} {}; }}\n",
            PATIENCE * self.places.patience,
            self.seed,
            quoted(&self.only),
            boot.words(self.only.is_empty()),
        )
    }

    /// One boot, and its results, if it came to its end.
    fn measure(&self, boot: Boot, terminal: &Terminal, interrupts: &Interrupts) -> Result<Option<Results>> {
        let mut places = self.places.clone();
        // The whole takes long, and nothing in it is to be cut short.
        places.time_limit = places.time_limit.max(6 * 3600);
        if boot.measure() == Measure::Instructions {
            places.size.accel = Accel::Icount;
            places.size.cpus = if boot == Boot::Four { 4 } else { 1 };
        }
        let prepared = places.prepare("bench", &self.job(boot), true, terminal)?;
        let mut collected = Collected::default();
        let mut kernel = String::new();
        let mut strange = Vec::new();
        let mut since = Instant::now();
        let outcome = prepared.boot(terminal, interrupts, &mut |message| match message {
            Message::Started(_, release) => {
                kernel = release.to_owned();
                since = Instant::now();
            }
            Message::Line(line) => {
                match serde_json::from_str::<Line>(line) {
                    Ok(Line::Round(over)) => {
                        let (rounds, took) = (collected.rounds(), seconds(since.elapsed()));
                        since = Instant::now();
                        let what = match over.round {
                            None => "warm-up".to_owned(),
                            Some(round) => format!("round {} of {rounds}", round + 1),
                        };
                        terminal.good(&format!("{what:<78} {took:>7}"));
                    }
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
        let (measure, turns) = (boot.measure(), boot == Boot::Four);
        Ok(Some(collected.results(Origin { date, commit, kernel, machine, measure, turns, quick })))
    }

    fn keep(&self, boots: &[Results], terminal: &Terminal) -> Result<()> {
        let Some(first) = boots.first() else { return Ok(()) };
        let name = format!("{}{}", first.origin.measure.name(), if self.quick { "-quick" } else { "" });
        fs::create_dir_all(&self.out).with_context(|| format!("create {}", self.out.display()))?;
        let file = |end: &str| self.out.join(format!("{name}{end}"));
        let write = |end: &str, text: String| {
            fs::write(file(end), text).with_context(|| format!("write {}", file(end).display()))
        };
        write(".json", json::text(&boots)?)?;
        write(".md", table::markdown(boots))?;
        plot::jobs(boots, &file(".svg"))?;
        let mut names = format!("{name}.json, .md, .svg");
        if boots.iter().any(|boot| !boot.scaling.is_empty()) {
            curves::scaling(boots, &file("-scaling.svg"))?;
            names += ", -scaling.svg";
        }
        let folder = self.out_outside.as_ref().unwrap_or(&self.out);
        terminal.line(&format!("  results: {}/{names}", folder.display()));
        Ok(())
    }
}

fn show(boots: &[Results], terminal: &Terminal) {
    for results in boots {
        terminal.line(&format!("{}, {}:", results.origin.measure.unit(), results.origin.machine));
        let tables = [
            (table::jobs(results, boots), !results.jobs.is_empty()),
            (table::latencies(results), !results.latencies.is_empty()),
            (table::scaling(results), !results.scaling.is_empty()),
        ];
        for (table, _) in tables.iter().filter(|(_, there)| *there) {
            table.lines().chain([""]).for_each(|line| terminal.line(line));
        }
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
    let mut boots = Vec::new();
    for boot in args.boots() {
        match args.measure(boot, &terminal, &interrupts)? {
            Some(results) => boots.push(results),
            None => return Ok(ExitCode::FAILURE),
        }
    }
    show(&boots, &terminal);
    args.keep(&boots, &terminal)?;
    Ok(ExitCode::SUCCESS)
}
