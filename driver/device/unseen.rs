// SPDX-License-Identifier: GPL-2.0

//! How generations ended whose tasks were away from `NBD_DO_IT`: see [`super::away`].

use crate::{
    abstractions::{
        memalloc::MemallocNoio,
        task::{Doing, TaskRef},
    },
    protocol::setup::EndReason,
};
use kernel::prelude::*;

/// How generations ended whose tasks were away, until these come back.
#[derive(Default)]
pub(super) struct Unseen(KVec<(TaskRef, EndReason)>);

impl Unseen {
    /// Makes room for one more. Sleeps.
    pub(super) fn reserve(&mut self) -> Result {
        self.0.retain(|(task, _)| task.doing() != Doing::Exiting);
        // What waits for memory may wait for this device.
        let _noio = MemallocNoio::save();
        Ok(self.0.reserve(1, GFP_KERNEL)?)
    }

    /// Remembers an end for a task, when it left there was room made for that.
    pub(super) fn put(&mut self, task: TaskRef, reason: EndReason) {
        let _ = self.0.push_within_capacity((task, reason));
    }

    /// How the generation ended that the current task had left, if it did, and was not told yet. Also to
    /// be called when the task makes another call: then it does not come back any more.
    pub(super) fn take(&mut self) -> Option<EndReason> {
        let is_own = |(task, _): &(TaskRef, EndReason)| task.is_current();
        let place = self.0.iter().position(is_own)?;
        Some(self.0.remove(place).ok()?.1)
    }
}
