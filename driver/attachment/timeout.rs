// SPDX-License-Identifier: GPL-2.0

//! Requests that take too long.

use super::Attachment;
use crate::{
    abstractions::block::mq::{Request, Timeout},
    driver::{
        nbd::Nbd,
        wire::{link::DeadReason, overseer::Overseer},
    },
};
use kernel::prelude::*;

/// How often a request is looked at when no time-out was set, in seconds.
pub(crate) const UNBOUNDED_INTERVAL: u32 = 30;

/// Kills the connection that owes the reply. Its receiver then has the request sent over another
/// one, or ends it: the task that has the request in hand at the moment loses the socket and lets go.
///
/// With a time-out of 0 it is only said in the log.
pub(crate) fn handle(attachment: Option<&Attachment>, request: &Request<Nbd>) -> Timeout {
    let (Some(attachment), Some(route)) = (attachment, request.data().word.route()) else {
        // It is on its way back to the block layer, or waits in an outbox.
        return Timeout::ResetTimer;
    };
    if attachment.timeout() == 0 {
        if attachment.log_limit.ratelimit().is_some() {
            dev_info!(
                attachment.disk().device(),
                "possible stuck request: {:?} at byte {}, {} bytes, unanswered on connection {} for {} s or more: no time-out is set, disconnect to end it\n",
                request.op(),
                request.sector() << 9,
                request.bytes(),
                route.connection,
                request
                    .age_ms()
                    .map_or(u64::from(UNBOUNDED_INTERVAL), |age| age / 1000)
            );
        }
    } else if request
        .restarted_ms()
        .is_some_and(|age| age < u64::from(attachment.timeout()).saturating_mul(1000))
    {
        // It has waited for another connection, which was stuck, and this one has its full time.
        return Timeout::ResetTimer;
    } else if let Some((connection, link)) = attachment.link_of(route) {
        attachment.kill(connection, &link, DeadReason::TimedOut);
        return Timeout::Done;
    }
    // It waits for another link to answer, or to leave.
    Timeout::ResetTimer
}
