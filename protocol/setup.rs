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
//! The driver keeps a [`Lifecycle`] inside the setup lock; that every method takes `&mut self` is
//! the proof that the lock is held. What a transition displaces is handed to the caller, to be
//! shut down and dropped where that may sleep.

use core::ffi::CStr;

use super::{
    flags::TransmissionFlags,
    geometry::{BlockSize, ExportSize},
    request::Route,
};

/// A process that sets a device up.
pub trait Owner: PartialEq {
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

/// The types that a device's life is told in.
pub trait Kinds {
    /// Who sets up.
    type Owner: Owner;
    /// What [`Setup`] collects.
    type Connections: Connections;
    /// A started generation, shared with those that do its I/O.
    type Attachment: Clone;
}

/// What user space says of an export before, and at times while, it is attached.
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            size: ExportSize::default(),
            block_size: BlockSize::DEFAULT,
            flags: TransmissionFlags::default(),
            timeout: 0,
        }
    }
}

/// A generation that is being set up.
pub struct Setup<K: Kinds> {
    /// Who sets up, and nobody else while it lives.
    pub owner: K::Owner,
    /// What was said of the export so far.
    pub config: Config,
    /// What was added so far.
    pub connections: K::Connections,
}

impl<K: Kinds> Setup<K> {
    fn new(owner: K::Owner) -> Self {
        Self {
            owner,
            config: Config::default(),
            connections: K::Connections::default(),
        }
    }
}

/// Why a generation ended; the first reason stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// `NBD_DISCONNECT`.
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
        /// Who started it.
        owner: K::Owner,
        /// What is known of the export now.
        config: Config,
        /// What serves.
        attachment: K::Attachment,
    },
    /// It has ended, and its last requests and sockets are being released.
    Draining {
        /// Who started it.
        owner: K::Owner,
        /// How large its export was.
        size: ExportSize,
        /// What served.
        attachment: K::Attachment,
        /// Why it ended.
        reason: EndReason,
    },
}

impl<K: Kinds> Phase<K> {
    /// The phase's name, as sysfs and the tracepoint give it.
    pub fn name(&self) -> &'static CStr {
        match self {
            Self::Idle => c"idle",
            Self::Setup(_) => c"setup",
            Self::Running { .. } => c"running",
            Self::Draining { .. } => c"draining",
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
    /// Somebody uses the disk exclusively, and what he uses may not become another export.
    Held,
}

/// Whether somebody uses the disk exclusively: a mounted filesystem, say, of the last generation
/// (invariant G4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskUse {
    /// Nobody does.
    Shared,
    /// Somebody does.
    Exclusive,
}

/// What is remembered of the last generation that ran.
struct Last<K: Kinds> {
    owner: K::Owner,
    size: ExportSize,
    /// Its owner has not cleared the device since: clients do so when their generation has ended.
    clear_due: bool,
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

/// What [`Lifecycle::configure`] changed.
#[must_use]
pub enum Configured<K: Kinds> {
    /// A setup. If it took an orphan's place, the orphan's connections are here, to be disposed of.
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

/// The life of one device. See the [module](self).
pub struct Lifecycle<K: Kinds> {
    generation: u64,
    phase: Phase<K>,
    last: Option<Last<K>>,
}

impl<K: Kinds> Default for Lifecycle<K> {
    fn default() -> Self {
        Self {
            generation: 0,
            phase: Phase::Idle,
            last: None,
        }
    }
}

impl<K: Kinds> Lifecycle<K> {
    /// Number of the newest generation; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where that generation stands.
    pub fn phase(&self) -> &Phase<K> {
        &self.phase
    }

    /// Who owns that generation.
    pub fn owner(&self) -> Option<&K::Owner> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Setup(setup) => Some(&setup.owner),
            Phase::Running { owner, .. } | Phase::Draining { owner, .. } => Some(owner),
        }
    }

    /// The caller's setup: its own, or a new one where there is none or only an orphan.
    ///
    /// The second value is the connections of the orphan that was replaced, if any.
    fn own_setup(
        &mut self,
        caller: K::Owner,
    ) -> Result<(&mut Setup<K>, Option<K::Connections>), Refusal> {
        let fresh = match &self.phase {
            Phase::Running { .. } => return Err(Refusal::Running),
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Idle => true,
            Phase::Setup(setup) if setup.owner == caller => false,
            Phase::Setup(setup) if setup.owner.is_alive() => return Err(Refusal::Owned),
            Phase::Setup(_) => true,
        };
        let mut replaced = None;
        if fresh {
            self.generation = self.generation.wrapping_add(1);
            let old = core::mem::replace(&mut self.phase, Phase::Setup(Setup::new(caller)));
            if let Phase::Setup(orphan) = old {
                replaced = Some(orphan.connections);
            }
        }
        match &mut self.phase {
            Phase::Setup(setup) => Ok((setup, replaced)),
            _ => Err(Refusal::Running),
        }
    }

    /// Whether `caller` could add a connection now; so that a refusal comes before any effort.
    ///
    /// Under an exclusive user only the last generation's owner may come back; whether to an
    /// export of the same size is seen at the start.
    pub fn may_add(&self, caller: &K::Owner, disk: DiskUse) -> Result<(), Refusal> {
        let returns = self.last.as_ref().is_some_and(|last| last.owner == *caller);
        match &self.phase {
            Phase::Idle | Phase::Setup(_) if disk == DiskUse::Exclusive && !returns => {
                Err(Refusal::Held)
            }
            Phase::Running { .. } => Err(Refusal::Running),
            Phase::Draining { .. } => Err(Refusal::Draining),
            Phase::Setup(setup) if setup.owner != *caller && setup.owner.is_alive() => {
                Err(Refusal::Owned)
            }
            Phase::Setup(setup)
                if setup.owner == *caller
                    && setup.connections.count() >= Route::MAX_CONNECTIONS =>
            {
                Err(Refusal::TooManyConnections)
            }
            _ => Ok(()),
        }
    }

    /// Lets `push` add a connection to the caller's setup (`NBD_SET_SOCK`).
    ///
    /// `push` gets the generation's number and its connections. Returned first are the
    /// connections of the orphan whose place the setup took, if any: also with a failed `push`,
    /// which leaves a setup that lacks the connection.
    pub fn add<E>(
        &mut self,
        caller: K::Owner,
        disk: DiskUse,
        push: impl FnOnce(u64, &mut K::Connections) -> Result<(), E>,
    ) -> (Option<K::Connections>, Result<(), Failure<E>>) {
        if let Err(refusal) = self.may_add(&caller, disk) {
            return (None, Err(refusal.into()));
        }
        let generation = match &self.phase {
            Phase::Setup(setup) if setup.owner == caller => self.generation,
            _ => self.generation.wrapping_add(1),
        };
        match self.own_setup(caller) {
            Ok((setup, replaced)) => (
                replaced,
                push(generation, &mut setup.connections).map_err(Failure::Step),
            ),
            Err(refusal) => (None, Err(refusal.into())),
        }
    }

    /// Lets `change` alter what is known of the export (`NBD_SET_SIZE` and its like).
    ///
    /// While the device is attached anyone may, as with nbd.ko: the task that attached it sits in
    /// `NBD_DO_IT` and cannot. An error of `change` leaves everything as it was.
    pub fn configure<E>(
        &mut self,
        caller: K::Owner,
        change: impl FnOnce(&mut Config) -> Result<(), E>,
    ) -> Result<Configured<K>, Failure<E>> {
        if let Phase::Running {
            config, attachment, ..
        } = &mut self.phase
        {
            let mut changed = *config;
            change(&mut changed).map_err(Failure::Step)?;
            *config = changed;
            return Ok(Configured::Live(attachment.clone()));
        }
        let mut changed = match &self.phase {
            Phase::Setup(setup) if setup.owner == caller => setup.config,
            Phase::Setup(setup) if setup.owner.is_alive() => return Err(Refusal::Owned.into()),
            Phase::Draining { .. } => return Err(Refusal::Draining.into()),
            _ => Config::default(),
        };
        change(&mut changed).map_err(Failure::Step)?;
        let (setup, replaced) = self.own_setup(caller)?;
        setup.config = changed;
        Ok(Configured::Setup(replaced))
    }

    /// Starts the generation that was set up (`NBD_DO_IT`).
    ///
    /// The caller becomes its owner. It may be the one that set up, a child of that one (clients
    /// fork in between, and the parent may not have ended yet), or anyone once that one is dead.
    /// Under an exclusive user the last generation's owner alone may start another, of the same
    /// size. `attach` makes the attachment out of the setup; if it fails it must leave the setup
    /// whole.
    pub fn start<E>(
        &mut self,
        caller: K::Owner,
        disk: DiskUse,
        attach: impl FnOnce(u64, &mut Setup<K>) -> Result<K::Attachment, E>,
    ) -> Result<K::Attachment, Failure<E>> {
        let generation = self.generation;
        let setup = match &mut self.phase {
            Phase::Idle => return Err(Refusal::NoConnection.into()),
            Phase::Running { .. } => return Err(Refusal::Running.into()),
            Phase::Draining { .. } => return Err(Refusal::Draining.into()),
            Phase::Setup(setup) => setup,
        };
        let may =
            setup.owner == caller || setup.owner.is_parent_of_caller() || !setup.owner.is_alive();
        if !may {
            return Err(Refusal::Owned.into());
        }
        match setup.connections.count() {
            0 => return Err(Refusal::NoConnection.into()),
            1 => {}
            _ if setup
                .config
                .flags
                .contains(TransmissionFlags::CAN_MULTI_CONN) => {}
            _ => return Err(Refusal::NotMultiConn.into()),
        }
        let returns = self
            .last
            .as_ref()
            .is_some_and(|last| last.owner == caller && last.size == setup.config.size);
        if disk == DiskUse::Exclusive && !returns {
            return Err(Refusal::Held.into());
        }
        let attachment = attach(generation, setup).map_err(Failure::Step)?;
        self.phase = Phase::Running {
            owner: caller,
            config: setup.config,
            attachment: attachment.clone(),
        };
        Ok(attachment)
    }

    /// Ends the generation, as [`Lifecycle::retire`] does, at the wish of `caller`
    /// (`NBD_CLEAR_SOCK`).
    ///
    /// An owner that clears its own setup starts over, and what it has said of the export stands:
    /// nbd-client sets the size, clears, and then adds its sockets.
    ///
    /// Clients clear once more when their generation has ended. By then the device may be another
    /// living owner's, who waited for that end: he is left alone.
    pub fn clear(&mut self, caller: &K::Owner) -> Retired<K> {
        let anothers = self
            .owner()
            .is_some_and(|owner| owner != caller && owner.is_alive());
        if let Some(last) = self.last.as_mut().filter(|last| last.owner == *caller) {
            if core::mem::take(&mut last.clear_due) && anothers {
                return Retired::Nothing;
            }
        }
        match &mut self.phase {
            Phase::Setup(setup) if setup.owner == *caller => {
                self.generation = self.generation.wrapping_add(1);
                Retired::Setup(core::mem::take(&mut setup.connections))
            }
            _ => self.retire(EndReason::Cleared),
        }
    }

    /// Ends the generation, whatever its phase.
    pub fn retire(&mut self, reason: EndReason) -> Retired<K> {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => Retired::Nothing,
            Phase::Setup(setup) => Retired::Setup(setup.connections),
            Phase::Running {
                owner,
                config,
                attachment,
            } => {
                self.phase = Phase::Draining {
                    owner,
                    size: config.size,
                    attachment: attachment.clone(),
                    reason,
                };
                Retired::Stopped(attachment)
            }
            Phase::Draining {
                owner,
                size,
                attachment,
                reason,
            } => {
                self.phase = Phase::Draining {
                    owner,
                    size,
                    attachment: attachment.clone(),
                    reason,
                };
                Retired::AlreadyDraining(attachment)
            }
        }
    }

    /// Ends a setup that nobody can finish any more; a generation that was started stays.
    pub fn abandon_setup(&mut self) -> Option<K::Connections> {
        if !matches!(self.phase, Phase::Setup(_)) {
            return None;
        }
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Setup(setup) => Some(setup.connections),
            _ => None,
        }
    }

    /// The generation has drained: the device is idle. Returns why it had ended.
    pub fn drained(&mut self) -> Option<EndReason> {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Draining {
                owner,
                size,
                reason,
                ..
            } => {
                self.last = Some(Last {
                    owner,
                    size,
                    clear_due: true,
                });
                Some(reason)
            }
            other => {
                self.phase = other;
                None
            }
        }
    }
}
