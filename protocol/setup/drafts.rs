// SPDX-License-Identifier: GPL-2.0

//! What processes have said of exports that they did not attach yet.
//!
//! Settings without a socket keep nobody out: another process may set up too, and whoever brings the
//! first socket has the device. So that each attaches what it has said itself, what the others have
//! said is kept here meanwhile.

use super::{Config, Kinds, Owner, Setup};

/// How many processes are remembered. More than that hardly set one device up at a time; then the
/// first of them have to say it again.
const MOST: usize = 8;

/// What one process has said.
struct Draft<K: Kinds> {
    owner: K::Owner,
    config: Config,
    /// Clients clear the device before they bring their sockets. That is not meant for another, who has
    /// taken their place.
    clear_due: bool,
    /// They are numbered as they come.
    number: u64,
}

/// What processes have said.
pub(super) struct Drafts<K: Kinds> {
    drafts: [Option<Draft<K>>; MOST],
    /// The number of the last one.
    number: u64,
}

impl<K: Kinds> Default for Drafts<K> {
    fn default() -> Self {
        Self {
            drafts: [const { None }; MOST],
            number: 0,
        }
    }
}

impl<K: Kinds> Drafts<K> {
    fn find(&mut self, owner: &K::Owner) -> Option<&mut Option<Draft<K>>> {
        let is_owners =
            |draft: &&mut Option<Draft<K>>| draft.as_ref().is_some_and(|draft| draft.owner == *owner);
        self.drafts.iter_mut().find(is_owners)
    }

    /// What a process has said.
    pub(super) fn get(&mut self, owner: &K::Owner) -> Option<Config> {
        Some(self.find(owner)?.as_ref()?.config)
    }

    /// The same, to be its setup again.
    pub(super) fn take(&mut self, owner: &K::Owner) -> Option<Config> {
        Some(self.find(owner)?.take()?.config)
    }

    /// Keeps what was said in a setup that makes way for another, if its owner lives. Gives back its
    /// connections.
    pub(super) fn put(&mut self, setup: Setup<K>) -> K::Connections {
        if setup.owner.is_alive() {
            let living = |draft: &&mut Option<Draft<K>>| {
                let draft = draft.as_ref().filter(|draft| draft.owner.is_alive());
                draft.map(|draft| draft.number)
            };
            self.number = self.number.wrapping_add(1);
            // One that is free, or else the oldest.
            if let Some(place) = self.drafts.iter_mut().min_by_key(living) {
                *place = Some(Draft {
                    owner: setup.owner,
                    config: setup.config,
                    clear_due: true,
                    number: self.number,
                });
            }
        }
        setup.connections
    }

    /// The process clears. True, once, if it has said something: then that is what it clears for.
    pub(super) fn clear(&mut self, owner: &K::Owner) -> bool {
        let draft = self.find(owner).and_then(Option::as_mut);
        draft.is_some_and(|draft| core::mem::take(&mut draft.clear_due))
    }
}
