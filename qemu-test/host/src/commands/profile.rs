// SPDX-License-Identifier: GPL-2.0
//! `profile`: one job of the benchmark under perf, in the machine that counts instructions.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use super::test::quoted;
use super::{Drivers, Places};
use crate::boot::{End, Interrupts, Message};
use crate::machine::Accel;
use crate::terminal::Terminal;

/// Options of `profile`.
#[derive(clap::Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    places: Places,
    /// The driver to look at
    #[arg(long, default_value = "rnbd")]
    driver: Drivers,
    /// Say who called, too
    #[arg(long)]
    calls: bool,
    /// How many times as long as in the benchmark the job takes
    #[arg(long, default_value_t = 30)]
    longer: u64,
    /// Lines of the report; with --calls 400 unless said otherwise
    #[arg(long)]
    lines: Option<usize>,
    /// A job of the benchmark, or one whose name is made like theirs
    job: String,
}

/// `profile`.
pub fn profile(args: &ProfileArgs) -> Result<ExitCode> {
    ensure!(args.driver.each().len() == 1, "--driver both: say rnbd or nbd");
    let interrupts = Interrupts::install()?;
    let terminal = Terminal::new();
    let mut places = args.places.clone();
    places.size.accel = Accel::Icount;
    places.size.cpus = 1;
    let job = format!(
        "job() {{ rnbd-test profile --modules /modules --driver {}{} --longer {} --lines {} -- {}; }}\n",
        args.driver.each()[0],
        if args.calls { " --calls" } else { "" },
        args.longer,
        args.lines.unwrap_or(if args.calls { 400 } else { 100 }),
        quoted(&args.job),
    );
    let prepared = places.prepare("profile", &job, true, &terminal)?;
    let outcome = prepared.boot(&terminal, &interrupts, &mut |message| {
        if let Message::Line(line) = message {
            terminal.line(line);
        }
    })?;
    let good = outcome.end == End::Job(0);
    if !good {
        terminal.bad(&format!("the profile was not made: {:?}", outcome.end));
        outcome.tail.iter().for_each(|line| terminal.detail(line));
    }
    terminal.line(&format!("  console log: {}", prepared.console()));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
