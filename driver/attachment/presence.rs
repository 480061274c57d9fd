// SPDX-License-Identifier: GPL-2.0

//! What an attachment has in the system while it runs.

use crate::{
    abstractions::kthread::Thread,
    driver::wire::{overseer::Overseer, receive::Receiver, sender::Sender},
};
use kernel::prelude::*;

/// What an attachment has in the system while it runs.
pub(crate) struct Presence<O: Overseer> {
    /// Of each connection's current link.
    pub(crate) receivers: KVec<Thread<Receiver<O>>>,
    /// Of each connection.
    pub(crate) senders: KVec<Thread<Sender<O>>>,
    /// What user space sees of it: files that go with it.
    pub(crate) files: Option<KBox<dyn Send + Sync>>,
    /// The generation drains: no connection gets another link.
    pub(crate) closed: bool,
}

impl<O: Overseer> Default for Presence<O> {
    fn default() -> Self {
        Self {
            receivers: KVec::new(),
            senders: KVec::new(),
            files: None,
            closed: false,
        }
    }
}

impl<O: Overseer> Presence<O> {
    /// The generation drains. Hands out what it has in the system.
    pub(crate) fn close(&mut self) -> Self {
        let closed = Self {
            closed: true,
            ..Self::default()
        };
        core::mem::replace(self, closed)
    }

    /// Waits for the senders, of connections whose outboxes are closed.
    pub(crate) fn join_senders(&mut self) {
        drop(core::mem::take(&mut self.senders));
    }

    /// Waits for the receivers, whose sockets are shut down. The files stay.
    pub(crate) fn join_receivers(&mut self) {
        drop(core::mem::take(&mut self.receivers));
    }
}
