// SPDX-License-Identifier: GPL-2.0

//! The keeper of an attachment: it ends the generation when that is asked for.

use crate::protocol::{end::ComeBack, setup::Interface};
use kernel::sync::Arc;

/// What waits for the end of an attachment of type `A`, and drains it then.
pub(crate) trait Keeper<A>: Send + Sync {
    /// The interface by which the generation was started.
    fn interface(&self) -> Interface;

    /// Which backend it is, if the one who attached it said so.
    fn backend(&self) -> Option<&[u8]> {
        None
    }

    /// The end is due, and no task is there to see to it. Called once. May sleep.
    fn end_due(&self, attachment: &Arc<A>);

    /// The current task keeps the generation, and has to leave the kernel for a while. False if it cannot
    /// leave the generation alone. May sleep.
    fn leave(&self, _attachment: &Arc<A>) -> bool {
        false
    }

    /// The current task comes to keep the generation again. May sleep.
    fn come_back(&self, _attachment: &Arc<A>) -> ComeBack {
        ComeBack::Occupied
    }
}
