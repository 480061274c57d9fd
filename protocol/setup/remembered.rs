// SPDX-License-Identifier: GPL-2.0

//! What is remembered of processes, for each of them by itself.

use super::{Kinds, Owner};

/// Of how many. More than that hardly use one device at a time; then it is forgotten what is oldest.
const MOST: usize = 8;

/// A `T` for a process.
struct Entry<K: Kinds, T> {
    owner: K::Owner,
    value: T,
    /// They are numbered as they come.
    number: u64,
}

/// A `T` for each of a few processes that live.
pub(super) struct Remembered<K: Kinds, T> {
    entries: [Option<Entry<K, T>>; MOST],
    /// The number of the last one.
    number: u64,
}

impl<K: Kinds, T> Default for Remembered<K, T> {
    fn default() -> Self {
        Self {
            entries: [const { None }; MOST],
            number: 0,
        }
    }
}

impl<K: Kinds, T> Remembered<K, T> {
    fn find(&mut self, owner: &K::Owner) -> Option<&mut Option<Entry<K, T>>> {
        let mut entries = self.entries.iter_mut();
        entries.find(|entry| entry.as_ref().is_some_and(|entry| entry.owner == *owner))
    }

    /// What is remembered of a process.
    pub(super) fn get(&mut self, owner: &K::Owner) -> Option<&mut T> {
        Some(&mut self.find(owner)?.as_mut()?.value)
    }

    /// The same, and forgets it.
    pub(super) fn take(&mut self, owner: &K::Owner) -> Option<T> {
        Some(self.find(owner)?.take()?.value)
    }

    /// Remembers it of a process, if that lives.
    pub(super) fn put(&mut self, owner: K::Owner, value: T) {
        if !owner.is_alive() {
            return;
        }
        drop(self.take(&owner));
        let living = |entry: &&mut Option<Entry<K, T>>| {
            let entry = entry.as_ref().filter(|entry| entry.owner.is_alive());
            entry.map(|entry| entry.number)
        };
        self.number = self.number.wrapping_add(1);
        // A place that is free, or else the oldest.
        if let Some(place) = self.entries.iter_mut().min_by_key(living) {
            *place = Some(Entry {
                owner,
                value,
                number: self.number,
            });
        }
    }
}
