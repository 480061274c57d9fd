// SPDX-License-Identifier: GPL-2.0

//! The life of a device: what it is made of, and how it is set up. See [`start`](super::start) and
//! [`finish`](super::finish) for the rest.

use super::super::{
    geometry::{BlockSize, ExportSize},
    request::Route,
};
use super::{
    remembered::Remembered, Config, Configured, Connections, DiskState, DiskUse, Failure,
    Interface, Kinds, Owner, Phase, Refusal, Setup,
};

/// What is remembered of the last generation that ran.
pub(super) struct Last<K: Kinds> {
    pub(super) owner: K::Owner,
    pub(super) size: ExportSize,
    pub(super) block_size: BlockSize,
    /// It was lost, and may be continued.
    pub(super) lost: bool,
    /// Its owner has not cleared the device since: clients do so when their generation has ended.
    pub(super) clear_due: bool,
}

/// What a process has said of an export while another is setting the device up. Settings without a
/// socket keep nobody out: whoever brings the first socket has the device, and each attaches what it
/// has said itself.
pub(super) struct Draft {
    pub(super) config: Config,
    /// Clients clear the device before they bring their sockets. That is not meant for another, who has
    /// taken their place.
    pub(super) clear_due: bool,
}

impl Interface {
    /// Why an ioctl cannot set up a device that is attached by this interface.
    pub(super) fn in_use(self) -> Refusal {
        match self {
            Self::Ioctl => Refusal::Running,
            Self::Netlink => Refusal::Netlink,
        }
    }
}

impl<K: Kinds> Setup<K> {
    pub(super) fn may_start(&self) -> Result<(), Refusal> {
        self.config.may_have(self.connections.count())
    }

    /// Whether it keeps others out. What was said of an export without bringing a socket does not, nor
    /// does what a dead process has left.
    pub(super) fn is_protected(&self) -> bool {
        self.connections.count() > 0 && self.owner.is_alive()
    }
}

/// The life of one device. See the [module](super).
pub struct Lifecycle<K: Kinds> {
    pub(super) generation: u64,
    pub(super) phase: Phase<K>,
    pub(super) last: Option<Last<K>>,
    pub(super) drafts: Remembered<K, Draft>,
    /// The disk that the device has.
    pub disk: DiskState,
}

impl<K: Kinds> Default for Lifecycle<K> {
    fn default() -> Self {
        Self {
            generation: 0,
            phase: Phase::Idle,
            last: None,
            drafts: Remembered::default(),
            disk: DiskState::default(),
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

    /// The owner of that generation.
    pub fn owner(&self) -> Option<&K::Owner> {
        match &self.phase {
            Phase::Idle | Phase::Gone => None,
            Phase::Setup(setup) => Some(&setup.owner),
            Phase::Running { owner, .. } | Phase::Draining { owner, .. } => Some(owner),
        }
    }

    /// The caller's setup: its own, or a new one where there is none that keeps it out. What the caller
    /// has said before, when another process was setting up, stands; so does what another has said.
    ///
    /// The second value is the connections of the setup that was replaced, if any.
    fn own_setup(
        &mut self,
        caller: K::Owner,
    ) -> Result<(&mut Setup<K>, Option<K::Connections>), Refusal> {
        let fresh = match &self.phase {
            Phase::Running { interface, .. } => return Err(interface.in_use()),
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Gone => return Err(Refusal::Gone),
            Phase::Idle => true,
            Phase::Setup(setup) if setup.owner == caller => false,
            Phase::Setup(setup) if setup.is_protected() => return Err(Refusal::Owned),
            Phase::Setup(_) => true,
        };
        let mut replaced = None;
        if fresh {
            self.generation = self.generation.wrapping_add(1);
            let config = self.said(&caller);
            let _ = self.drafts.take(&caller);
            let mut setup = Setup::new(caller);
            setup.config = config;
            replaced = self.replace(Phase::Setup(setup));
        }
        match &mut self.phase {
            Phase::Setup(setup) => Ok((setup, replaced)),
            _ => Err(Refusal::Running),
        }
    }

    /// What `caller` has said of an export that is not set up by it now; or its parent, for it.
    fn said(&mut self, caller: &K::Owner) -> Config {
        match (self.drafts.get(caller), &self.phase) {
            (Some(draft), _) => draft.config,
            (None, Phase::Setup(setup)) if setup.owner.is_parent_of_caller() => setup.config,
            _ => Config::default(),
        }
    }

    /// Goes on to the next phase. What is being set up is remembered, but for its connections: these are
    /// returned.
    pub(super) fn replace(&mut self, phase: Phase<K>) -> Option<K::Connections> {
        match core::mem::replace(&mut self.phase, phase) {
            Phase::Setup(old) => {
                let draft = Draft {
                    config: old.config,
                    clear_due: true,
                };
                self.drafts.put(old.owner, draft);
                Some(old.connections)
            }
            _ => None,
        }
    }

    /// Whether `caller` could add a connection now; so that a refusal comes before any effort.
    ///
    /// Under an exclusive user only the owner of the last generation may come back, if that was lost;
    /// whether to an export of the same size is seen at the start.
    pub fn may_add(&self, caller: &K::Owner, disk: DiskUse) -> Result<(), Refusal> {
        let returns = self.last_lost(caller).is_some();
        match &self.phase {
            Phase::Idle | Phase::Setup(_) if disk == DiskUse::Exclusive && !returns => {
                Err(Refusal::Held)
            }
            Phase::Running { interface, .. } => Err(interface.in_use()),
            Phase::Draining { .. } => Err(Refusal::Draining),
            Phase::Gone => Err(Refusal::Gone),
            Phase::Setup(setup) if setup.owner != *caller && setup.is_protected() => {
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

    /// The last generation, if it was `caller`'s and was lost.
    pub(super) fn last_lost(&self, caller: &K::Owner) -> Option<&Last<K>> {
        self.last
            .as_ref()
            .filter(|last| last.lost && last.owner == *caller)
    }

    /// Whether an export of `caller` and `config` could go on where the last generation was lost.
    pub(super) fn may_continue(&self, caller: &K::Owner, config: &Config) -> bool {
        self.last_lost(caller)
            .is_some_and(|last| last.size == config.size && last.block_size == config.block_size)
    }

    /// Lets `push` add a connection to the caller's setup (`NBD_SET_SOCK`).
    ///
    /// `push` gets the generation's number and its connections. Returned first are the
    /// connections of the setup that this one replaced, if any: also with a failed `push`,
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
        self.may_ioctl()?;
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
            Phase::Setup(setup) if setup.is_protected() => return Err(Refusal::Owned.into()),
            Phase::Draining { .. } => return Err(Refusal::Draining.into()),
            Phase::Gone => return Err(Refusal::Gone.into()),
            _ => self.said(&caller),
        };
        change(&mut changed).map_err(Failure::Step)?;
        let (setup, replaced) = self.own_setup(caller)?;
        setup.config = changed;
        Ok(Configured::Setup(replaced))
    }

    /// Whether the device's state lets ioctls change it, but for those that end a generation.
    pub fn may_ioctl(&self) -> Result<(), Refusal> {
        match &self.phase {
            Phase::Running {
                interface: Interface::Netlink,
                ..
            } => Err(Refusal::Netlink),
            _ => Ok(()),
        }
    }

    /// Lets `change` alter what is known of a generation that was started by netlink, and is at
    /// work (`NBD_CMD_RECONFIGURE`). An error of `change` leaves everything as it was.
    pub fn reconfigure<E>(
        &mut self,
        change: impl FnOnce(&mut Config) -> Result<(), E>,
    ) -> Result<(), Failure<E>> {
        match &mut self.phase {
            Phase::Running {
                interface: Interface::Netlink,
                config,
                ..
            } => {
                let mut changed = *config;
                change(&mut changed).map_err(Failure::Step)?;
                *config = changed;
                Ok(())
            }
            _ => Err(Refusal::NotNetlink.into()),
        }
    }
}
