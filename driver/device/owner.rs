// SPDX-License-Identifier: GPL-2.0

//! Whose setup it is: the types that [`crate::protocol::setup`] is told in, here.

use crate::{
    abstractions::pid::ProcessRef,
    driver::{attachment::AttachmentRef, nbd::Nbd, wire::connection::ConnectionArray},
    protocol::setup::{self, Connections, Kinds, Owner},
};

impl Kinds for Nbd {
    type Owner = ProcessRef;
    type Connections = ConnectionArray;
    type Attachment = AttachmentRef;
}

/// A device's life.
pub(crate) type Lifecycle = setup::Lifecycle<Nbd>;

/// A generation that is being set up.
pub(crate) type Setup = setup::Setup<Nbd>;

impl Connections for ConnectionArray {
    fn count(&self) -> usize {
        self.0.len()
    }
}

impl Owner for ProcessRef {
    fn is_alive(&self) -> bool {
        ProcessRef::is_alive(self)
    }

    fn is_parent_of_caller(&self) -> bool {
        self.is_parent_of_current()
    }
}
