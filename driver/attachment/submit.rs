// SPDX-License-Identifier: GPL-2.0

//! Requests that come from the block layer. Nothing waits for the server here: blk-mq's own time-out
//! waits for this to end.

use super::Attachment;
use crate::{
    abstractions::{
        block::mq::{Outcome, Request, Status},
        net::socket::Wait,
    },
    driver::{
        nbd::{end_unsent, Nbd},
        wire::{header::command, overseer::Overseer, send::send_outbox},
    },
    protocol::flags::TransmissionFlags,
};
use kernel::prelude::*;

/// Sends a request that came from the block layer, or sees to it that it is sent, or ends it. With
/// `last`, no other follows at once. Sleeps.
pub(crate) fn submit(
    attachment: Option<&Attachment>,
    request: &Request<Nbd>,
    queue: u32,
    last: bool,
) {
    let tried = try_submit(attachment, request, queue, last);
    if let Err(outcome) = tried {
        end_unsent(request, outcome);
    }
    if last && tried != Ok(true) {
        // What came before may wait on the queue's own connection, and nothing follows there.
        if let Some(own) = attachment.and_then(|attachment| attachment.own(queue)) {
            own.outbox.commit();
        }
    }
}

/// Tells whether it went over the hardware queue's own connection.
fn try_submit(
    attachment: Option<&Attachment>,
    request: &Request<Nbd>,
    queue: u32,
    last: bool,
) -> Result<bool, Outcome> {
    const FAILED: Outcome = Outcome::End(Status::IoError);

    let attachment = attachment.ok_or(FAILED)?;
    let command = command(request).ok_or(Outcome::End(Status::NotSupported))?;
    if command.modifies() && attachment.flags().contains(TransmissionFlags::READ_ONLY) {
        if attachment.log_limit.ratelimit().is_some() {
            dev_err!(
                attachment.disk().device(),
                "{} at byte {} refused: the export is read-only\n",
                command.name(),
                request.sector() << 9
            );
        }
        return Err(FAILED);
    }
    let connection = attachment
        .choose(queue)
        .ok_or_else(|| attachment.disposition())?;
    if connection.outbox.put(request).is_err() {
        // It comes again when there is room: nothing waits for the server here.
        connection.outbox.commit();
        return Err(Outcome::RequeueDelayed);
    }
    let own = attachment.own(queue);
    let is_own = own.is_some_and(|own| own.index == connection.index);
    // Elsewhere it does not wait for others: those may go to their own connection again.
    if last || !is_own {
        // With answers under way it can wait for the sender, and others with it. Else nothing is
        // faster than to send it here.
        let free = connection.tx.try_lock();
        let idle = free.filter(|tx| tx.link.is_quiet() && !connection.outbox.expects_batch());
        if let Some(mut tx) = idle {
            send_outbox(attachment, connection, &mut tx, Wait::Never);
        } else {
            connection.outbox.commit();
        }
    }
    Ok(is_own)
}
