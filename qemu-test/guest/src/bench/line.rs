// SPDX-License-Identifier: GPL-2.0
//! What is told to the harness: a line of JSON each.

use anyhow::Result;
use serde::Serialize;

use super::Subject;
use super::job::Job;
use super::latency::Latencies;
use super::meter::Measured;
use super::scaling::Axis;

/// What lies between the marks, as a line has it.
#[derive(Serialize)]
pub struct Figures {
    bytes: u64,
    requests: u64,
    nanoseconds: u64,
    server_nanoseconds: u64,
    busy_nanoseconds: u64,
}

impl From<&Measured> for Figures {
    fn from(measured: &Measured) -> Figures {
        Figures {
            bytes: measured.bytes,
            requests: measured.requests,
            nanoseconds: measured.time,
            server_nanoseconds: measured.server,
            busy_nanoseconds: measured.busy,
        }
    }
}

/// A line of the output.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    /// What is going to be done, in so many steps.
    Plan { rounds: usize, seed: u64, steps: usize, fio: String },
    /// A round is over; none of the one that does not count.
    Round { round: Option<usize> },
    /// A job, in a round.
    Sample {
        round: usize,
        subject: Subject,
        name: String,
        #[serde(flatten)]
        job: &'a Job,
        #[serde(flatten)]
        figures: Figures,
        /// None of a real server, which does not tell.
        connections_used: Option<usize>,
    },
    /// So many processors the kernel has kept busy during a job.
    Kernel { subject: Subject, name: String, processors: f64 },
    /// Attaching and detaching, in a round.
    Latency {
        round: usize,
        subject: Subject,
        interface: String,
        #[serde(flatten)]
        latencies: Latencies,
    },
    /// A job, and attaching and detaching, with so many of something, in a round.
    Scaling {
        round: usize,
        subject: Subject,
        axis: Axis,
        count: u32,
        block: u64,
        #[serde(flatten)]
        figures: Figures,
        connect: Vec<u64>,
        disconnect: Vec<u64>,
    },
    /// What the block layer has made of the device.
    Queue { subject: Subject, connections: usize, attributes: Vec<(&'static str, String)> },
}

impl Line<'_> {
    /// Tells it.
    pub fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}
