// SPDX-License-Identifier: GPL-2.0

//! Phases, owner and connections of a device: the setup state machine (invariants G1 to G3).
//!
//! A generation is one attachment of the device to a server. Its phase carries its data, so that
//! no phase can hold what it has no business with: there is no socket array but inside [`Setup`],
//! no attachment but inside [`Phase::Running`] and [`Phase::Draining`].
//!
//! ```text
//!          configure, add              start                 retire
//!   Idle ────────────────▶ Setup ─────────────────▶ Running ────────▶ Draining
//!    ▲                      │  ▲│                                        │
//!    │        retire        │  └┘ orphan replaced: next generation       │ drained
//!    └──────────────────────┴────────────────────────────────────────────┘
//! ```
//!
//! By netlink a device is set up and started in one step, from `Idle` to `Running`:
//! [`Lifecycle::connect`].
//!
//! The driver keeps a [`Lifecycle`] inside the setup lock; that every method takes `&mut self` is
//! the proof that the lock is held. What a transition displaces is handed to the caller, to be
//! shut down and dropped where that may sleep.

mod disk;
mod finish;
mod lifecycle;
mod remembered;
mod start;

pub use disk::{DiskPlan, DiskState};
pub use lifecycle::Lifecycle;

use super::{
    flags::TransmissionFlags,
    geometry::{BlockSize, ExportSize},
    request::Route,
};
use core::ffi::CStr;

/// A process that sets a device up.
pub trait Owner: Clone + PartialEq {
    /// Whether any thread of the process still runs.
    fn is_alive(&self) -> bool;

    /// Whether the process is the parent of the one that asks.
    fn is_parent_of_caller(&self) -> bool;
}

/// The connections that a setup collects.
pub trait Connections: Default {
    /// How many there are.
    fn count(&self) -> usize;
}

/// The types that a [`Lifecycle`] is made of.
pub trait Kinds {
    /// The process that sets up.
    type Owner: Owner;
    /// What [`Setup`] collects.
    type Connections: Connections;
    /// A started generation, shared with those that do its I/O.
    type Attachment: Clone;
}

/// What user space configures of an export, before it is attached or while it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of the export.
    pub size: ExportSize,
    /// Logical and physical block size.
    pub block_size: BlockSize,
    /// What the export can do.
    pub flags: TransmissionFlags,
    /// Longest a request may take, in seconds; 0 for no bound.
    pub timeout: u32,
    /// How long requests wait for a new connection when all are dead, in seconds.
    pub dead_conn_timeout: u32,
    /// The last close of the disk ends the generation.
    pub disconnect_on_close: bool,
    /// The device goes with the generation.
    pub destroy_on_disconnect: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            size: ExportSize::default(),
            block_size: BlockSize::DEFAULT,
            flags: TransmissionFlags::default(),
            timeout: 0,
            dead_conn_timeout: 0,
            disconnect_on_close: false,
            destroy_on_disconnect: false,
        }
    }
}

impl Config {
    /// Whether a generation can start with so many connections: it needs one, and has no more than
    /// the export allows.
    pub fn may_have(&self, connections: usize) -> Result<(), Refusal> {
        let multi_conn = TransmissionFlags::CAN_MULTI_CONN;
        match connections {
            0 => Err(Refusal::NoConnection),
            1 => Ok(()),
            count if count > Route::MAX_CONNECTIONS => Err(Refusal::TooManyConnections),
            _ if self.flags.contains(multi_conn) => Ok(()),
            _ => Err(Refusal::NotMultiConn),
        }
    }
}

/// A generation that is being set up.
pub struct Setup<K: Kinds> {
    /// The process that sets up. No other may while it lives, once it has brought a connection.
    pub owner: K::Owner,
    /// What was said of the export so far.
    pub config: Config,
    /// What was added so far.
    pub connections: K::Connections,
}

impl<K: Kinds> Setup<K> {
    /// A setup of which nothing is known yet.
    pub fn new(owner: K::Owner) -> Self {
        Self {
            owner,
            config: Config::default(),
            connections: K::Connections::default(),
        }
    }
}

/// How a generation was started, and so by what it may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `NBD_DO_IT`. The generation ends with its last connection.
    Ioctl,
    /// `NBD_CMD_CONNECT`. Connections may die and be replaced: the generation ends when it is
    /// asked to.
    Netlink,
}

/// Why a generation ended; the first reason stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// `NBD_DISCONNECT`, `NBD_CMD_DISCONNECT`, or the last close of a device that is to be
    /// disconnected then.
    Disconnected,
    /// `NBD_CLEAR_SOCK`.
    Cleared,
    /// The last connection died.
    ConnectionsLost,
    /// A request was not answered in time on the last connection.
    TimedOut,
    /// The task in `NBD_DO_IT` got a signal.
    Interrupted,
    /// It could not be started.
    StartFailed,
}

/// Where a generation stands. See the [module](self).
pub enum Phase<K: Kinds> {
    /// There is none.
    Idle,
    /// It is being set up.
    Setup(Setup<K>),
    /// It serves requests.
    Running {
        /// The process that started it.
        owner: K::Owner,
        /// How it was started.
        interface: Interface,
        /// What is known of the export now.
        config: Config,
        /// What serves.
        attachment: K::Attachment,
    },
    /// It has ended, and its last requests and sockets are being released.
    Draining {
        /// The process that started it.
        owner: K::Owner,
        /// What was known of the export.
        config: Config,
        /// What served.
        attachment: K::Attachment,
        /// Why it ended.
        reason: EndReason,
    },
    /// The last generation has taken the device with it: nothing can be set up any more.
    Gone,
}

impl<K: Kinds> Phase<K> {
    /// The phase's name, as sysfs and the tracepoint give it.
    pub fn name(&self) -> &'static CStr {
        match self {
            Self::Idle => c"idle",
            Self::Setup(_) => c"setup",
            Self::Running { .. } => c"running",
            Self::Draining { .. } => c"draining",
            Self::Gone => c"gone",
        }
    }
}

/// Why a request to change a device's setup is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another process, which lives, sets the device up.
    Owned,
    /// The device is attached.
    Running,
    /// The last generation is not gone yet: wait, and ask again.
    Draining,
    /// No connection was added.
    NoConnection,
    /// Several connections, to a server that does not say it can have them.
    NotMultiConn,
    /// More connections than a generation can have.
    TooManyConnections,
    /// The disk has an exclusive holder, and what that holds must not become another export.
    Held,
    /// The device was attached by netlink, and is not changed by ioctl.
    Netlink,
    /// The device is not attached by netlink, and so not changed by it.
    NotNetlink,
    /// The device is being removed.
    Gone,
    /// The disk that the device has cannot serve this generation: give it another one first.
    NeedsDisk,
}

impl EndReason {
    /// Whether the generation was lost, and not ended on request: what comes after may continue it.
    pub fn is_loss(self) -> bool {
        matches!(self, Self::ConnectionsLost | Self::TimedOut)
    }
}

/// Whether the disk is used exclusively: by a mounted filesystem, say, of the last generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskUse {
    /// It is not, or by the caller itself.
    Shared,
    /// It is.
    Exclusive,
}

/// A [`Refusal`], or what the caller's own step failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// The state machine refuses.
    Refused(Refusal),
    /// The step did not work.
    Step(E),
}

impl<E> From<Refusal> for Failure<E> {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What [`Lifecycle::connect`] did.
#[must_use]
pub struct Connected<K: Kinds> {
    /// What serves from now on.
    pub attachment: K::Attachment,
    /// The connections of the setup that was replaced, if any, to be disposed of.
    pub replaced: Option<K::Connections>,
}

/// What [`Lifecycle::configure`] changed.
#[must_use]
pub enum Configured<K: Kinds> {
    /// A setup. If it took another's place, whose connections are here, to be disposed of.
    Setup(Option<K::Connections>),
    /// A running generation: its disk is to be told.
    Live(K::Attachment),
}

/// What [`Lifecycle::retire`] ended.
#[must_use]
pub enum Retired<K: Kinds> {
    /// Nothing: the device was idle.
    Nothing,
    /// A setup: its connections, to be disposed of.
    Setup(K::Connections),
    /// A running generation, which now drains: to be stopped.
    Stopped(K::Attachment),
    /// Nothing: it drains already.
    AlreadyDraining(K::Attachment),
}
