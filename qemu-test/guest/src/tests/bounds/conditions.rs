// SPDX-License-Identifier: GPL-2.0
//! The ways in which the other side can misbehave.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    Silent,
    Slow,
    NotReading,
    HalfClosed,
    Dead,
    DeadWaiting,
    HolderStopped,
    HolderFrozen,
    ClientStopped,
    ClientFrozen,
    LimitsWriter,
    ScanWaiting,
    MemoryShort,
}

impl Condition {
    pub const ALL: [Condition; 13] = [
        Condition::Silent,
        Condition::Slow,
        Condition::NotReading,
        Condition::HalfClosed,
        Condition::Dead,
        Condition::DeadWaiting,
        Condition::HolderStopped,
        Condition::HolderFrozen,
        Condition::ClientStopped,
        Condition::ClientFrozen,
        Condition::LimitsWriter,
        Condition::ScanWaiting,
        Condition::MemoryShort,
    ];

    /// As the table has it, and the names of the tests.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Silent => "silent",
            Condition::Slow => "slow",
            Condition::NotReading => "not_reading",
            Condition::HalfClosed => "half_closed",
            Condition::Dead => "dead",
            Condition::DeadWaiting => "dead_waiting",
            Condition::HolderStopped => "holder_stopped",
            Condition::HolderFrozen => "holder_frozen",
            Condition::ClientStopped => "client_stopped",
            Condition::ClientFrozen => "client_frozen",
            Condition::LimitsWriter => "limits_writer",
            Condition::ScanWaiting => "scan_waiting",
            Condition::MemoryShort => "memory_short",
        }
    }

    /// Whether all connections are gone. What was attached by ioctl ends then.
    pub fn is_lost(self) -> bool {
        matches!(self, Condition::HalfClosed | Condition::Dead | Condition::DeadWaiting)
    }

    /// Whether it is the client that does not run, so that there must be one.
    pub fn is_clients(self) -> bool {
        matches!(self, Condition::ClientStopped | Condition::ClientFrozen)
    }

    /// What it is.
    pub const fn about(self) -> &'static str {
        match self {
            Condition::Silent => "the server reads requests, and answers none",
            Condition::Slow => {
                "the server answers each request after a fifth of a second, and somebody reads"
            }
            Condition::NotReading => "the server does not read, and writers have filled its socket",
            Condition::HalfClosed => "the server has closed its sending direction",
            Condition::Dead => "all connections are dead",
            Condition::DeadWaiting => "the same with a dead-connection time-out, and a read that waits",
            Condition::HolderStopped => {
                "the server does its part; who has the device open is stopped (SIGSTOP)"
            }
            Condition::HolderFrozen => "the same, in a frozen cgroup",
            Condition::ClientStopped => {
                "the server does its part; the client in NBD_DO_IT is stopped (SIGSTOP)"
            }
            Condition::ClientFrozen => "the same, in a frozen cgroup",
            Condition::LimitsWriter => "silent, and a task writes to `queue/max_sectors_kb`",
            Condition::ScanWaiting => {
                "silent, and an `open` waits for the partition table, another with O_EXCL for that"
            }
            Condition::MemoryShort => {
                "silent, with pages that are to be written there, and no other memory left"
            }
        }
    }
}
