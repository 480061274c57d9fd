// SPDX-License-Identifier: GPL-2.0
//! What is done to a device: the jobs, and fio's words for them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

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
}

impl Job {
    /// So many blocks are read or written, in all.
    pub fn blocks(&self) -> u64 {
        let payload = (48 << 20) / self.block;
        payload.clamp(1, 1500) + 4 * self.depth
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
        let transport = match self.transport {
            Transport::Unix => "unix",
            Transport::Tcp => "tcp",
        };
        format!("{}-{block}-qd{}-{}conn-{transport}", self.kind.fio(), self.depth, self.connections)
    }

    /// Does it, by fio, to the end.
    pub fn run(&self, device: &str, seed: u64) -> Result<()> {
        let mut command = Command::new("fio");
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
        let job = |kind, block, depth| Job { kind, block, depth, connections, transport };
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
