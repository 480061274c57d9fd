// SPDX-License-Identifier: GPL-2.0
//! The lines that `rnbd-test bench` prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The kernel's own driver.
    Nbd,
    /// Ours.
    Rnbd,
    /// The same requests over the same socket, without a driver.
    Limit,
}

impl fmt::Display for Subject {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Subject::Nbd => "nbd.ko",
            Subject::Rnbd => "rnbd.ko",
            Subject::Limit => "limit",
        })
    }
}

/// A job, in a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Samples of one round are compared with each other.
    pub round: usize,
    /// Whose sample it is.
    pub subject: Subject,
    /// The job's name.
    pub name: String,
    /// What it does.
    pub kind: String,
    /// Bytes of an I/O.
    pub block: u64,
    /// So many are on the way.
    pub depth: u64,
    /// Sockets.
    pub connections: usize,
    /// And their family.
    pub transport: String,
    /// Bytes that were measured.
    pub bytes: u64,
    /// Requests on the wire that were measured.
    pub requests: u64,
    /// How long it took. Under icount, instructions.
    pub nanoseconds: u64,
    /// What of it the server's process took, its system calls included.
    pub server_nanoseconds: u64,
    /// What of it tasks ran at all; the rest is idle.
    pub busy_nanoseconds: u64,
    /// How many of the sockets had a request.
    pub connections_used: usize,
}

impl Sample {
    /// I/Os of the job's size.
    pub fn count(&self) -> f64 {
        self.bytes as f64 / self.block as f64
    }
}

/// Attaching and detaching, in a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// As of samples.
    pub round: usize,
    /// Whose.
    pub subject: Subject,
    /// netlink or ioctl.
    pub interface: String,
    /// Nanoseconds, each of them.
    pub connect: Vec<u64>,
    /// Nanoseconds from the start of each connect until something was read.
    pub first_read: Vec<u64>,
    /// Nanoseconds, each of them.
    pub disconnect: Vec<u64>,
}

/// What the block layer has made of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Queue {
    /// Whose.
    pub subject: Subject,
    /// With so many sockets.
    pub connections: usize,
    /// Of `/sys/block/nbd0/queue`.
    pub attributes: Vec<(String, String)>,
}

/// What is going to be done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// How often all is measured.
    pub rounds: usize,
    /// What their order comes from.
    pub seed: u64,
    /// Jobs in a round, for each subject.
    pub jobs: usize,
    /// Its version.
    pub fio: String,
}

/// A line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// The first one.
    Plan(Plan),
    /// A job.
    Sample(Sample),
    /// Attaching and detaching.
    Latency(Latency),
    /// A device's queue.
    Queue(Queue),
}
