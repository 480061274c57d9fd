// SPDX-License-Identifier: GPL-2.0

//! Whose setup it is: the types that [`crate::protocol::setup`] is told in, here.

use super::{attachment::AttachmentRef, connection::ConnectionRef};
use crate::{
    abstractions::pid::ProcessRef,
    protocol::setup::{self, Connections, Kinds, Owner},
};
use kernel::prelude::*;

/// An nbd device.
pub(super) enum Nbd {}

impl Kinds for Nbd {
    type Owner = ProcessRef;
    type Connections = ConnectionArray;
    type Attachment = AttachmentRef;
}

/// A device's life.
pub(super) type Lifecycle = setup::Lifecycle<Nbd>;

/// A generation that is being set up.
pub(super) type Setup = setup::Setup<Nbd>;

/// The connections that were added to a setup.
#[derive(Default)]
pub(super) struct ConnectionArray(pub(super) KVec<ConnectionRef>);

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
