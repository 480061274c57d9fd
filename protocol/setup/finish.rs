// SPDX-License-Identifier: GPL-2.0

//! How a generation ends, and how a setup does.

use super::{
    lifecycle::Last, remembered::Remembered, Connections, EndReason, Interface, Kinds, Lifecycle,
    Owner, Phase, Retired,
};

impl<K: Kinds> Lifecycle<K> {
    /// Ends the generation, as [`Lifecycle::retire`] does, at the wish of `caller`
    /// (`NBD_CLEAR_SOCK`).
    ///
    /// An owner that clears its own setup starts over, and what it has said of the export stands:
    /// nbd-client sets the size, clears, and then adds its sockets. So does a process whose place
    /// another has taken in between: it clears what it has set, once.
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
        if let Some(draft) = self.drafts.get(caller).filter(|_| anothers) {
            if core::mem::take(&mut draft.clear_due) {
                return Retired::Nothing;
            }
        }
        match &mut self.phase {
            Phase::Setup(setup) if setup.owner == *caller => {
                self.generation = self.generation.wrapping_add(1);
                Retired::Setup(core::mem::take(&mut setup.connections))
            }
            // There is no socket to clear, and what is said of the export stands.
            Phase::Setup(setup) if setup.owner.is_alive() && setup.connections.count() == 0 => {
                Retired::Nothing
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
                let tried_again =
                    reason == EndReason::StartFailed && self.may_continue(&owner, &config);
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

    /// What serves, if `caller` has attached it by ioctl.
    pub fn attached_by(&self, caller: &K::Owner) -> Option<K::Attachment> {
        match &self.phase {
            Phase::Running {
                owner,
                interface: Interface::Ioctl,
                attachment,
                ..
            } if owner == caller => Some(attachment.clone()),
            _ => None,
        }
    }

    /// The last close of the device: nobody is left who could go on with what was said.
    pub fn forget_drafts(&mut self) {
        self.drafts = Remembered::default();
    }
}
