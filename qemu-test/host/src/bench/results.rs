// SPDX-License-Identifier: GPL-2.0
//! All that was measured, put together: what the JSON file holds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::line::{Figures, Kernel, Latency, Line, Plan, Queue, Sample, Scaling, Subject};
use super::statistics::{Ratio, Summary, quantile};

/// What a nanosecond of the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// An instruction.
    Instructions,
    /// A nanosecond.
    Time,
}

impl Measure {
    /// The name of its files.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Instructions => "instructions",
            Measure::Time => "time",
        }
    }

    /// What a figure of it is called.
    pub fn unit(self) -> &'static str {
        match self {
            Measure::Instructions => "thousands of instructions per I/O",
            Measure::Time => "microseconds per I/O",
        }
    }
}

/// Where and of what it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// The day.
    pub date: String,
    /// The commit that rnbd.ko was built from.
    pub commit: String,
    /// The kernel's release.
    pub kernel: String,
    /// Processors, memory, accelerator.
    pub machine: String,
    /// What a figure is.
    pub measure: Measure,
    /// Its processors take turns, so that what they are told of their time holds others' turns too.
    pub turns: bool,
    /// Fewer jobs and rounds.
    pub quick: bool,
}

/// What one subject took for a job, per I/O.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// All of it, idle time too.
    pub all: Summary,
    /// Without what the server's process took, where that is known.
    pub without_server: Option<Summary>,
    /// Share of the time in which no task ran, where that is known.
    pub idle: Option<f64>,
    /// What the kernel took of it, by samples in a round of its own.
    pub kernel: Option<f64>,
    /// Requests on the wire for an I/O.
    pub requests: f64,
    /// How many connections had a request, if that is known.
    pub connections_used: Option<usize>,
}

/// A job's figures.
#[derive(Clone, Debug, Serialize)]
pub struct JobResult {
    /// Its name.
    pub name: String,
    /// Of each subject.
    pub costs: BTreeMap<Subject, Cost>,
    /// How many times as fast as nbd.ko rnbd.ko is.
    pub speedup: Option<Ratio>,
    /// The same of what is not the server's.
    pub speedup_without_server: Option<Ratio>,
    /// How many times as fast as nbd.ko the client behind ublk is.
    pub ublk_speedup: Option<Ratio>,
    /// How many times the limit's cost rnbd.ko's is.
    pub over_limit: Option<Ratio>,
}

/// How long attaching or detaching took, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct LatencyResult {
    /// netlink or ioctl.
    pub interface: String,
    /// connect, connect and first read, or disconnect.
    pub operation: &'static str,
    /// Median and 99 of 100, of each driver.
    pub times: BTreeMap<Subject, (f64, f64)>,
    /// How many times as fast as nbd.ko rnbd.ko is, by the rounds' medians.
    pub speedup: Option<Ratio>,
}

/// What one driver took with so many of something.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ScalingCost {
    /// Of an I/O.
    pub cost: Summary,
    /// Microseconds to attach, the median.
    pub connect: f64,
    /// Microseconds to detach, the median.
    pub disconnect: f64,
}

/// Figures with so many of something.
#[derive(Clone, Debug, Serialize)]
pub struct ScalingResult {
    /// Of what.
    pub axis: String,
    /// How many.
    pub count: u32,
    /// Of each driver.
    pub costs: BTreeMap<Subject, ScalingCost>,
}

/// All of one boot.
#[derive(Serialize)]
pub struct Results {
    /// Where it is from.
    pub origin: Origin,
    /// What was done.
    pub plan: Plan,
    /// The jobs, in the order of their names.
    pub jobs: Vec<JobResult>,
    /// Attaching and detaching.
    pub latencies: Vec<LatencyResult>,
    /// The same and a job, with more and more of something.
    pub scaling: Vec<ScalingResult>,
    /// The devices' queues.
    pub queues: Vec<Queue>,
    /// What it was worked out from.
    pub samples: Vec<Sample>,
}

/// Lines, sorted by what they are.
#[derive(Default)]
pub struct Collected {
    plan: Plan,
    samples: Vec<Sample>,
    kernel: Vec<Kernel>,
    latencies: Vec<Latency>,
    scaling: Vec<Scaling>,
    queues: Vec<Queue>,
}

impl Collected {
    /// Takes a line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Plan(plan) => self.plan = plan,
            Line::Round(_) => {}
            Line::Sample(sample) => self.samples.push(sample),
            Line::Kernel(kernel) => self.kernel.push(kernel),
            Line::Scaling(scaling) => self.scaling.push(scaling),
            Line::Latency(latency) => self.latencies.push(latency),
            Line::Queue(queue) => self.queues.push(queue),
        }
    }

    /// How many rounds there are.
    pub fn rounds(&self) -> usize {
        self.plan.rounds
    }

    /// How much has been measured, and how much there is.
    pub fn progress(&self) -> (usize, usize) {
        (self.samples.len() + self.kernel.len() + self.scaling.len(), self.plan.steps)
    }

    /// Works everything out.
    pub fn results(mut self, origin: Origin) -> Results {
        self.queues.sort();
        self.queues.dedup();
        let mut jobs: BTreeMap<_, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            let way = (&sample.serves != "memory", &sample.serves, &sample.transport != "unix");
            let order = (way, sample.connections, sample.block, &sample.kind, sample.depth);
            jobs.entry((order, &sample.name)).or_default().push(sample);
        }
        let jobs =
            jobs.into_iter().map(|((_, name), samples)| job(name, &samples, &self.kernel, origin.turns));
        let jobs = jobs.collect();
        let latencies = latencies(&self.latencies);
        let scaling = scaling(&self.scaling);
        let (plan, queues, samples) = (self.plan, self.queues, self.samples);
        Results { origin, plan, jobs, latencies, scaling, queues, samples }
    }
}

impl Figures {
    /// For an I/O of so many bytes, in thousands.
    fn each(&self, nanoseconds: u64, block: u64) -> f64 {
        nanoseconds as f64 / (self.bytes as f64 / block as f64) / 1000.0
    }
}

fn all(sample: &Sample) -> f64 {
    sample.figures.each(sample.figures.nanoseconds, sample.block)
}

fn without_server(sample: &Sample) -> f64 {
    let figures = &sample.figures;
    figures.each(figures.nanoseconds.saturating_sub(figures.server_nanoseconds), sample.block)
}

fn cost(samples: &[&Sample], kernel: &[Kernel], turns: bool) -> Option<Cost> {
    let summary = |figure: fn(&Sample) -> f64| {
        Summary::of(&samples.iter().map(|sample| figure(sample)).collect::<Vec<_>>())
    };
    let idle = |sample: &Sample| {
        (1.0 - sample.figures.busy_nanoseconds as f64 / sample.figures.nanoseconds as f64).max(0.0)
    };
    let requests = |sample: &Sample| {
        sample.figures.requests as f64 / (sample.figures.bytes as f64 / sample.block as f64)
    };
    let all = summary(all)?;
    let first = samples.first()?;
    let kernel = kernel.iter().find(|one| one.subject == first.subject && one.name == first.name);
    Some(Cost {
        all,
        without_server: summary(without_server).filter(|_| !turns),
        idle: summary(idle).filter(|_| !turns).map(|idle| idle.median),
        // A real server's limit is measured by a process that takes no samples.
        kernel: kernel.map(|kernel| kernel.processors * all.median).filter(|kernel| *kernel > 0.0 && !turns),
        requests: summary(requests)?.median,
        connections_used: samples.iter().map(|sample| sample.connections_used).max()?,
    })
}

fn job(name: &str, samples: &[&Sample], kernel: &[Kernel], turns: bool) -> JobResult {
    let of = |subject| -> Vec<&Sample> {
        samples.iter().copied().filter(|sample| sample.subject == subject).collect()
    };
    let ratio = |one, other, figure: fn(&Sample) -> f64| {
        let (one, other) = (of(one), of(other));
        let pair = |sample: &&Sample| {
            let same = other.iter().find(|candidate| candidate.round == sample.round)?;
            Some((figure(sample), figure(same)))
        };
        Ratio::of_pairs(&one.iter().filter_map(pair).collect::<Vec<_>>())
    };
    let subjects = [Subject::Nbd, Subject::Rnbd, Subject::Ublk, Subject::Limit];
    JobResult {
        name: name.to_owned(),
        costs: subjects
            .into_iter()
            .filter_map(|subject| Some((subject, cost(&of(subject), kernel, turns)?)))
            .collect(),
        speedup: ratio(Subject::Nbd, Subject::Rnbd, all),
        speedup_without_server: ratio(Subject::Nbd, Subject::Rnbd, without_server).filter(|_| !turns),
        ublk_speedup: ratio(Subject::Nbd, Subject::Ublk, all),
        over_limit: ratio(Subject::Rnbd, Subject::Limit, all),
    }
}

fn latencies(lines: &[Latency]) -> Vec<LatencyResult> {
    let mut results = Vec::new();
    // In the order in which they are measured, whoever of the two has more of them.
    let mut interfaces: Vec<&str> = Vec::new();
    for subject in [Subject::Rnbd, Subject::Nbd] {
        for line in lines.iter().filter(|line| line.subject == subject) {
            if !interfaces.contains(&&*line.interface) {
                interfaces.push(&line.interface);
            }
        }
    }
    for interface in interfaces {
        for (operation, of) in [
            ("connect", (|line| &line.connect) as fn(&Latency) -> &Vec<u64>),
            ("connect and first read", |line| &line.first_read),
            ("disconnect", |line| &line.disconnect),
        ] {
            let numbers =
                |line: &Latency| of(line).iter().map(|time| *time as f64 / 1000.0).collect::<Vec<_>>();
            let lines = || lines.iter().filter(|line| line.interface == interface);
            let times = [Subject::Nbd, Subject::Rnbd].into_iter().filter_map(|subject| {
                let all: Vec<f64> =
                    lines().filter(|line| line.subject == subject).flat_map(numbers).collect();
                Some((subject, (quantile(&all, 0.5)?, quantile(&all, 0.99)?)))
            });
            let times: BTreeMap<_, _> = times.collect();
            let median = |subject, round| {
                let line = lines().find(|line| line.subject == subject && line.round == round)?;
                quantile(&numbers(line), 0.5)
            };
            let rounds = lines().map(|line| line.round).max().map_or(0, |last| last + 1);
            let pair = |round| Some((median(Subject::Nbd, round)?, median(Subject::Rnbd, round)?));
            let pairs: Vec<_> = (0..rounds).filter_map(pair).collect();
            if !times.is_empty() {
                let speedup = Ratio::of_pairs(&pairs);
                results.push(LatencyResult { interface: interface.to_owned(), operation, times, speedup });
            }
        }
    }
    results
}

fn scaling(lines: &[Scaling]) -> Vec<ScalingResult> {
    let mut points: BTreeMap<_, BTreeMap<Subject, Vec<&Scaling>>> = BTreeMap::new();
    for line in lines {
        points.entry((&line.axis, line.count)).or_default().entry(line.subject).or_default().push(line);
    }
    let cost = |lines: Vec<&Scaling>| {
        let each = |line: &&Scaling| line.figures.each(line.figures.nanoseconds, line.block);
        let median = |of: fn(&Scaling) -> &Vec<u64>| {
            let times = lines.iter().flat_map(|line| of(line)).map(|time| *time as f64 / 1000.0);
            quantile(&times.collect::<Vec<_>>(), 0.5)
        };
        Some(ScalingCost {
            cost: Summary::of(&lines.iter().map(each).collect::<Vec<_>>())?,
            connect: median(|line| &line.connect)?,
            disconnect: median(|line| &line.disconnect)?,
        })
    };
    let point = |((axis, count), subjects): ((&String, u32), BTreeMap<Subject, Vec<&Scaling>>)| {
        let costs = subjects.into_iter().filter_map(|(subject, lines)| Some((subject, cost(lines)?)));
        ScalingResult { axis: axis.clone(), count, costs: costs.collect() }
    };
    points.into_iter().map(point).collect()
}
