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
    /// A client in user space, behind ublk.
    Ublk,
    /// The same requests over the same socket, without a block device.
    Limit,
}

impl fmt::Display for Subject {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Subject::Nbd => "nbd.ko",
            Subject::Rnbd => "rnbd.ko",
            Subject::Ublk => "ublk",
            Subject::Limit => "limit",
        })
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
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
    /// Who serves.
    pub serves: String,
    /// What it took.
    #[serde(flatten)]
    pub figures: Figures,
    /// How many of the sockets had a request; unknown of a real server.
    pub connections_used: Option<usize>,
}

/// How many processors the kernel kept busy during a job, in a round of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Whose job.
    pub subject: Subject,
    /// The job's name.
    pub name: String,
    /// It may be more than one.
    pub processors: f64,
}

/// A job, and attaching and detaching, with so many of something, in a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scaling {
    /// As of samples.
    pub round: usize,
    /// Whose.
    pub subject: Subject,
    /// Of what there are so many.
    pub axis: String,
    /// How many.
    pub count: u32,
    /// Bytes of an I/O.
    pub block: u64,
    /// What it took.
    #[serde(flatten)]
    pub figures: Figures,
    /// Nanoseconds, each of them.
    pub connect: Vec<u64>,
    /// Nanoseconds, each of them.
    pub disconnect: Vec<u64>,
}

/// Attaching and detaching, in a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// As of samples.
    pub round: usize,
    /// Whose.
    pub subject: Subject,
    /// netlink or ioctl, and after what.
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
    /// How many lines there will be of jobs and scaling.
    pub steps: usize,
    /// Its version.
    pub fio: String,
}

/// A round that is over.
#[derive(Clone, Debug, Deserialize)]
pub struct Round {
    /// None of the one that does not count.
    pub round: Option<usize>,
}

/// A line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// The first one.
    Plan(Plan),
    /// A round is over.
    Round(Round),
    /// A job.
    Sample(Sample),
    /// What the kernel took of one.
    Kernel(Kernel),
    /// Attaching and detaching.
    Latency(Latency),
    /// The same and a job, with more of something.
    Scaling(Scaling),
    /// A device's queue.
    Queue(Queue),
}
