// SPDX-License-Identifier: GPL-2.0

//! Requests on their way to the server.

use super::{
    connection::{Connection, PendingRequest, Tx},
    header::header,
    link::{DeadReason, Link},
    overseer::Overseer,
};
use crate::{
    abstractions::{
        block::mq::{Op, Outcome, Request},
        iov::Kvec,
        net::socket::{More, Wait},
        trace,
    },
    driver::nbd::{answer, end_unsent, Nbd, RequestWord},
    protocol::{request::Sending, wire::REQUEST_SIZE},
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
    /// After so many bytes it would have had to wait, or a signal came.
    Interrupted(usize),
    /// The socket failed.
    Failed(Error),
}

/// Sends what others left to be sent on a connection; for a thread that gets no signals. Waits for the
/// server. Sleeps.
pub(crate) fn send_queued<O: Overseer>(overseer: &O, connection: &Connection) {
    let mut earlier = None;
    let mut tx = connection.lock_tx();
    send_pending(overseer, connection, &mut tx, &mut earlier, Wait::Allowed);
    loop {
        let count = send_outbox(overseer, connection, &mut tx, Wait::Allowed);
        if count == 0 {
            break;
        }
        connection.outbox.record_batch(count);
        if connection.tx_is_wanted() {
            // With requests coming all the time there would be no end to this.
            drop(tx);
            tx = connection.lock_tx();
        }
    }
}

/// Sends what waits on a connection, or gives it back. Returns how many did. Sleeps. What would have to
/// `wait` for the server, and may not, is left to the connection's sender.
pub(crate) fn send_outbox<O: Overseer>(
    overseer: &O,
    connection: &Connection,
    tx: &mut Tx,
    wait: Wait,
) -> usize {
    let mut requests = core::mem::take(&mut tx.batch.requests);
    let taken = connection.outbox.take(&mut requests);
    if taken.was_full {
        // There is room for those that found none.
        overseer.disk().kick_requeue_list();
    }
    let all = requests.len();
    let mut rest = requests.as_slice();
    while !rest.is_empty() {
        let count = match send_batch(overseer, connection, tx, rest, taken.since, wait) {
            Ok(count) => count,
            Err(outcome) => {
                rest.iter().for_each(|request| end_unsent(request, outcome));
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
fn send_batch<O: Overseer>(
    overseer: &O,
    connection: &Connection,
    tx: &mut Tx,
    requests: &[ARef<Request<Nbd>>],
    since: Instant<Monotonic>,
    wait: Wait,
) -> Result<usize, Outcome> {
    let mut earlier = None;
    // Under the lock: after a disconnect message nothing may be sent.
    if tx.link.is_dead() || overseer.is_draining() {
        return Err(overseer.disposition());
    }
    if !send_pending(overseer, connection, tx, &mut earlier, wait) {
        // The connection's sender does that, without a signal. These come again, and wait for it.
        return Err(Outcome::Requeue);
    }
    if tx.link.is_dead() {
        return Err(overseer.disposition());
    }
    let waited = since.elapsed() > PATIENCE;
    let Tx {
        link,
        sequence,
        batch,
        ..
    } = &mut *tx;
    let count = batch.begin(connection.journal.index, link, sequence, requests);
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
        let sent = batch.send(link, together, more, wait);
        handle_batch_sent(overseer, connection, together, sent, wait, tx);
        return Ok(count);
    }
    if let Some(first) = requests.first() {
        if waited {
            first.restart_clock();
        }
        link.count_asked(1);
        let sending = first.data().word.begin(link.route, sequence);
        let sent = send(connection.journal.index, link, first, &sending, 0, wait);
        handle_sent(overseer, connection, first, sending, sent, tx);
    }
    Ok(1)
}

/// Draws the consequences of how requests went that were sent at once.
fn handle_batch_sent<O: Overseer>(
    overseer: &O,
    connection: &Connection,
    requests: &[ARef<Request<Nbd>>],
    (sent, result): (usize, Result),
    wait: Wait,
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
            Err(error) => Sent::stopped(sent, error, wait),
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
            handle_sent(overseer, connection, request, sending, how, tx);
        } else if let Sent::Failed(error) = how {
            overseer.kill(connection, &tx.link, death(error));
        } else if answered_early {
            overseer.kill(connection, &tx.link, DeadReason::AnsweredEarly);
        }
    }
}

/// Sends the rest of a request that an earlier sender had to leave. False if that is not done.
fn send_pending<O: Overseer>(
    overseer: &O,
    connection: &Connection,
    tx: &mut Tx,
    earlier: &mut Option<PendingRequest>,
    wait: Wait,
) -> bool {
    let Some(pending) = tx.pending.take() else {
        return true;
    };
    let request = pending.request.clone();
    if let Some(sending) = request.data().word.resume(pending.mark) {
        let sent = send(
            connection.journal.index,
            &tx.link,
            &request,
            &sending,
            pending.sent,
            wait,
        );
        handle_sent(overseer, connection, &request, sending, sent, tx);
    } else {
        // It was answered meanwhile, and its bytes may be gone. The server waits for them.
        overseer.kill(connection, &tx.link, DeadReason::AnsweredEarly);
    }
    *earlier = Some(pending);
    tx.pending.is_none()
}

/// Puts the bytes of a request on a link's socket, from the `skip`th on.
fn send(
    index: u32,
    link: &Link,
    request: &Request<Nbd>,
    sending: &Sending<'_, RequestWord>,
    skip: usize,
    wait: Wait,
) -> Sent {
    let cookie = sending.cookie(request.unique_tag());
    let mut header = header(request, cookie);
    let is_write = request.op() == Op::Write;
    if skip == 0 {
        trace::send_request(&mut header, index, request);
    }
    let mut done = skip;
    if let Some(rest) = header.get(skip..).filter(|rest| !rest.is_empty()) {
        let more = if is_write { More::Follows } else { More::Ends };
        let (sent, result) = link.socket.send(&mut Kvec::source(rest), more, wait);
        link.count_sent(sent);
        done = done.saturating_add(sent);
        if let Err(error) = result {
            return Sent::stopped(done, error, wait);
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
            let (sent, result) = link.socket.send(&mut piece, more, wait);
            link.count_sent(sent);
            done = done.saturating_add(sent);
            if let Err(error) = result {
                return Sent::stopped(done, error, wait);
            }
        }
    }
    trace::payload_sent(request, cookie.to_wire());
    Sent::Whole
}

impl Sent {
    fn stopped(done: usize, error: Error, wait: Wait) -> Self {
        let would_wait = error == EAGAIN && wait == Wait::Never;
        if would_wait || error == EINTR || error == ERESTARTSYS {
            Self::Interrupted(done)
        } else {
            Self::Failed(error)
        }
    }
}

/// Draws the consequences of how a send went.
fn handle_sent<O: Overseer>(
    overseer: &O,
    connection: &Connection,
    request: &Request<Nbd>,
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
                    answer(request, claim, overseer.disposition());
                }
            }
        }
        // Nothing else goes out before the rest of this has.
        Sent::Interrupted(sent) if tx.pending.is_none() => {
            tx.pending = Some(PendingRequest {
                request: ARef::from(request),
                mark: sending.interrupt(),
                sent,
            });
            connection.outbox.call_sender();
        }
        // Nothing of it went: it comes again, behind that.
        Sent::Interrupted(_) => {
            tx.link.count_unasked();
            if let Some(claim) = sending.abandon() {
                answer(request, claim, Outcome::Requeue);
            }
        }
        Sent::Failed(error) => {
            overseer.kill(connection, &tx.link, death(error));
            if let Some(claim) = sending.abandon() {
                answer(request, claim, overseer.disposition());
            }
        }
    }
}

/// What a link dies of when sending fails.
fn death(error: Error) -> DeadReason {
    // The bound on a send is the request's time-out.
    if error == EAGAIN {
        DeadReason::TimedOut
    } else {
        DeadReason::SendFailed(error)
    }
}
