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

/// Who serves a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serves {
    /// This program, as fast as it can.
    Memory,
    /// nbdkit's memory plugin.
    Nbdkit,
    /// qemu-nbd, a raw file.
    QemuNbd,
}

impl Serves {
    pub const ALL: [Serves; 3] = [Serves::Memory, Serves::Nbdkit, Serves::QemuNbd];

    /// As the program is called, if it is one.
    pub fn name(self) -> &'static str {
        match self {
            Serves::Memory => "memory",
            Serves::Nbdkit => "nbdkit",
            Serves::QemuNbd => "qemu-nbd",
        }
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
    pub serves: Serves,
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

    /// The same of several devices: until the first of them can have come near to its end.
    pub fn meter_on(&self, devices: u64) -> Meter {
        let (warm, all) = (devices * 2 * self.depth.max(8), devices * self.blocks());
        if devices == 1 { self.meter() } else { Meter::new(warm * self.block, all * 3 / 4 * self.block) }
    }

    pub fn name(&self) -> String {
        let block = if self.block < 1 << 20 {
            format!("{}k", self.block >> 10)
        } else {
            format!("{}m", self.block >> 20)
        };
        let (kind, transport) = (self.kind.fio(), self.transport.name());
        let program = match self.serves {
            Serves::Memory => String::new(),
            program => format!("-{}", program.name()),
        };
        format!("{kind}-{block}-qd{}-{}conn-{transport}{program}", self.depth, self.connections)
    }

    /// The job of this name.
    pub fn named(name: &str) -> Result<Job> {
        let parse = || {
            let mut parts = name.splitn(6, '-');
            let kind = parts.next()?;
            let kind = Kind::ALL.into_iter().find(|known| known.fio() == kind)?;
            let block = parts.next()?;
            let unit = if block.ends_with('m') { 1 << 20 } else { 1 << 10 };
            let block = block.strip_suffix(['k', 'm'])?.parse::<u64>().ok()? * unit;
            let depth = parts.next()?.strip_prefix("qd")?.parse().ok()?;
            let connections = parts.next()?.strip_suffix("conn")?.parse().ok()?;
            let transport = parts.next()?;
            let transport = Transport::ALL.into_iter().find(|known| known.name() == transport)?;
            let serves = parts.next().unwrap_or(Serves::Memory.name());
            let serves = Serves::ALL.into_iter().find(|known| known.name() == serves)?;
            let job = Job { kind, block, depth, connections, transport, serves, longer: 1 };
            let possible = block > 0 && block <= SIZE && depth > 0 && connections > 0;
            (possible && job.name() == name).then_some(job)
        };
        parse().with_context(|| {
            format!(
                "{name:?} is no job: say randread|randwrite|randrw|read|write-BLOCK-qdDEPTH-COUNTconn-unix|tcp, \
                 as randread-4k-qd32-1conn-unix, and -nbdkit or -qemu-nbd behind it"
            )
        })
    }

    fn belongs_to(&self, extent: Extent) -> bool {
        let deep = self.kind != Kind::Mixed && self.depth == 32;
        let plain =
            self.serves == Serves::Memory && self.transport == Transport::Unix && self.connections == 1;
        match (extent, self.serves) {
            (Extent::Full, Serves::Memory) => true,
            (Extent::Full, _) => deep || self.block == 1 << 20,
            (Extent::Quick, Serves::Memory) if plain => deep || self.depth == 1 || self.block == 1 << 20,
            (Extent::Quick, Serves::Memory) if self.connections > 1 => {
                self.transport == Transport::Unix && self.depth == 128
            }
            (Extent::Quick, Serves::Memory) => deep,
            (Extent::Quick, _) => false,
            (Extent::Few, _) => plain && (deep || self.block == 1 << 20),
        }
    }

    /// Does it, by fio, to the end: on each of these devices. `under` is what fio is started by, if anything.
    pub fn run(&self, devices: &[&str], seed: u64, under: &[&str]) -> Result<()> {
        let mut words = under.iter().copied().chain(["fio"]);
        let mut command = Command::new(words.next().unwrap_or("fio"));
        command.args(words);
        command.args(["--name=global", "--thread", "--ioengine=io_uring", "--direct=1", "--norandommap"]);
        // What would cost time at the client, and tell nothing of the driver.
        command.args(["--gtod_reduce=1", "--scramble_buffers=0", "--invalidate=0", "--output=/tmp/fio.log"]);
        command.arg(format!("--rw={}", self.kind.fio())).arg(format!("--rwmixread={}", self.kind.reads()));
        command.arg(format!("--bs={}", self.block)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={SIZE}")).arg(format!("--io_size={}", self.blocks() * self.block));
        command.arg(format!("--randseed={seed}"));
        for name in devices {
            command.arg(format!("--name={name}")).arg(format!("--filename=/dev/{name}"));
        }
        let output = run_within(Duration::from_secs(600), &mut command)?;
        let said = std::fs::read_to_string("/tmp/fio.log").unwrap_or_default();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "fio, {}: {}\n{said}{error}", self.name(), output.status);
        Ok(())
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Extent {
    /// All.
    Full,
    /// Each kind but the mixed one, and another transport and more connections where it matters most.
    Quick,
    /// What the goals are of.
    Few,
}

/// The jobs of a run.
pub fn jobs(extent: Extent) -> Vec<Job> {
    let mut jobs = Vec::new();
    let ways = [
        (Transport::Unix, 1, Serves::Memory),
        (Transport::Tcp, 1, Serves::Memory),
        (Transport::Unix, 4, Serves::Memory),
        (Transport::Tcp, 4, Serves::Memory),
        (Transport::Unix, 1, Serves::Nbdkit),
        (Transport::Unix, 1, Serves::QemuNbd),
    ];
    for (transport, connections, serves) in ways {
        let job = |kind, block, depth| Job { kind, block, depth, connections, transport, serves, longer: 1 };
        for kind in [Kind::RandomRead, Kind::RandomWrite] {
            jobs.extend([1, 8, 32, 128].map(|depth| job(kind, 4 << 10, depth)));
        }
        jobs.push(job(Kind::Mixed, 4 << 10, 32));
        for kind in [Kind::Read, Kind::Write] {
            jobs.extend([64 << 10, 1 << 20].map(|block| job(kind, block, 4)));
        }
    }
    jobs.retain(|job| job.belongs_to(extent));
    jobs
}
