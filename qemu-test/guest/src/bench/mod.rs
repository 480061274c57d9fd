// SPDX-License-Identifier: GPL-2.0
//! `rnbd-test bench`: the drivers, and the limit that the sockets set, in short rounds in one boot. Prints a line of JSON a
//! sample; what they come to, the harness works out.

mod job;
mod kernel;
mod latency;
mod limit;
mod line;
mod memory;
mod meter;
pub mod profile;
mod program;
mod scaling;
mod server;
mod ublk;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use serde::Serialize;

use crate::device;
use crate::modules::Driver;
use crate::netlink;
use crate::process::wait_for;
use job::{Extent, Job, SIZE, Serves};
use kernel::Sampler;
use latency::{Latencies, Left, until};
use line::Line;
use memory::Memory;
use meter::Measured;
use program::Program;
use scaling::{Axis, Point};
use server::Server;

/// Options of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory that holds rnbd.ko and nbd.ko
    #[arg(long, default_value = "/modules")]
    modules: PathBuf,
    /// How much is measured
    #[arg(long, default_value = "full")]
    extent: Extent,
    /// How often all is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many times as long each job takes
    #[arg(long, default_value_t = 1)]
    longer: u64,
    /// How often a device is attached in each round, by netlink and by ioctl
    #[arg(long, default_value_t = 20)]
    attaches: usize,
    /// What the cost is to be seen over
    #[arg(long, value_delimiter = ',')]
    scaling: Vec<Axis>,
    /// In how many of the rounds
    #[arg(long, default_value_t = 3)]
    scaling_rounds: usize,
    /// The order of drivers and jobs, and fio's random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only jobs with so many connections
    #[arg(long)]
    connections: Option<usize>,
    /// Only jobs whose name has this in it
    #[arg(long, default_value = "")]
    only: String,
}

/// How long a boot has work of its own.
const SETTLE: Duration = Duration::from_secs(10);

/// The first device.
const NAME: &str = "nbd0";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Nbd,
    Rnbd,
    /// A client in user space, behind ublk.
    Ublk,
    Limit,
}

impl Subject {
    /// All that there is: ublk is not on every kernel.
    fn all() -> Vec<Subject> {
        let mut all = vec![Subject::Nbd, Subject::Rnbd, Subject::Limit];
        all.extend(ublk::available().then_some(Subject::Ublk));
        all
    }

    fn driver(self) -> Option<Driver> {
        match self {
            Subject::Nbd => Some(Driver::Nbd),
            Subject::Rnbd => Some(Driver::Rnbd),
            Subject::Ublk | Subject::Limit => None,
        }
    }
}

/// Runs all rounds.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        !Driver::Rnbd.loaded() && !Driver::Nbd.loaded(),
        "rmmod the driver that is loaded: both are measured"
    );
    let jobs: Vec<Job> = job::jobs(args.extent)
        .into_iter()
        .filter(|job| args.connections.is_none_or(|count| count == job.connections))
        .filter(|job| job.name().contains(&args.only))
        .map(|job| Job { longer: args.longer, ..job })
        .collect();
    let fio = crate::process::run("fio", &["--version"])?.trim().to_owned();
    let points: Vec<(Axis, u32)> = args
        .scaling
        .iter()
        .flat_map(|axis| axis.counts(args.extent).iter().map(|count| (*axis, *count)))
        .collect();
    let scaling_rounds = args.scaling_rounds.min(args.rounds);
    let subjects = Subject::all();
    let suiting = |subject| points.iter().copied().filter(move |(axis, _)| axis.suits(subject));
    let scaled: usize = subjects.iter().map(|subject| suiting(*subject).count()).sum();
    let steps = subjects.len() * (args.rounds + 1) * jobs.len() + scaling_rounds * scaled;
    Line::Plan { rounds: args.rounds, seed: args.seed, steps, fio }.print()?;
    let memory = Arc::new(Memory::new(SIZE as usize)?);
    let wanted = |serves: &Serves| jobs.iter().any(|job| job.serves == *serves);
    let programs = Serves::ALL.into_iter().filter(wanted).map(Program::start);
    let programs: Vec<Program> = programs.filter_map(Result::transpose).collect::<Result<_>>()?;
    let (memory, programs) = (&memory, &programs[..]);
    let mut rng = SmallRng::seed_from_u64(args.seed);
    // What a boot leaves to be done in the background is done, and caches are filled, before anything counts.
    std::thread::sleep(SETTLE);
    for subject in subjects.iter().copied() {
        let sampler = Some(Arc::new(Sampler::start()?));
        Round { round: None, subject, seed: args.seed, memory, programs, sampler }
            .run(args, &jobs)
            .context("warm-up")?;
    }
    Line::Round { round: None }.print()?;
    for round in 0..args.rounds {
        let mut subjects = subjects.clone();
        subjects.shuffle(&mut rng);
        let mut order = jobs.clone();
        order.shuffle(&mut rng);
        // The same for all in a round: what is compared has the same addresses.
        let seed = u64::from(rng.next_u32());
        for subject in subjects {
            Round { round: Some(round), subject, seed, memory, programs, sampler: None }
                .run(args, &order)
                .with_context(|| format!("round {round}, {subject:?}"))?;
            for (axis, count) in suiting(subject).filter(|_| round < scaling_rounds) {
                Point { round, subject, axis, count, seed, memory }
                    .measure(&args.modules)
                    .with_context(|| format!("round {round}, {subject:?}"))?;
            }
        }
        Line::Round { round: Some(round) }.print()?;
    }
    Ok(())
}

struct Round<'a> {
    /// None of what does not count.
    round: Option<usize>,
    subject: Subject,
    seed: u64,
    memory: &'a Arc<Memory>,
    programs: &'a [Program],
    /// Only in the round that does not count: taking samples costs time too.
    sampler: Option<Arc<Sampler>>,
}

impl Round<'_> {
    fn run(&self, args: &Args, jobs: &[Job]) -> Result<()> {
        let measure = |job: &Job| self.measure(job).with_context(|| job.name());
        let Some(driver) = self.subject.driver() else {
            return jobs.iter().try_for_each(measure);
        };
        load(driver, &args.modules)?;
        jobs.iter().try_for_each(measure)?;
        unload(driver)?;
        if args.attaches > 0 && self.round.is_some() {
            for left in Left::ALL.into_iter().filter(|left| left.suits(self.subject)) {
                load_with(driver, &args.modules, left.partitions())?;
                let netlink = latency::by_netlink(self.memory, args.attaches, left);
                self.latency(left.after("netlink"), netlink.context("by netlink")?)?;
                let ioctl = latency::by_ioctl(self.memory, args.attaches, left);
                self.latency(left.after("ioctl"), ioctl.context("by ioctl")?)?;
                unload(driver)?;
            }
        }
        Ok(())
    }

    fn latency(&self, interface: String, latencies: Latencies) -> Result<()> {
        let Some(round) = self.round else { return Ok(()) };
        Line::Latency { round, subject: self.subject, interface, latencies }.print()
    }

    fn measure(&self, job: &Job) -> Result<()> {
        let program = self.programs.iter().find(|program| program.serves() == job.serves);
        let (measured, connections_used) = match program {
            None => self.on_memory(job)?,
            Some(program) => (self.on_program(job, program)?, None),
        };
        let (subject, name) = (self.subject, job.name());
        let Some(round) = self.round else {
            let processors = measured.kernel as f64 / measured.time as f64;
            return Line::Kernel { subject, name, processors }.print();
        };
        Line::Sample { round, subject, name, job, figures: (&measured).into(), connections_used }.print()
    }

    fn on_memory(&self, job: &Job) -> Result<(Measured, Option<usize>)> {
        let meter = Arc::new(job.meter().with_sampler(self.sampler.clone()));
        let server = Server::new(job.transport, job.connections, self.memory, &meter)?;
        match self.subject {
            Subject::Nbd | Subject::Rnbd => attached_to(&server, job.connections, || self.fio(job))?,
            Subject::Ublk => ublk::attached_to(job, &server.sockets, || self.fio(job))?,
            Subject::Limit => limit::run(job, &server.sockets, self.seed, None).map(drop)?,
        }
        let connections_used = server.ended()?;
        Ok((meter.measured()?, connections_used))
    }

    /// A real server does not see our marks: the device, or the limit's client, has to.
    fn on_program(&self, job: &Job, program: &Program) -> Result<Measured> {
        let meter = job.meter().with_server(program.pid())?;
        let server = Server::of_program(program, job.connections)?;
        if self.subject == Subject::Limit {
            let measured = limit::run(job, &server.sockets, self.seed, Some(&meter))?;
            return measured.context("the limit's client says nothing");
        }
        let meter = meter.with_sampler(self.sampler.clone());
        match self.subject {
            Subject::Ublk => {
                ublk::attached_to(job, &server.sockets, || meter.watching(ublk::NAME, || self.fio(job)))?
            }
            _ => attached_to(&server, job.connections, || meter.watching(NAME, || self.fio(job)))?,
        }
        meter.measured()
    }

    fn fio(&self, job: &Job) -> Result<()> {
        let name = if self.subject == Subject::Ublk { ublk::NAME } else { NAME };
        job.run(&[name], self.seed, &[])?;
        if self.round == Some(0) { self.queue(job, name) } else { Ok(()) }
    }

    fn queue(&self, job: &Job, device: &str) -> Result<()> {
        let attributes =
            ["scheduler", "max_sectors_kb", "max_segments", "nr_requests", "rotational", "wbt_lat_usec"];
        let read = |name| fs::read_to_string(format!("/sys/block/{device}/queue/{name}")).unwrap_or_default();
        let attributes = attributes.map(|name| (name, read(name).trim().to_owned()));
        Line::Queue { subject: self.subject, connections: job.connections, attributes: attributes.into() }
            .print()
    }
}

/// Attaches the first device by netlink, does something, and detaches it.
fn attached_to(server: &Server, connections: usize, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let client = netlink::Client::open()?;
    latency::connect(&client, 0, server, connections)?;
    let done = body();
    let detached = latency::disconnect(&client, 0);
    done?;
    detached?;
    until("the device to be idle", || !device::attached(0))
}

fn load(driver: Driver, modules: &Path) -> Result<()> {
    load_with(driver, modules, 0)
}

fn load_with(driver: Driver, modules: &Path, partitions: u32) -> Result<()> {
    driver.load(modules, &format!("nbds_max=1 max_part={partitions}"))?;
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
