// SPDX-License-Identifier: GPL-2.0

//! Requests on their way to the server.

use super::{
    attachment::{answer, AttachmentRef},
    connection::{ConnectionRef, Partial, Tx},
    device::{Device, RequestWord},
    link::{Death, Link},
};
use crate::{
    abstractions::{
        block::mq::{Disk, Op, Outcome, Request, Status},
        deferred::Deferred,
        iov::Kvec,
        net::socket::{More, Wait},
        trace,
    },
    protocol::{
        flags::TransmissionFlags,
        request::Sending,
        wire::{self, Command, CommandFlags, REQUEST_SIZE},
    },
};
use kernel::{prelude::*, sync::aref::ARef};

/// How a send went.
enum Sent {
    /// All of it is on its way.
    Whole,
    /// A signal came after so many bytes.
    Interrupted(usize),
    /// The socket failed.
    Failed(Error),
}

/// The protocol's command for a request, if it has one.
fn command(request: &Request<Device>) -> Option<Command> {
    match request.op() {
        Op::Read => Some(Command::Read),
        Op::Write => Some(Command::Write),
        Op::Flush => Some(Command::Flush),
        Op::Discard => Some(Command::Trim),
        Op::WriteZeroes => Some(Command::WriteZeroes),
        Op::Other(_) => None,
    }
}

/// Sends a request that came from the block layer, or ends it. Sleeps.
pub(super) fn submit(
    disk: &Disk<Device>,
    attachment: Option<&AttachmentRef>,
    request: &Request<Device>,
    queue: u32,
) {
    if let Err(outcome) = try_submit(disk, attachment, request, queue) {
        // The request was never put on a connection: nobody else could have finished it.
        let finished = request.finish(outcome);
        debug_assert!(finished.is_ok());
    }
}

fn try_submit(
    disk: &Disk<Device>,
    attachment: Option<&AttachmentRef>,
    request: &Request<Device>,
    queue: u32,
) -> Result<(), Outcome> {
    const FAILED: Outcome = Outcome::End(Status::IoError);

    let attachment = attachment.ok_or(FAILED)?;
    let command = command(request).ok_or(Outcome::End(Status::NotSupported))?;
    if command.modifies() && attachment.flags().contains(TransmissionFlags::READ_ONLY) {
        if attachment.said.may_say().is_some() {
            dev_err!(
                disk.device(),
                "{} at byte {} refused: the export is read-only\n",
                command.name(),
                request.sector() << 9
            );
        }
        return Err(FAILED);
    }
    let mut waited = false;
    loop {
        let connection = attachment.choose(queue).ok_or_else(|| attachment.fate())?;
        // Dropped after the lock: with its last reference a request goes to the block layer.
        let mut earlier = None;
        let mut tx = connection.tx.try_lock().unwrap_or_else(|| {
            waited = true;
            connection.tx.lock()
        });
        // Under the lock: after a disconnect message nothing may be sent.
        if tx.link.is_dead() || attachment.is_draining() {
            continue;
        }
        if !finish_earlier(attachment, connection, &mut tx, &mut earlier) {
            // Only a signal stops this. A worker comes here without one.
            return Err(Outcome::Requeue);
        }
        if tx.link.is_dead() {
            continue;
        }
        if waited {
            // However long that was, this connection is not to blame.
            request.restart_clock();
        }
        let Tx { link, sequence, .. } = &mut *tx;
        let sending = request.data().word.begin(link.route, sequence);
        let sent = send(disk, link, request, &sending, 0);
        settle(attachment, connection, request, sending, sent, &mut tx);
        return Ok(());
    }
}

/// Sends the rest of a request that an earlier sender had to leave. False if that is not done.
fn finish_earlier(
    attachment: &AttachmentRef,
    connection: &ConnectionRef,
    tx: &mut Tx,
    earlier: &mut Option<Partial>,
) -> bool {
    let Some(partial) = tx.partial.take() else {
        return true;
    };
    let request = partial.request.clone();
    if let Some(sending) = request.data().word.resume(partial.mark) {
        let sent = send(
            connection.disk(),
            &tx.link,
            &request,
            &sending,
            partial.sent,
        );
        settle(attachment, connection, &request, sending, sent, tx);
    } else {
        // It was answered meanwhile, and its bytes may be gone. The server waits for them.
        attachment.kill(connection, &tx.link, Death::AnsweredEarly);
    }
    *earlier = Some(partial);
    tx.partial.is_none()
}

/// Finishes a send that a signal stopped. For a worker, who gets no signals. Sleeps.
pub(super) fn finish_partial(connection: &ConnectionRef) {
    let mut earlier = None;
    let mut tx = connection.tx.lock();
    if let Some(partial) = &tx.partial {
        let attachment = partial.attachment.clone();
        finish_earlier(&attachment, connection, &mut tx, &mut earlier);
    }
}

/// Puts the bytes of a request on a link's socket, from the `skip`th on.
fn send(
    disk: &Disk<Device>,
    link: &Link,
    request: &Request<Device>,
    sending: &Sending<'_, RequestWord>,
    skip: usize,
) -> Sent {
    let Some(command) = command(request) else {
        return Sent::Failed(EOPNOTSUPP);
    };
    let has_range = command != Command::Flush;
    let cookie = sending.cookie(request.unique_tag());
    let mut header = wire::Request {
        command,
        flags: CommandFlags {
            fua: request.is_fua(),
            no_hole: request.is_no_unmap() && command == Command::WriteZeroes,
        },
        cookie,
        offset: if has_range { request.sector() << 9 } else { 0 },
        length: if has_range { request.bytes() } else { 0 },
    }
    .encode();

    if skip == 0 {
        trace::send_request(&mut header, disk.data().index, request);
    }
    let mut done = skip;
    if let Some(rest) = header.get(skip..).filter(|rest| !rest.is_empty()) {
        let more = match command {
            Command::Write => More::Follows,
            _ => More::Ends,
        };
        let (sent, result) = link
            .socket
            .send(&mut Kvec::source(rest), more, Wait::Allowed);
        link.count_sent(sent);
        done = done.saturating_add(sent);
        if let Err(error) = result {
            return Sent::stopped(done, error);
        }
    }
    trace::header_sent(request, cookie.to_wire());
    if command == Command::Write {
        let mut pieces = request.source(done.saturating_sub(REQUEST_SIZE));
        while let Some(mut piece) = pieces.next() {
            let more = if pieces.is_done() {
                More::Ends
            } else {
                More::Follows
            };
            let (sent, result) = link.socket.send(&mut piece, more, Wait::Allowed);
            link.count_sent(sent);
            done = done.saturating_add(sent);
            if let Err(error) = result {
                return Sent::stopped(done, error);
            }
        }
    }
    trace::payload_sent(request, cookie.to_wire());
    Sent::Whole
}

impl Sent {
    fn stopped(done: usize, error: Error) -> Self {
        if error == EINTR || error == ERESTARTSYS {
            Self::Interrupted(done)
        } else {
            Self::Failed(error)
        }
    }
}

/// Draws the consequences of how a send went.
fn settle(
    attachment: &AttachmentRef,
    connection: &ConnectionRef,
    request: &Request<Device>,
    sending: Sending<'_, RequestWord>,
    sent: Sent,
    tx: &mut Tx,
) {
    match sent {
        Sent::Whole => {
            sending.sent();
            // If the link died meanwhile, its receiver may have looked for stranded
            // requests before this one was among them.
            if tx.link.is_dead() {
                if let Some(claim) = request.data().word.claim_from(tx.link.route) {
                    answer(request, claim, attachment.fate());
                }
            }
        }
        Sent::Interrupted(0) => {
            if let Some(claim) = sending.abandon() {
                answer(request, claim, Outcome::Requeue);
            }
        }
        Sent::Interrupted(sent) => {
            tx.partial = Some(Partial {
                attachment: attachment.clone(),
                request: ARef::from(request),
                mark: sending.interrupt(),
                sent,
            });
            Deferred::schedule(connection);
        }
        Sent::Failed(error) => {
            // The bound on a send is the request's time-out.
            let death = if error == EAGAIN {
                Death::TimedOut
            } else {
                Death::SendFailed(error)
            };
            attachment.kill(connection, &tx.link, death);
            if let Some(claim) = sending.abandon() {
                answer(request, claim, attachment.fate());
            }
        }
    }
}
