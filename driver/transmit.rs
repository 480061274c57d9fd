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
        iov::Kvec,
        net::socket::{More, Wait},
        trace,
    },
    protocol::{
        cookie::Cookie,
        flags::TransmissionFlags,
        request::Sending,
        wire::{self, Command, CommandFlags, REQUEST_SIZE},
    },
};
use kernel::{
    prelude::*,
    sync::aref::ARef,
    time::{Delta, Instant, Monotonic},
};

/// A request that has waited longer than this for its turn gets its full time from then on.
const PATIENCE: Delta = Delta::from_millis(100);

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

/// The header of a request, as it goes on the wire.
pub(super) fn header(request: &Request<Device>, cookie: Cookie) -> [u8; REQUEST_SIZE] {
    // What the protocol has no command for was refused.
    let command = command(request).unwrap_or(Command::Flush);
    let has_range = command != Command::Flush;
    wire::Request {
        command,
        flags: CommandFlags {
            fua: request.is_fua(),
            no_hole: request.is_nounmap() && command == Command::WriteZeroes,
        },
        cookie,
        offset: if has_range { request.sector() << 9 } else { 0 },
        length: if has_range { request.bytes() } else { 0 },
    }
    .encode()
}

/// Sends a request that came from the block layer, or sees to it that it is sent, or ends it. With
/// `last`, no other follows at once. Sleeps.
pub(super) fn submit(
    disk: &Disk<Device>,
    attachment: Option<&AttachmentRef>,
    request: &Request<Device>,
    queue: u32,
    last: bool,
) {
    let tried = try_submit(disk, attachment, request, queue, last);
    if let Err(outcome) = tried {
        give_back(request, outcome);
    }
    if last && tried != Ok(true) {
        // What came before may wait on the queue's own connection, and nothing follows there.
        if let Some(own) = attachment.and_then(|attachment| attachment.own(queue)) {
            own.outbox.commit();
        }
    }
}

/// Ends a request that is on no connection, or has it come again.
fn give_back(request: &Request<Device>, outcome: Outcome) {
    // Nobody else could have finished it.
    let finished = request.finish(outcome);
    debug_assert!(finished.is_ok());
}

/// Tells whether it went over the hardware queue's own connection.
fn try_submit(
    disk: &Disk<Device>,
    attachment: Option<&AttachmentRef>,
    request: &Request<Device>,
    queue: u32,
    last: bool,
) -> Result<bool, Outcome> {
    const FAILED: Outcome = Outcome::End(Status::IoError);

    let attachment = attachment.ok_or(FAILED)?;
    let command = command(request).ok_or(Outcome::End(Status::NotSupported))?;
    if command.modifies() && attachment.flags().contains(TransmissionFlags::READ_ONLY) {
        if attachment.said.ratelimit().is_some() {
            dev_err!(
                disk.device(),
                "{} at byte {} refused: the export is read-only\n",
                command.name(),
                request.sector() << 9
            );
        }
        return Err(FAILED);
    }
    let connection = loop {
        let connection = attachment
            .choose(queue)
            .ok_or_else(|| attachment.disposition())?;
        if connection.outbox.put(request).is_ok() {
            break connection;
        }
        send_waiting(connection, &mut connection.tx.lock());
    };
    let own = attachment.own(queue);
    let is_own = own.is_some_and(|own| own.index == connection.index);
    // Elsewhere it does not wait for others: those may go to their own connection again.
    if last || !is_own {
        // With answers under way it can wait for the sender, and others with it. Else nobody is as
        // fast as we.
        let free = connection.tx.try_lock();
        let idle = free.filter(|tx| tx.link.is_quiet() && !connection.outbox.expects_company());
        if let Some(mut tx) = idle {
            send_waiting(connection, &mut tx);
        } else {
            connection.outbox.commit();
        }
    }
    Ok(is_own)
}

/// Sends what others left to be sent on a connection; for a thread that gets no signals. Sleeps.
pub(super) fn send_left(connection: &ConnectionRef) {
    let mut earlier = None;
    let mut tx = connection.tx.lock();
    finish_earlier(connection, &mut tx, &mut earlier);
    loop {
        let count = send_waiting(connection, &mut tx);
        if count == 0 {
            break;
        }
        connection.outbox.sender_met(count);
    }
}

/// Sends what waits on a connection, or gives it back. Returns how many did. Sleeps.
fn send_waiting(connection: &ConnectionRef, tx: &mut Tx) -> usize {
    let mut requests = core::mem::take(&mut tx.batch.requests);
    let since = connection.outbox.take(&mut requests);
    let all = requests.len();
    let mut rest = requests.as_slice();
    while !rest.is_empty() {
        let count = match send_some(connection, tx, rest, since) {
            Ok(count) => count,
            Err(outcome) => {
                rest.iter().for_each(|request| give_back(request, outcome));
                break;
            }
        };
        rest = rest.get(count..).unwrap_or_default();
    }
    requests.clear();
    tx.batch.requests = requests;
    all
}

/// Sends the first of `requests`, as many as go together. Returns how many. If it cannot, tells
/// what is to become of all.
fn send_some(
    connection: &ConnectionRef,
    tx: &mut Tx,
    requests: &[ARef<Request<Device>>],
    since: Instant<Monotonic>,
) -> Result<usize, Outcome> {
    let attachment = requests.first().and_then(|request| request.attachment());
    let attachment = attachment.ok_or(Outcome::End(Status::IoError))?;
    let mut earlier = None;
    // Under the lock: after a disconnect message nothing may be sent.
    if tx.link.is_dead() || attachment.is_draining() {
        return Err(attachment.disposition());
    }
    if !finish_earlier(connection, tx, &mut earlier) {
        // Only a signal stops this. The connection's sender comes here without one.
        return Err(Outcome::Requeue);
    }
    if tx.link.is_dead() {
        return Err(attachment.disposition());
    }
    let waited = since.elapsed() > PATIENCE;
    let Tx {
        link,
        sequence,
        batch,
        ..
    } = &mut *tx;
    let count = batch.begin(link, sequence, requests);
    let (together, others) = requests.split_at_checked(count).unwrap_or_default();
    if waited {
        // However long that was, this connection is not to blame.
        together.iter().for_each(|request| request.restart_clock());
    }
    if !together.is_empty() {
        link.count_asked(count);
        let more = if others.is_empty() {
            More::Ends
        } else {
            More::Follows
        };
        let (sent, result) = batch.send(link, together, more);
        settle_all(attachment, connection, together, sent, result, tx);
        return Ok(count);
    }
    if let Some(first) = requests.first() {
        if waited {
            first.restart_clock();
        }
        link.count_asked(1);
        let sending = first.data().word.begin(link.route, sequence);
        let sent = send(connection.disk(), link, first, &sending, 0);
        settle(attachment, connection, first, sending, sent, tx);
    }
    Ok(1)
}

/// Draws the consequences of how requests went that were sent at once.
fn settle_all(
    attachment: &AttachmentRef,
    connection: &ConnectionRef,
    requests: &[ARef<Request<Device>>],
    sent: usize,
    result: Result,
    tx: &mut Tx,
) {
    let mut sent = sent;
    for (place, request) in requests.iter().enumerate() {
        let Some(outgoing) = tx.batch.outgoing().get(place).copied() else {
            break;
        };
        let how = match result {
            _ if sent >= outgoing.bytes => Sent::Whole,
            Ok(()) => Sent::Whole,
            Err(error) => Sent::stopped(sent, error),
        };
        if sent >= REQUEST_SIZE {
            trace::header_sent(request, outgoing.cookie.to_wire());
        }
        if matches!(how, Sent::Whole) {
            trace::payload_sent(request, outgoing.cookie.to_wire());
        }
        sent = sent.saturating_sub(outgoing.bytes);
        let answered_early = matches!(how, Sent::Interrupted(part) if part > 0);
        if let Some(sending) = request.data().word.resume(outgoing.mark) {
            settle(attachment, connection, request, sending, how, tx);
        } else if let Sent::Failed(error) = how {
            attachment.kill(connection, &tx.link, death(error));
        } else if answered_early {
            attachment.kill(connection, &tx.link, Death::AnsweredEarly);
        }
    }
}

/// Sends the rest of a request that an earlier sender had to leave. False if that is not done.
fn finish_earlier(connection: &ConnectionRef, tx: &mut Tx, earlier: &mut Option<Partial>) -> bool {
    let Some(partial) = tx.partial.take() else {
        return true;
    };
    let request = partial.request.clone();
    let Some(attachment) = request.attachment() else {
        return true;
    };
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

/// Puts the bytes of a request on a link's socket, from the `skip`th on.
fn send(
    disk: &Disk<Device>,
    link: &Link,
    request: &Request<Device>,
    sending: &Sending<'_, RequestWord>,
    skip: usize,
) -> Sent {
    let cookie = sending.cookie(request.unique_tag());
    let mut header = header(request, cookie);
    let is_write = request.op() == Op::Write;
    if skip == 0 {
        trace::send_request(&mut header, disk.data().index, request);
    }
    let mut done = skip;
    if let Some(rest) = header.get(skip..).filter(|rest| !rest.is_empty()) {
        let more = if is_write { More::Follows } else { More::Ends };
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
    if is_write {
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
                    answer(request, claim, attachment.disposition());
                }
            }
        }
        Sent::Interrupted(0) => {
            tx.link.count_unasked();
            if let Some(claim) = sending.abandon() {
                answer(request, claim, Outcome::Requeue);
            }
        }
        Sent::Interrupted(sent) => {
            tx.partial = Some(Partial {
                request: ARef::from(request),
                mark: sending.interrupt(),
                sent,
            });
            connection.outbox.call_sender();
        }
        Sent::Failed(error) => {
            attachment.kill(connection, &tx.link, death(error));
            if let Some(claim) = sending.abandon() {
                answer(request, claim, attachment.disposition());
            }
        }
    }
}

/// What a link dies of when sending fails.
fn death(error: Error) -> Death {
    // The bound on a send is the request's time-out.
    if error == EAGAIN {
        Death::TimedOut
    } else {
        Death::SendFailed(error)
    }
}
