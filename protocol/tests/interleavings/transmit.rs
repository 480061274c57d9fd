// SPDX-License-Identifier: GPL-2.0

//! How requests are sent, retold for loom. Mirrors `driver/transmit.rs` and `driver/batch.rs`:
//! change them together.

use crate::{
    block::{Outcome, Ref},
    connection::{Connection, Death, Partial, Tx},
    explore::RequestWord,
    socket::{Sent, Socket},
    transport::{answer, Device},
};
use loom::thread;
use rnbd_protocol::{cookie::Cookie, request::Sending};
use std::sync::Arc;

/// How many requests go together at most.
const TOGETHER: usize = 2;

impl Device {
    /// A submitter's request, and whatever was put back since.
    pub fn submit(&self, tag: u32, queue: usize) {
        self.submit_all(&[tag], queue);
    }

    /// A submitter's requests, which come at once.
    pub fn submit_all(&self, tags: &[u32], queue: usize) {
        let requests = tags.iter().filter_map(|&tag| self.layer.submit(tag));
        self.queue_all(requests.collect(), queue);
        self.run_requeued();
    }

    /// The block layer hands out what was put back.
    pub fn run_requeued(&self) {
        self.hand_out(false);
    }

    /// As well as what is parked, if that is asked for or its time is over.
    pub fn hand_out(&self, parked: bool) {
        self.layer.hand_out(parked, |request| {
            self.await_deaths();
            self.queue_all(vec![request], 0);
        });
    }

    /// The driver just tries again what it could not send over a link that was just dying. Here
    /// the task that kills or replaces it must move first.
    fn await_deaths(&self) {
        for connection in &self.connections {
            let link = connection.link();
            if link.is_dead() && !self.draining.is_set() {
                connection.await_change(&link);
            }
        }
    }

    fn queue_all(&self, requests: Vec<Ref>, queue: usize) {
        let mut wanted = false;
        let dispatch = self.dispatch.read().unwrap();
        let mut requests = requests.into_iter().peekable();
        while let Some(request) = requests.next() {
            wanted |= self.queue_rq(request, queue, requests.peek().is_none());
        }
        drop(dispatch);
        if wanted {
            self.be_sender();
        }
    }

    /// Tells whether a sender is wanted now.
    fn queue_rq(&self, request: Ref, queue: usize, last: bool) -> bool {
        let mut wanted = false;
        let tried = self.try_submit(&request, queue, last, &mut wanted);
        if let Err(outcome) = tried {
            request.finish(outcome);
        }
        if last && tried != Ok(true) && self.rules.commits_what_came_before {
            wanted |= self.own(queue).outbox.commit();
        }
        drop(request);
        wanted
    }

    /// Tells whether it went over the hardware queue's own connection.
    fn try_submit(
        &self,
        request: &Ref,
        queue: usize,
        last: bool,
        wanted: &mut bool,
    ) -> Result<bool, Outcome> {
        let connection = self.choose(queue).ok_or_else(|| self.disposition())?;
        connection.outbox.put(request);
        let is_own = connection.index == self.own(queue).index;
        let waits = if self.rules.commits_what_came_before {
            !last && is_own
        } else {
            !last
        };
        if waits {
            return Ok(is_own);
        }
        let free = connection.tx.try_lock().ok();
        let idle = free.filter(|tx| tx.link.is_quiet());
        if let Some(mut tx) = idle {
            self.send_waiting(connection, &mut tx);
            *wanted = tx.partial.is_some();
        } else if self.rules.commits {
            *wanted = connection.outbox.commit();
        }
        Ok(is_own)
    }

    /// Sends as the sender of a connection.
    pub fn send_left(&self, connection: &Connection) {
        let mut earlier = None;
        let mut tx = connection.tx.lock().unwrap();
        self.finish_earlier(connection, &mut tx, &mut earlier);
        while self.send_waiting(connection, &mut tx) > 0 {}
        // As in the driver, the lock goes before the last reference to an earlier request.
        drop(tx);
        drop(earlier);
    }

    fn send_waiting(&self, connection: &Connection, tx: &mut Tx) -> usize {
        let requests = connection.outbox.take();
        let mut rest = requests.as_slice();
        while !rest.is_empty() {
            match self.send_some(connection, tx, rest) {
                Ok(count) => rest = &rest[count..],
                Err(outcome) => {
                    rest.iter().for_each(|request| request.finish(outcome));
                    break;
                }
            }
        }
        requests.len()
    }

    fn send_some(
        &self,
        connection: &Connection,
        tx: &mut Tx,
        requests: &[Ref],
    ) -> Result<usize, Outcome> {
        let mut earlier = None;
        if tx.link.is_dead() || self.draining.is_set() {
            return Err(self.disposition());
        }
        if !self.finish_earlier(connection, tx, &mut earlier) {
            return Err(Outcome::Requeue);
        }
        if tx.link.is_dead() {
            return Err(self.disposition());
        }
        let together = &requests[..requests.len().min(TOGETHER)];
        let Tx { link, sequence, .. } = &mut *tx;
        let outgoing = together.iter().map(|request| {
            let sending = request.word.begin(link.route, sequence);
            (sending.cookie(request.tag), sending.interrupt())
        });
        let (cookies, marks): (Vec<_>, Vec<_>) = outgoing.unzip();
        link.count_asked(together.len());
        let (whole, stopped) = send(&link.socket, &cookies);
        // `settle_all`.
        for (at, (request, mark)) in together.iter().zip(marks).enumerate() {
            let how = match stopped {
                Sent::Interrupted if at > whole => Sent::NotBegun,
                _ if at < whole => Sent::Whole,
                how => how,
            };
            if let Some(sending) = request.word.resume(mark) {
                self.settle(connection, request, sending, how, tx);
            } else if matches!(how, Sent::Failed | Sent::Interrupted) {
                self.kill_link(connection, &tx.link, Death::Broken);
            }
        }
        Ok(together.len())
    }

    fn finish_earlier(
        &self,
        connection: &Connection,
        tx: &mut Tx,
        earlier: &mut Option<Partial>,
    ) -> bool {
        let Some(partial) = tx.partial.take() else {
            return true;
        };
        let request = partial.request.clone();
        if let Some(sending) = request.word.resume(partial.mark) {
            let sent = tx.link.socket.send(sending.cookie(request.tag));
            self.settle(connection, &request, sending, sent, tx);
        } else {
            self.kill_link(connection, &tx.link, Death::Broken);
        }
        *earlier = Some(partial);
        tx.partial.is_none()
    }

    fn settle(
        &self,
        connection: &Connection,
        request: &Ref,
        sending: Sending<'_, RequestWord>,
        sent: Sent,
        tx: &mut Tx,
    ) {
        match sent {
            Sent::Whole => {
                sending.sent();
                if self.rules.looks_again && tx.link.is_dead() {
                    if let Some(claim) = request.word.claim_from(tx.link.route) {
                        answer(request, claim, self.disposition());
                    }
                }
            }
            Sent::NotBegun => {
                if let Some(claim) = sending.abandon() {
                    answer(request, claim, Outcome::Requeue);
                }
            }
            Sent::Interrupted => {
                tx.partial = Some(Partial {
                    request: request.clone(),
                    mark: sending.interrupt(),
                });
                connection.outbox.call_sender();
            }
            Sent::Failed => {
                self.kill_link(connection, &tx.link, Death::Broken);
                if let Some(claim) = sending.abandon() {
                    answer(request, claim, self.disposition());
                }
            }
        }
    }

    // driver/sender.rs

    /// Is the sender of each connection that wants one.
    pub fn be_sender(&self) {
        for connection in &self.connections {
            while connection.outbox.become_sender() {
                self.send_left(connection);
                connection.outbox.leave_sender();
            }
        }
    }

    /// Gives a connection a sender with a thread of its own, which also hands out what was put
    /// back.
    pub fn sender(self: &Arc<Self>, connection: usize) -> thread::JoinHandle<()> {
        self.connections[connection].outbox.has_thread();
        self.spawn(move |device| {
            let connection = &device.connections[connection];
            while connection.outbox.wait() {
                device.send_left(connection);
                device.run_requeued();
            }
            connection.outbox.leave_sender();
        })
    }

    pub fn stop_sender(&self, connection: usize) {
        self.connections[connection].outbox.close();
    }
}

/// Sends requests by one call. Tells how many went out whole, and what stopped the next.
fn send(socket: &Socket, cookies: &[Cookie]) -> (usize, Sent) {
    for (whole, &cookie) in cookies.iter().enumerate() {
        match socket.send(cookie) {
            Sent::Whole => {}
            stopped => return (whole, stopped),
        }
    }
    (cookies.len(), Sent::Whole)
}
