// SPDX-License-Identifier: GPL-2.0
//! All that was measured, put together: what the JSON file holds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::line::{Latency, Line, Plan, Queue, Sample, Subject};
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
    /// Fewer jobs and rounds.
    pub quick: bool,
}

/// What one subject took for a job, per I/O.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// All of it, idle time too.
    pub all: Summary,
    /// Without what the server's process took.
    pub without_server: Summary,
    /// Share of the time in which no task ran.
    pub idle: f64,
    /// Requests on the wire for an I/O.
    pub requests: f64,
    /// How many connections had a request.
    pub connections_used: usize,
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

/// All of it.
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
    latencies: Vec<Latency>,
    queues: Vec<Queue>,
}

impl Collected {
    /// Takes a line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Plan(plan) => self.plan = plan,
            Line::Sample(sample) => self.samples.push(sample),
            Line::Latency(latency) => self.latencies.push(latency),
            Line::Queue(queue) => self.queues.push(queue),
        }
    }

    /// How many jobs have been measured, and how many there are; those of the limit too.
    pub fn progress(&self) -> (usize, usize) {
        (self.samples.len(), 3 * self.plan.rounds * self.plan.jobs)
    }

    /// Works everything out.
    pub fn results(mut self, origin: Origin) -> Results {
        self.queues.sort();
        self.queues.dedup();
        let mut jobs: BTreeMap<_, Vec<&Sample>> = BTreeMap::new();
        for sample in &self.samples {
            let order =
                (&sample.transport != "unix", sample.connections, sample.block, &sample.kind, sample.depth);
            jobs.entry((order, &sample.name)).or_default().push(sample);
        }
        let jobs = jobs.into_iter().map(|((_, name), samples)| job(name, &samples)).collect();
        let latencies = latencies(&self.latencies);
        let (plan, queues, samples) = (self.plan, self.queues, self.samples);
        Results { origin, plan, jobs, latencies, queues, samples }
    }
}

fn all(sample: &Sample) -> f64 {
    sample.nanoseconds as f64 / sample.count() / 1000.0
}

fn without_server(sample: &Sample) -> f64 {
    sample.nanoseconds.saturating_sub(sample.server_nanoseconds) as f64 / sample.count() / 1000.0
}

fn cost(samples: &[&Sample]) -> Option<Cost> {
    let summary = |figure: fn(&Sample) -> f64| {
        Summary::of(&samples.iter().map(|sample| figure(sample)).collect::<Vec<_>>())
    };
    let idle = |sample: &Sample| (1.0 - sample.busy_nanoseconds as f64 / sample.nanoseconds as f64).max(0.0);
    Some(Cost {
        all: summary(all)?,
        without_server: summary(without_server)?,
        idle: summary(idle)?.median,
        requests: summary(|sample| sample.requests as f64 / sample.count())?.median,
        connections_used: samples.iter().map(|sample| sample.connections_used).max()?,
    })
}

fn job(name: &str, samples: &[&Sample]) -> JobResult {
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
    let subjects = [Subject::Nbd, Subject::Rnbd, Subject::Limit];
    JobResult {
        name: name.to_owned(),
        costs: subjects.into_iter().filter_map(|subject| Some((subject, cost(&of(subject))?))).collect(),
        speedup: ratio(Subject::Nbd, Subject::Rnbd, all),
        speedup_without_server: ratio(Subject::Nbd, Subject::Rnbd, without_server),
        over_limit: ratio(Subject::Rnbd, Subject::Limit, all),
    }
}

fn latencies(lines: &[Latency]) -> Vec<LatencyResult> {
    let mut results = Vec::new();
    for interface in ["netlink", "ioctl"] {
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
