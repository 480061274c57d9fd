// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test bench`: the drivers, and the limit that the sockets set, in short rounds in one boot. Prints a line of JSON a
//! sample; what they come to, the harness works out.

mod job;
mod latency;
mod limit;
mod memory;
mod meter;
pub mod profile;
mod server;

use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use serde::Serialize;

use crate::device;
use crate::modules::Driver;
use crate::netlink;
use crate::process::wait_for;
use job::{Job, SIZE};
use latency::{Latencies, until};
use memory::Memory;
use server::Server;

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
    /// Fewer jobs
    #[arg(long)]
    quick: bool,
    /// How often all is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How often a device is attached in each round, by netlink and by ioctl
    #[arg(long, default_value_t = 20)]
    attaches: usize,
    /// The order of drivers and jobs, and fio's random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only jobs whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Subject {
    Nbd,
    Rnbd,
    Limit,
}

impl Subject {
    fn driver(self) -> Option<Driver> {
        match self {
            Subject::Nbd => Some(Driver::Nbd),
            Subject::Rnbd => Some(Driver::Rnbd),
            Subject::Limit => None,
        }
    }
}

/// A line of the output.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line<'a> {
    /// What is going to be done.
    Plan { rounds: usize, seed: u64, jobs: usize, fio: String },
    /// A job, in a round.
    Sample {
        round: usize,
        subject: Subject,
        name: String,
        #[serde(flatten)]
        job: &'a Job,
        /// Bytes and requests between the marks.
        bytes: u64,
        requests: u64,
        nanoseconds: u64,
        server_nanoseconds: u64,
        busy_nanoseconds: u64,
        connections_used: usize,
    },
    /// Attaching and detaching, in a round.
    Latency {
        round: usize,
        subject: Subject,
        interface: &'static str,
        #[serde(flatten)]
        latencies: Latencies,
    },
    /// What the block layer has made of the device.
    Queue { subject: Subject, connections: usize, attributes: Vec<(&'static str, String)> },
}

impl Line<'_> {
    fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// Runs all rounds.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        !Driver::Rnbd.loaded() && !Driver::Nbd.loaded(),
        "rmmod the driver that is loaded: both are measured"
    );
    let jobs: Vec<Job> =
        job::jobs(args.quick).into_iter().filter(|job| job.name().contains(&args.only)).collect();
    let fio = crate::process::run("fio", &["--version"])?.trim().to_owned();
    Line::Plan { rounds: args.rounds, seed: args.seed, jobs: jobs.len(), fio }.print()?;
    let memory = Arc::new(Memory::new(SIZE as usize)?);
    let mut rng = SmallRng::seed_from_u64(args.seed);
    // What a boot leaves to be done in the background is done, and caches are filled, before anything counts.
    std::thread::sleep(Duration::from_secs(10));
    let warm_up: Vec<Job> =
        jobs.iter().copied().filter(|job| job.depth == 32 || job.block == 1 << 20).collect();
    for subject in [Subject::Nbd, Subject::Rnbd, Subject::Limit] {
        Round { round: None, subject, seed: args.seed, memory: &memory }
            .run(args, &warm_up)
            .context("warm-up")?;
    }
    for round in 0..args.rounds {
        let mut subjects = [Subject::Nbd, Subject::Rnbd, Subject::Limit];
        subjects.shuffle(&mut rng);
        let mut order = jobs.clone();
        order.shuffle(&mut rng);
        // The same for all in a round: what is compared has the same addresses.
        let seed = u64::from(rng.next_u32());
        for subject in subjects {
            let bench = Round { round: Some(round), subject, seed, memory: &memory };
            bench.run(args, &order).with_context(|| format!("round {round}, {subject:?}"))?;
        }
    }
    Ok(())
}

struct Round<'a> {
    /// None of what does not count.
    round: Option<usize>,
    subject: Subject,
    seed: u64,
    memory: &'a Arc<Memory>,
}

impl Round<'_> {
    fn run(&self, args: &Args, jobs: &[Job]) -> Result<()> {
        let Some(driver) = self.subject.driver() else {
            return jobs.iter().try_for_each(|job| self.measure(job));
        };
        load(driver, &args.modules)?;
        jobs.iter().try_for_each(|job| self.measure(job).with_context(|| job.name()))?;
        if args.attaches > 0 && self.round.is_some() {
            self.latency("netlink", latency::by_netlink(self.memory, args.attaches)?)?;
            self.latency("ioctl", latency::by_ioctl(self.memory, args.attaches)?)?;
        }
        unload(driver)
    }

    fn latency(&self, interface: &'static str, latencies: Latencies) -> Result<()> {
        let Some(round) = self.round else { return Ok(()) };
        Line::Latency { round, subject: self.subject, interface, latencies }.print()
    }

    fn measure(&self, job: &Job) -> Result<()> {
        let meter = Arc::new(job.meter());
        let server = Server::new(job.transport, job.connections, self.memory, &meter)?;
        if self.subject.driver().is_some() {
            self.on_device(job, &server)?;
        } else {
            limit::run(job, &server.sockets, self.seed)?;
        }
        let connections_used = server.ended()?;
        let measured = meter.measured()?;
        let Some(round) = self.round else { return Ok(()) };
        Line::Sample {
            round,
            subject: self.subject,
            name: job.name(),
            job,
            bytes: measured.bytes,
            requests: measured.requests,
            nanoseconds: measured.time,
            server_nanoseconds: measured.server,
            busy_nanoseconds: measured.busy,
            connections_used,
        }
        .print()
    }

    fn on_device(&self, job: &Job, server: &Server) -> Result<()> {
        attached_to(server, job.connections, || {
            job.run("/dev/nbd0", self.seed, &[])?;
            if self.round == Some(0) { self.queue(job) } else { Ok(()) }
        })
    }

    fn queue(&self, job: &Job) -> Result<()> {
        let attributes =
            ["scheduler", "max_sectors_kb", "max_segments", "nr_requests", "rotational", "wbt_lat_usec"];
        let attributes =
            attributes.map(|name| (name, device::sysfs(0, &format!("queue/{name}")).unwrap_or_default()));
        Line::Queue { subject: self.subject, connections: job.connections, attributes: attributes.into() }
            .print()
    }
}

/// Attaches the first device by netlink, does something, and detaches it.
fn attached_to(server: &Server, connections: usize, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let client = netlink::Client::open()?;
    let fds: Vec<RawFd> = server.sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let answer = client.connect(Some(0), SIZE, &fds, &latency::options(connections))?;
    answer.map_err(|refusal| anyhow!("CONNECT: {refusal:?}"))?;
    let done = body();
    let answer = client.disconnect(0)?;
    done?;
    answer.map_err(|refusal| anyhow!("DISCONNECT: {refusal:?}"))?;
    until("the device to be idle", || !device::attached(0))
}

fn load(driver: Driver, modules: &Path) -> Result<()> {
    driver.load(modules, "nbds_max=1 max_part=0")?;
    wait_for("/dev/nbd0", || device::node(0).exists())
}

fn unload(driver: Driver) -> Result<()> {
    let mut last = None;
    wait_for("rmmod", || match driver.remove() {
        Ok(()) => true,
        Err(errno) => {
            last = Some(errno);
            false
        }
    })
    .with_context(|| format!("{last:?}"))
}
