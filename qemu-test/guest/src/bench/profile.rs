// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test profile`: one job under perf, and where the time went.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::job::{Job, SIZE};
use super::memory::Memory;
use super::program::Program;
use super::server::Server;
use super::{NAME, SETTLE, attached_to, load, unload};
use crate::modules::Driver;
use crate::process::run_within;

/// Options of `profile`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
    /// The driver to look at
    #[arg(long, default_value = "rnbd")]
    driver: Driver,
    /// Say who called, too
    #[arg(long)]
    calls: bool,
    /// Samples in a second of the guest's
    #[arg(long, default_value_t = 10_000)]
    frequency: u32,
    /// How many times as long as in the benchmark the job takes
    #[arg(long, default_value_t = 30)]
    longer: u64,
    /// Lines of the report; calls take several each
    #[arg(long, default_value_t = 100)]
    lines: usize,
    /// A job of the benchmark, or one whose name is made like theirs
    job: String,
}

const DATA: &str = "/tmp/perf.data";

/// Attaches, runs the job to warm up, once more, and once under perf, and prints perf's report.
pub fn run(args: &Args) -> Result<()> {
    let short = Job::named(&args.job)?;
    let job = Job { longer: args.longer, ..short };
    // Whatever the kernel says of the costs of sampling: it is to go on.
    for (name, value) in
        [("kptr_restrict", "0"), ("perf_event_max_sample_rate", "100000"), ("perf_cpu_time_max_percent", "0")]
    {
        let path = format!("/proc/sys/kernel/{name}");
        fs::write(&path, value).with_context(|| format!("write {path}"))?;
    }
    let frequency = args.frequency.to_string();
    let mut under = vec!["perf", "record", "-q", "-a", "-e", "cpu-clock:I", "-F", &frequency, "-m", "2M"];
    under.extend(["-o", DATA]);
    under.extend(args.calls.then_some("-g"));
    under.push("--");
    let memory = Arc::new(Memory::new(SIZE as usize)?);
    let program = Program::start(job.serves)?;
    load(args.driver, &args.modules)?;
    // What the boot leaves to be done in the background is not the job's.
    std::thread::sleep(SETTLE);
    for (job, under) in [(&short, &[][..]), (&short, &[]), (&job, &under)] {
        let meter = job.meter();
        let fio = || job.run(&[NAME], 1, under);
        let measured = match &program {
            None => {
                let meter = Arc::new(meter);
                let server = Server::new(job.transport, job.connections, &memory, &meter)?;
                attached_to(&server, job.connections, fio)?;
                server.ended()?;
                meter.measured()?
            }
            Some(program) => {
                let server = Server::of_program(program, job.connections)?;
                attached_to(&server, job.connections, || meter.watching(NAME, fio))?;
                meter.measured()?
            }
        };
        let each = measured.time as f64 / (measured.bytes as f64 / job.block as f64);
        let kind = if under.is_empty() { "alone" } else { "under perf" };
        let (name, driver) = (job.name(), args.driver.module());
        println!("{name} on {driver}, {kind}: {:.2} thousand instructions for each I/O", each / 1000.0);
    }
    report(args)?;
    unload(args.driver)
}

/// The line with Rust's symbols as people write them.
fn demangled(line: &str) -> String {
    let Some(at) = line.find("_R") else { return line.to_owned() };
    let (before, symbol) = line.split_at(at);
    match rustc_demangle::try_demangle(symbol) {
        Ok(name) => format!("{before}{name:#}"),
        Err(_) => line.to_owned(),
    }
}

/// What each task took, in the kernel and outside, and then each function.
fn report(args: &Args) -> Result<()> {
    for (sort, lines) in [("comm,dso", 20), ("comm,symbol", args.lines)] {
        let mut command = Command::new("perf");
        let fields = format!("overhead,{sort}");
        command.args(["report", "-i", DATA, "--stdio", "--no-children", "--percent-limit", "0.2"]);
        command.args(["--sort", &fields, "--fields", &fields]);
        command.args((sort == "comm,dso").then_some("--call-graph=none"));
        let output = run_within(Duration::from_secs(600), &mut command)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "perf report: {}\n{error}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        // Behind the symbol there are columns for its address, empty.
        let told = text
            .lines()
            .map(|line| line.trim_end_matches([' ', '-']))
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        told.take(lines).map(demangled).chain([String::new()]).for_each(|line| println!("{line}"));
    }
    Ok(())
}
