// SPDX-License-Identifier: GPL-2.0

//! What connections ask of the attachment that they belong to.

use super::{
    connection::Connection,
    link::{DeadReason, Link},
};
use crate::{
    abstractions::{
        block::mq::{Disk, Outcome},
        ratelimit::RatelimitState,
    },
    driver::nbd::Nbd,
    protocol::{flags::TransmissionFlags, request::Route},
};
use kernel::sync::Arc;

/// What connections belong to.
pub(crate) trait Overseer: Send + Sync + 'static {
    /// The disk whose requests they carry.
    fn disk(&self) -> &Disk<Nbd>;

    /// Whether no request is to be sent any more. Any context.
    fn is_draining(&self) -> bool;

    /// What becomes of a request that its connection could not serve. Any context.
    fn disposition(&self) -> Outcome;

    /// Kills a link of a connection, and keeps count. May sleep. The link's receiver then sees to the
    /// requests that are stranded on it.
    fn kill(&self, connection: &Connection, link: &Link, death: DeadReason);

    /// The export cannot do this after all. True for the first caller. Any context.
    fn clear_flag(&self, flag: TransmissionFlags) -> bool;

    /// Bounds what servers can make the log say.
    fn log_limit(&self) -> &RatelimitState;

    /// A link gets a receiver. May sleep.
    fn receiver_comes(&self);

    /// The receiver of the link of `route`, which is dead, goes: nothing is answered there any more.
    /// May sleep.
    fn receiver_goes(this: &Arc<Self>, route: Route)
    where
        Self: Sized;
}
