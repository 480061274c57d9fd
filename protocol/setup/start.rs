// SPDX-License-Identifier: GPL-2.0

//! How a generation is started.

use super::{
    Config, Connected, DiskPlan, DiskUse, Failure, Interface, Kinds, Lifecycle, Owner, Phase,
    Refusal, Setup,
};

impl<K: Kinds> Lifecycle<K> {
    /// Which disk a generation of `caller` and `config` needs.
    ///
    /// It continues the last one if that was the caller's, was lost, and had an export of the same
    /// geometry: so a client comes back to its server under whatever uses the disk.
    fn plan(&self, caller: &K::Owner, config: &Config, disk: DiskUse) -> Result<DiskPlan, Refusal> {
        let continues = self.disk.is_left() && self.may_continue(caller, config);
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
    ) -> Result<(DiskPlan, &Setup<K>), Refusal> {
        let setup = match &self.phase {
            Phase::Idle => return Err(Refusal::NoConnection),
            Phase::Running { interface, .. } => return Err(interface.in_use()),
            Phase::Draining { .. } => return Err(Refusal::Draining),
            Phase::Gone => return Err(Refusal::Gone),
            Phase::Setup(setup) => setup,
        };
        let may = setup.owner == *caller || setup.owner.is_parent_of_caller();
        if !may && setup.is_protected() {
            return Err(Refusal::Owned);
        }
        setup.may_start()?;
        let plan = self.plan(caller, &setup.config, disk)?;
        Ok((plan, setup))
    }

    /// Whether `setup` could be connected, and which disk it needs. See [`Lifecycle::connect`].
    pub fn plan_connect(&self, setup: &Setup<K>, disk: DiskUse) -> Result<DiskPlan, Refusal> {
        match &self.phase {
            Phase::Running { .. } => Err(Refusal::Running),
            Phase::Draining { .. } => Err(Refusal::Draining),
            Phase::Gone => Err(Refusal::Gone),
            Phase::Setup(theirs) if theirs.is_protected() => Err(Refusal::Owned),
            _ if disk == DiskUse::Exclusive => Err(Refusal::Held),
            Phase::Idle | Phase::Setup(_) => {
                setup.may_start()?;
                // An attachment by netlink continues none.
                Ok(self.disk.plan(false))
            }
        }
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
        let replaced = self.replace(started);
        Ok(Connected {
            attachment,
            replaced,
        })
    }
}
