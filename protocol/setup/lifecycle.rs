// SPDX-License-Identifier: GPL-2.0

//! The transitions from phase to phase.

use super::super::{
    geometry::{BlockSize, ExportSize},
    request::Route,
};
use super::{
    Config, Configured, Connected, Connections, DiskPlan, DiskState, DiskUse, EndReason, Failure,
    Interface, Kinds, Owner, Phase, Refusal, Retired, Setup,
};

/// What is remembered of the last generation that ran.
struct Last<K: Kinds> {
    owner: K::Owner,
    size: ExportSize,
    block_size: BlockSize,
    /// It was lost, and may be continued.
    lost: bool,
    /// Its owner has not cleared the device since: clients do so when their generation has ended.
    clear_due: bool,
}

impl Interface {
    /// Why an ioctl cannot set up a device that is attached by this interface.
    fn in_use(self) -> Refusal {
        match self {
            Self::Ioctl => Refusal::Running,
            Self::Netlink => Refusal::Netlink,
        }
    }
}

impl<K: Kinds> Setup<K> {
    fn may_start(&self) -> Result<(), Refusal> {
        self.config.may_have(self.connections.count())
    }
}

/// The life of one device. See the [module](super).
pub struct Lifecycle<K: Kinds> {
    generation: u64,
    phase: Phase<K>,
    last: Option<Last<K>>,
    /// The disk that the device has.
    pub disk: DiskState,
}

impl<K: Kinds> Default for Lifecycle<K> {
    fn default() -> Self {
        Self {
            generation: 0,
            phase: Phase::Idle,
            last: None,
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

    /// The caller's setup: its own, or a new one where there is none or only an orphan.
    ///
    /// The second value is the connections of the orphan that was replaced, if any.
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

    /// The last generation, if it was `caller`'s and was lost.
    fn last_lost(&self, caller: &K::Owner) -> Option<&Last<K>> {
        self.last
            .as_ref()
            .filter(|last| last.lost && last.owner == *caller)
    }

    /// Which disk a generation of `caller` and `config` needs.
    ///
    /// It continues the last one if that was the caller's, was lost, and had an export of the same
    /// geometry: so a client comes back to its server under whatever uses the disk.
    fn plan(&self, caller: &K::Owner, config: &Config, disk: DiskUse) -> Result<DiskPlan, Refusal> {
        let continues = self.disk.is_left()
            && self.last_lost(caller).is_some_and(|last| {
                last.size == config.size && last.block_size == config.block_size
            });
        if disk == DiskUse::Exclusive && !continues {
            return Err(Refusal::Held);
        }
        Ok(self.disk.plan(continues))
    }

    /// Whether `caller` could start the generation that is set up, with how many connections, and
    /// which disk it needs: so that a refusal comes before any effort. See [`Lifecycle::start`].
    pub fn plan_start(
        &self,
        caller: &K::Owner,
        disk: DiskUse,
    ) -> Result<(DiskPlan, usize), Refusal> {
        let setup = match &self.phase {
            Phase::Idle => return Err(Refusal::NoConnection),
            Phase::Running { interface, .. } => return Err(interface.in_use()),
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Gone => return Err(Refusal::Gone),
            Phase::Setup(setup) => setup,
        };
        let may =
            setup.owner == *caller || setup.owner.is_parent_of_caller() || !setup.owner.is_alive();
        if !may {
            return Err(Refusal::Owned);
        }
        setup.may_start()?;
        let plan = self.plan(caller, &setup.config, disk)?;
        Ok((plan, setup.connections.count()))
    }

    /// Whether `setup` could be connected, and which disk it needs. See [`Lifecycle::connect`].
    pub fn plan_connect(&self, setup: &Setup<K>, disk: DiskUse) -> Result<DiskPlan, Refusal> {
        match &self.phase {
            Phase::Running { .. } => Err(Refusal::Running),
            Phase::Draining { .. } => Err(Refusal::Draining),
            Phase::Gone => Err(Refusal::Gone),
            Phase::Setup(theirs) if theirs.owner.is_alive() => Err(Refusal::Owned),
            _ if disk == DiskUse::Exclusive => Err(Refusal::Held),
            Phase::Idle | Phase::Setup(_) => {
                setup.may_start()?;
                // An attachment by netlink continues none.
                Ok(self.disk.plan(false))
            }
        }
    }

    /// Lets `push` add a connection to the caller's setup (`NBD_SET_SOCK`).
    ///
    /// `push` gets the generation's number and its connections. Returned first are the
    /// connections of the orphan that the setup replaced, if any: also with a failed `push`,
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
            Phase::Setup(setup) if setup.owner.is_alive() => return Err(Refusal::Owned.into()),
            Phase::Draining { .. } => return Err(Refusal::Draining.into()),
            Phase::Gone => return Err(Refusal::Gone.into()),
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
    /// Under an exclusive user it must continue the last generation: see [`Lifecycle::plan_start`],
    /// which also tells whether the device needs another disk first. `attach` makes the attachment out
    /// of the setup; if it fails it must leave the setup whole.
    pub fn start<E>(
        &mut self,
        caller: K::Owner,
        disk: DiskUse,
        attach: impl FnOnce(u64, &mut Setup<K>) -> Result<K::Attachment, E>,
    ) -> Result<K::Attachment, Failure<E>> {
        let (plan, _) = self.plan_start(&caller, disk)?;
        if plan == DiskPlan::Replace {
            return Err(Refusal::NeedsDisk.into());
        }
        let generation = self.generation;
        let Phase::Setup(setup) = &mut self.phase else {
            return Err(Refusal::NoConnection.into());
        };
        let attachment = attach(generation, setup).map_err(Failure::Step)?;
        self.phase = Phase::Running {
            owner: caller,
            interface: Interface::Ioctl,
            config: setup.config,
            attachment: attachment.clone(),
        };
        self.disk.attached();
        Ok(attachment)
    }

    /// Sets up and starts a generation in one step (`NBD_CMD_CONNECT`).
    ///
    /// Its owner is `setup`'s. It takes the place of nothing but an orphan. `attach` is as for
    /// [`Lifecycle::start`]. If the generation is refused `setup` comes back, to be disposed of.
    pub fn connect<E>(
        &mut self,
        mut setup: Setup<K>,
        disk: DiskUse,
        attach: impl FnOnce(u64, &mut Setup<K>) -> Result<K::Attachment, E>,
    ) -> Result<Connected<K>, (Failure<E>, Setup<K>)> {
        let may = match self.plan_connect(&setup, disk) {
            Ok(DiskPlan::Replace) => Err(Refusal::NeedsDisk),
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = may {
            return Err((refusal.into(), setup));
        }
        let generation = self.generation.wrapping_add(1);
        let attachment = match attach(generation, &mut setup) {
            Ok(attachment) => attachment,
            Err(error) => return Err((Failure::Step(error), setup)),
        };
        self.generation = generation;
        self.disk.attached();
        let started = Phase::Running {
            owner: setup.owner,
            interface: Interface::Netlink,
            config: setup.config,
            attachment: attachment.clone(),
        };
        let replaced = match core::mem::replace(&mut self.phase, started) {
            Phase::Setup(orphan) => Some(orphan.connections),
            _ => None,
        };
        Ok(Connected {
            attachment,
            replaced,
        })
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

    /// Ends the generation, as [`Lifecycle::retire`] does, at the wish of `caller`
    /// (`NBD_CLEAR_SOCK`).
    ///
    /// An owner that clears its own setup starts over, and what it has said of the export stands:
    /// nbd-client sets the size, clears, and then adds its sockets.
    ///
    /// Clients clear once more when their generation has ended. By then the device may be another
    /// living owner's, which waited for that end: it is left alone.
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
            Phase::Gone => {
                self.phase = Phase::Gone;
                Retired::Nothing
            }
            Phase::Setup(setup) => Retired::Setup(setup.connections),
            Phase::Running {
                owner,
                config,
                attachment,
                ..
            } => {
                self.phase = Phase::Draining {
                    owner,
                    config,
                    attachment: attachment.clone(),
                    reason,
                };
                Retired::Stopped(attachment)
            }
            Phase::Draining {
                owner,
                config,
                attachment,
                reason,
            } => {
                self.phase = Phase::Draining {
                    owner,
                    config,
                    attachment: attachment.clone(),
                    reason,
                };
                Retired::AlreadyDraining(attachment)
            }
        }
    }

    /// Ends a setup that no process can finish any more; a generation that was started stays.
    pub fn abandon_setup(&mut self) -> Option<K::Connections> {
        if !matches!(self.phase, Phase::Setup(_)) {
            return None;
        }
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Setup(setup) => Some(setup.connections),
            _ => None,
        }
    }

    /// The generation has drained: the device is idle, or gone if it was to go with it. Returns why
    /// the generation had ended.
    pub fn drained(&mut self) -> Option<EndReason> {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Draining {
                owner,
                config,
                reason,
                ..
            } => {
                if config.destroy_on_disconnect {
                    self.phase = Phase::Gone;
                }
                self.disk.detached();
                // What could not be started may be tried again: it goes on with what was lost before.
                let tried_again = reason == EndReason::StartFailed
                    && self.last.as_ref().is_some_and(|last| {
                        last.lost
                            && last.owner == owner
                            && last.size == config.size
                            && last.block_size == config.block_size
                    });
                self.last = Some(Last {
                    owner,
                    size: config.size,
                    block_size: config.block_size,
                    lost: reason.is_loss() || tried_again,
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
