// SPDX-License-Identifier: GPL-2.0
//! What is done to a device: the jobs, and fio's words for them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::meter::Meter;
use super::server::Transport;
use crate::process::run_within;

/// Bytes of the export.
pub const SIZE: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    RandomRead,
    RandomWrite,
    Read,
    Write,
    /// Random, 70 of 100 are reads.
    Mixed,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::RandomRead, Kind::RandomWrite, Kind::Read, Kind::Write, Kind::Mixed];

    fn fio(self) -> &'static str {
        match self {
            Kind::RandomRead => "randread",
            Kind::RandomWrite => "randwrite",
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Mixed => "randrw",
        }
    }

    /// How many of 100 requests are reads.
    pub fn reads(self) -> u64 {
        match self {
            Kind::RandomRead | Kind::Read => 100,
            Kind::RandomWrite | Kind::Write => 0,
            Kind::Mixed => 70,
        }
    }

    pub fn sequential(self) -> bool {
        matches!(self, Kind::Read | Kind::Write)
    }
}

/// One job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Job {
    pub kind: Kind,
    pub block: u64,
    pub depth: u64,
    pub connections: usize,
    pub transport: Transport,
    /// How much longer than in the benchmark it goes on.
    #[serde(skip)]
    pub longer: u64,
}

impl Job {
    /// So many blocks are read or written, in all.
    pub fn blocks(&self) -> u64 {
        let payload = (48 << 20) / self.block;
        payload.clamp(1, 1500) * self.longer + 4 * self.depth
    }

    /// Measures what lies between the first rounds, which fill the queue, and the last, which empty it.
    pub fn meter(&self) -> Meter {
        let warm = self.depth.max(8) + self.depth;
        Meter::new(warm * self.block, (self.blocks() - self.depth) * self.block)
    }

    pub fn name(&self) -> String {
        let block = if self.block < 1 << 20 {
            format!("{}k", self.block >> 10)
        } else {
            format!("{}m", self.block >> 20)
        };
        let (kind, transport) = (self.kind.fio(), self.transport.name());
        format!("{kind}-{block}-qd{}-{}conn-{transport}", self.depth, self.connections)
    }

    /// The job of this name.
    pub fn named(name: &str) -> Result<Job> {
        let parse = || {
            let mut parts = name.split('-');
            let mut next = || parts.next();
            let kind = next()?;
            let kind = Kind::ALL.into_iter().find(|known| known.fio() == kind)?;
            let block = next()?;
            let unit = if block.ends_with('m') { 1 << 20 } else { 1 << 10 };
            let block = block.strip_suffix(['k', 'm'])?.parse::<u64>().ok()? * unit;
            let depth = next()?.strip_prefix("qd")?.parse().ok()?;
            let connections = next()?.strip_suffix("conn")?.parse().ok()?;
            let transport = next()?;
            let transport = Transport::ALL.into_iter().find(|known| known.name() == transport)?;
            let in_range = block > 0 && block <= SIZE && depth > 0 && connections > 0;
            (in_range && next().is_none()).then_some(Job {
                kind,
                block,
                depth,
                connections,
                transport,
                longer: 1,
            })
        };
        parse().with_context(|| {
            format!("{name:?} is no job: say KIND-BLOCK-qdDEPTH-COUNTconn-unix|tcp, as randread-4k-qd32-1conn-unix")
        })
    }

    /// Does it, by fio, to the end. `under` is what fio is started by, if anything.
    pub fn run(&self, device: &str, seed: u64, under: &[&str]) -> Result<()> {
        let mut words = under.iter().copied().chain(["fio"]);
        let mut command = Command::new(words.next().unwrap_or("fio"));
        command.args(words);
        command.args(["--name=bench", "--thread", "--ioengine=io_uring", "--direct=1", "--norandommap"]);
        // What would cost time at the client, and tell nothing of the driver.
        command.args(["--gtod_reduce=1", "--scramble_buffers=0", "--invalidate=0", "--output=/tmp/fio.log"]);
        command.arg(format!("--filename={device}")).arg(format!("--rw={}", self.kind.fio()));
        command.arg(format!("--rwmixread={}", self.kind.reads()));
        command.arg(format!("--bs={}", self.block)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={SIZE}")).arg(format!("--io_size={}", self.blocks() * self.block));
        command.arg(format!("--randseed={seed}"));
        let output = run_within(Duration::from_secs(600), &mut command)?;
        let said = std::fs::read_to_string("/tmp/fio.log").unwrap_or_default();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "fio, {}: {}\n{said}{error}", self.name(), output.status);
        Ok(())
    }
}

/// The jobs of a run. The quick ones keep each kind, and vary transport and connections where it matters most.
pub fn jobs(quick: bool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (transport, connections) in
        [(Transport::Unix, 1), (Transport::Tcp, 1), (Transport::Unix, 4), (Transport::Tcp, 4)]
    {
        let first = (transport, connections) == (Transport::Unix, 1);
        let job = |kind, block, depth| Job { kind, block, depth, connections, transport, longer: 1 };
        let mut all = Vec::new();
        for kind in [Kind::RandomRead, Kind::RandomWrite] {
            all.extend([1, 8, 32, 128].map(|depth| job(kind, 4 << 10, depth)));
        }
        all.push(job(Kind::Mixed, 4 << 10, 32));
        for kind in [Kind::Read, Kind::Write] {
            all.extend([64 << 10, 1 << 20].map(|block| job(kind, block, 4)));
        }
        let few = |job: &Job| match transport {
            Transport::Tcp if connections == 1 => {
                job.depth == 32 && job.kind != Kind::Mixed || job.block == 1 << 20
            }
            Transport::Unix => job.depth == 128,
            Transport::Tcp => false,
        };
        jobs.extend(all.into_iter().filter(|job| !quick || first || few(job)));
    }
    jobs
}
