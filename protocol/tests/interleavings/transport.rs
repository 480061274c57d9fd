// SPDX-License-Identifier: GPL-2.0

//! What the driver does with requests, retold for loom.
//!
//! Mirrors `driver/attachment.rs`, `connection.rs`, `transmit.rs`, `receive.rs`, `timeout.rs`
//! and the `drain` of `keeper.rs`: the same functions, the same order of accesses, without the
//! bytes. Change them together.

use crate::{
    block::{Layer, Outcome, Ref, Status},
    explore::{Flag, Number, RequestWord},
    socket::{Event, Sent, Socket},
};
use loom::{
    sync::{Condvar, Mutex, RwLock},
    thread,
};
use rnbd_protocol::{
    cookie::Sequence,
    request::{Claim, Route, SendMark, Sending},
};
use std::sync::Arc;

pub struct Connection {
    route: Route,
    socket: Socket,
    dead: Flag,
    tx: Mutex<Tx>,
    work: Mutex<Work>,
    work_changed: Condvar,
}

/// What a connection's senders leave to each other.
#[derive(Default)]
struct Tx {
    sequence: Sequence,
    partial: Option<Partial>,
}

/// A request of which only a part went out.
struct Partial {
    request: Ref,
    mark: SendMark,
}

/// `Deferred`: what a worker shall do for a connection.
#[derive(Default)]
struct Work {
    scheduled: bool,
    running: bool,
    stop: bool,
}

impl Connection {
    fn kill(&self) -> bool {
        if self.dead.set_full() {
            return false;
        }
        self.socket.shutdown();
        true
    }

    fn schedule(&self) {
        self.work.lock().unwrap().scheduled = true;
        self.work_changed.notify_all();
    }

    /// `flush_work`.
    fn flush(&self) {
        let mut work = self.work.lock().unwrap();
        while work.scheduled || work.running {
            work = self.work_changed.wait(work).unwrap();
        }
    }
}

pub struct Device {
    pub layer: Arc<Layer>,
    connections: Vec<Connection>,
    live: Number,
    draining: Flag,
    /// Held for reading while the block layer hands a request out.
    dispatch: RwLock<()>,
}

impl Device {
    /// A running attachment, with a connection for each list of events.
    pub fn new(requests: u32, sockets: &[&[Event]]) -> Arc<Self> {
        Arc::new(Self {
            layer: Layer::new(requests),
            connections: (0..)
                .zip(sockets)
                .map(|(connection, events)| Connection {
                    route: Route {
                        connection,
                        epoch: 0,
                    },
                    socket: Socket::new(events),
                    dead: Flag::new(),
                    tx: Mutex::default(),
                    work: Mutex::default(),
                    work_changed: Condvar::new(),
                })
                .collect(),
            live: Number::new(sockets.len() as u32),
            draining: Flag::new(),
            dispatch: RwLock::new(()),
        })
    }

    pub fn spawn(self: &Arc<Self>, act: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let device = self.clone();
        thread::spawn(move || act(&device))
    }

    // driver/attachment.rs

    fn choose(&self, queue: usize) -> Option<&Connection> {
        if self.draining.is_set() {
            return None;
        }
        let (before, from) = self.connections.split_at(queue % self.connections.len());
        from.iter().chain(before).find(|c| !c.dead.is_set())
    }

    pub fn kill(&self, connection: usize) {
        self.kill_connection(&self.connections[connection]);
    }

    fn kill_connection(&self, connection: &Connection) {
        if connection.kill() {
            self.live.fetch_sub_full(1);
        }
    }

    fn fate(&self) -> Outcome {
        if self.live.load() > 0 && !self.draining.is_set() {
            Outcome::Requeue
        } else {
            Outcome::End(Status::IoError)
        }
    }

    fn release_stranded(&self, route: Route) {
        self.layer.for_each_request(|request| {
            if let Some(claim) = request.word.claim_from(route) {
                answer(request, claim, self.fate());
            }
        });
    }

    // driver/transmit.rs

    /// A submitter's request, and whatever was put back since.
    pub fn submit(&self, tag: u32, queue: usize) {
        if let Some(request) = self.layer.submit(tag) {
            self.queue_rq(request, queue);
        }
        self.run_requeued();
    }

    /// The block layer hands out what was put back.
    pub fn run_requeued(&self) {
        while let Some(request) = self.layer.requeued() {
            self.queue_rq(request, 0);
        }
    }

    fn queue_rq(&self, request: Ref, queue: usize) {
        let _dispatch = self.dispatch.read().unwrap();
        if let Err(outcome) = self.try_submit(&request, queue) {
            request.finish(outcome);
        }
        drop(request);
    }

    fn try_submit(&self, request: &Ref, queue: usize) -> Result<(), Outcome> {
        loop {
            let connection = self.choose(queue).ok_or(Outcome::End(Status::IoError))?;
            let mut earlier = None;
            let mut tx = connection.tx.lock().unwrap();
            if connection.dead.is_set() || self.draining.is_set() {
                continue;
            }
            if !self.finish_earlier(connection, &mut tx, &mut earlier) {
                return Err(Outcome::Requeue);
            }
            if connection.dead.is_set() {
                continue;
            }
            let sending = request.word.begin(connection.route, &mut tx.sequence);
            let sent = send(connection, request, &sending);
            self.settle(connection, request, sending, sent, &mut tx);
            // As in the driver, the lock goes before the last reference to an earlier request.
            drop(tx);
            drop(earlier);
            return Ok(());
        }
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
            let sent = send(connection, &request, &sending);
            self.settle(connection, &request, sending, sent, tx);
        } else {
            self.kill_connection(connection);
        }
        *earlier = Some(partial);
        tx.partial.is_none()
    }

    fn finish_partial(&self, connection: &Connection) {
        let mut earlier = None;
        let mut tx = connection.tx.lock().unwrap();
        self.finish_earlier(connection, &mut tx, &mut earlier);
        drop(tx);
        drop(earlier);
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
                if connection.dead.is_set() {
                    if let Some(claim) = request.word.claim_from(connection.route) {
                        answer(request, claim, self.fate());
                    }
                }
            }
            Sent::Interrupted => {
                tx.partial = Some(Partial {
                    request: request.clone(),
                    mark: sending.interrupt(),
                });
                connection.schedule();
            }
            Sent::Failed => {
                self.kill_connection(connection);
                if let Some(claim) = sending.abandon() {
                    answer(request, claim, self.fate());
                }
            }
        }
    }

    // driver/receive.rs

    /// The receiver of a connection, until that dies.
    pub fn receive(&self, connection: usize) {
        let connection = &self.connections[connection];
        while self.serve_reply(connection) {}
        self.kill_connection(connection);
        self.release_stranded(connection.route);
        self.run_requeued();
    }

    fn serve_reply(&self, connection: &Connection) -> bool {
        let Some(cookie) = connection.socket.receive() else {
            return false;
        };
        let Some(request) = self.layer.try_get(cookie.tag()) else {
            return false;
        };
        let Ok(claim) = request.word.reply(cookie, connection.route) else {
            return false;
        };
        answer(&request, claim, Outcome::End(Status::Ok));
        true
    }

    // driver/timeout.rs

    /// The block layer looks for requests that take too long.
    pub fn time_out(&self) {
        self.layer.for_each_request(|request| {
            if let Some(route) = request.word.route() {
                self.kill(route.connection.into());
            }
        });
        self.run_requeued();
    }

    // driver/connection.rs, abstractions/deferred.rs

    /// The worker of a connection, until it is stopped.
    pub fn work(&self, connection: usize) {
        let connection = &self.connections[connection];
        let mut work = connection.work.lock().unwrap();
        while !work.stop || work.scheduled {
            if !work.scheduled {
                work = connection.work_changed.wait(work).unwrap();
                continue;
            }
            work.scheduled = false;
            work.running = true;
            drop(work);
            self.finish_partial(connection);
            self.run_requeued();
            work = connection.work.lock().unwrap();
            work.running = false;
            connection.work_changed.notify_all();
        }
    }

    pub fn stop_work(&self, connection: usize) {
        let connection = &self.connections[connection];
        connection.work.lock().unwrap().stop = true;
        connection.work_changed.notify_all();
    }

    // driver/keeper.rs

    /// `kill_all`, and the `drain` that follows it.
    pub fn drain(&self, receivers: Vec<thread::JoinHandle<()>>) {
        self.draining.set_relaxed();
        for connection in &self.connections {
            self.kill_connection(connection);
        }
        for receiver in receivers {
            receiver.join().unwrap();
        }
        for connection in &self.connections {
            connection.flush();
        }
        // `wait_for_dispatch`.
        drop(self.dispatch.write().unwrap());
        self.layer.for_each_request(|request| {
            if let Some(claim) = request.word.claim() {
                answer(request, claim, Outcome::End(Status::IoError));
            }
        });
    }
}

fn send(connection: &Connection, request: &Ref, sending: &Sending<'_, RequestWord>) -> Sent {
    connection.socket.send(sending.cookie(request.tag))
}

fn answer(request: &Ref, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    request.finish(outcome);
}
