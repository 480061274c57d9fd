// SPDX-License-Identifier: GPL-2.0

//! The keeper of an attachment: it ends the generation when that is asked for.

use crate::protocol::setup::Interface;
use kernel::sync::Arc;

/// What waits for the end of an attachment of type `A`, and drains it then.
pub(crate) trait Keeper<A>: Send + Sync {
    /// The interface by which the generation was started.
    fn interface(&self) -> Interface;

    /// Which backend it is, if the one who attached it said so.
    fn backend(&self) -> Option<&[u8]> {
        None
    }

    /// The generation is brought up and its end was asked for. Called once. May sleep.
    fn end_due(&self, attachment: &Arc<A>);
}
