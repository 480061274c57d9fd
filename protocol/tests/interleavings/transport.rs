// SPDX-License-Identifier: GPL-2.0

//! What the driver does with requests, retold for loom.
//!
//! Mirrors `driver/attachment.rs`, `transmit.rs`, `receive.rs` and `timeout.rs`: the same
//! functions, the same order of accesses, without the bytes and the time. Change them together.

use crate::{
    block::{Layer, Outcome, Ref, Status},
    connection::{Connection, Link, Loss, Partial, Tx},
    explore::{Flag, Number, RequestWord},
    keeper::{End, Presence},
    rules::Rules,
    socket::{Event, Sent},
};
use loom::{
    sync::{Condvar, Mutex, RwLock},
    thread,
};
use rnbd_protocol::request::{Claim, Route, Sending};
use std::sync::{Arc, Mutex as StdMutex};

pub struct Device {
    pub layer: Arc<Layer>,
    pub rules: Rules,
    pub connections: Vec<Connection>,
    /// Requests wait for a connection when none lives.
    waits: bool,
    live: Number,
    pub draining: Flag,
    /// A connection has died.
    lost: Mutex<bool>,
    pub presence: Mutex<Presence>,
    pub end: Mutex<End>,
    pub end_changed: Condvar,
    /// Held for reading while the block layer hands a request out.
    pub dispatch: RwLock<()>,
    /// All links that there ever were; no part of the model.
    pub links: StdMutex<Vec<Arc<Link>>>,
}

impl Device {
    /// An attachment with a connection for each list of events. When all are dead, requests fail.
    pub fn new(requests: u32, sockets: &[&[Event]]) -> Arc<Self> {
        Self::make(requests, sockets, false, Rules::DRIVER)
    }

    /// The same; when all connections are dead, requests wait for another.
    pub fn waiting(requests: u32, sockets: &[&[Event]]) -> Arc<Self> {
        Self::make(requests, sockets, true, Rules::DRIVER)
    }

    /// The first, brought up: each connection has its receiver.
    pub fn running(requests: u32, sockets: &[&[Event]]) -> Arc<Self> {
        let device = Self::new(requests, sockets);
        device.bring_up();
        device
    }

    pub fn make(requests: u32, sockets: &[&[Event]], waits: bool, rules: Rules) -> Arc<Self> {
        let connections: Vec<_> = (0..)
            .zip(sockets)
            .map(|(index, events)| Connection::new(index, events, rules))
            .collect();
        Arc::new(Self {
            layer: Layer::new(requests),
            rules,
            waits,
            live: Number::new(sockets.len() as u32),
            draining: Flag::new(),
            lost: Mutex::new(false),
            presence: Mutex::default(),
            end: Mutex::default(),
            end_changed: Condvar::new(),
            dispatch: RwLock::new(()),
            links: StdMutex::new(connections.iter().map(Connection::link).collect()),
            connections,
        })
    }

    pub fn spawn(
        self: &Arc<Self>,
        act: impl FnOnce(&Arc<Self>) + 'static,
    ) -> thread::JoinHandle<()> {
        let device = self.clone();
        thread::spawn(move || act(&device))
    }

    // driver/attachment.rs

    fn choose(&self, queue: usize) -> Option<&Connection> {
        if self.draining.is_set() {
            return None;
        }
        let (before, from) = self.connections.split_at(queue % self.connections.len());
        from.iter().chain(before).find(|c| !c.is_dead())
    }

    /// Something kills what a connection sends on.
    pub fn kill(&self, connection: usize) {
        let connection = &self.connections[connection];
        self.kill_link(connection, &connection.link());
    }

    pub fn kill_link(&self, connection: &Connection, link: &Link) {
        if connection.kill(link) == Loss::Current {
            self.count_lost();
        }
    }

    pub fn count_lost(&self) {
        if !self.rules.notes_before_counting {
            self.live.fetch_sub_full(1);
        }
        *self.lost.lock().unwrap() = true;
        if self.rules.notes_before_counting {
            self.live.fetch_sub_full(1);
        }
    }

    pub fn count_revived(&self) {
        self.live.fetch_add_full(1);
    }

    pub fn kill_all(&self) {
        self.draining.store_relaxed(true);
        for connection in &self.connections {
            self.kill_link(connection, &connection.link());
            if let Some(leaving) = connection.leaving() {
                self.kill_link(connection, &leaving);
            }
        }
    }

    pub fn fate(&self) -> Outcome {
        if self.draining.is_set() {
            Outcome::End(Status::IoError)
        } else if self.live.load() > 0 {
            Outcome::Requeue
        } else if self.waits && *self.lost.lock().unwrap() {
            Outcome::Park
        } else {
            Outcome::End(Status::IoError)
        }
    }

    fn release_stranded(&self, route: Route) {
        self.layer.for_each_request(|request| {
            let from = match request.word.route() {
                Some(other) if !self.rules.releases_its_own => other,
                _ => route,
            };
            if let Some(claim) = request.word.claim_from(from) {
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
        self.hand_out(false);
    }

    /// As well as what is parked, if somebody says so or its time is over.
    pub fn hand_out(&self, parked: bool) {
        self.layer
            .hand_out(parked, |request| self.queue_rq(request, 0));
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
            let connection = self.choose(queue).ok_or_else(|| self.fate())?;
            let mut earlier = None;
            let mut tx = connection.tx.lock().unwrap();
            if tx.link.is_dead() || self.draining.is_set() {
                let link = tx.link.clone();
                drop(tx);
                // The driver just tries again. Here whoever kills or replaces it must move first.
                if !self.draining.is_set() {
                    connection.await_change(&link);
                }
                continue;
            }
            if !self.finish_earlier(connection, &mut tx, &mut earlier) {
                return Err(Outcome::Requeue);
            }
            if tx.link.is_dead() {
                continue;
            }
            let Tx { link, sequence, .. } = &mut *tx;
            let sending = request.word.begin(link.route, sequence);
            let sent = send(link, request, &sending);
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
            let sent = send(&tx.link, &request, &sending);
            self.settle(connection, &request, sending, sent, tx);
        } else {
            self.kill_link(connection, &tx.link);
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
                if self.rules.looks_again && tx.link.is_dead() {
                    if let Some(claim) = request.word.claim_from(tx.link.route) {
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
                self.kill_link(connection, &tx.link);
                if let Some(claim) = sending.abandon() {
                    answer(request, claim, self.fate());
                }
            }
        }
    }

    /// The worker of a connection, until it is stopped.
    pub fn work(&self, connection: usize) {
        let connection = &self.connections[connection];
        connection.work(|| {
            self.finish_partial(connection);
            self.run_requeued();
        });
    }

    pub fn stop_work(&self, connection: usize) {
        self.connections[connection].stop_work();
    }

    // driver/receive.rs

    /// Starts the receiver of a connection's link.
    pub fn receiver(self: &Arc<Self>, connection: u16, link: Arc<Link>) -> thread::JoinHandle<()> {
        self.tell_keeper(|end| end.receivers += 1);
        self.spawn(move |device| {
            let connection = &device.connections[usize::from(connection)];
            while device.serve_reply(&link) {}
            device.kill_link(connection, &link);
            device.release_stranded(link.route);
            device.tell_keeper(|end| end.receivers -= 1);
            device.run_requeued();
        })
    }

    fn serve_reply(&self, link: &Link) -> bool {
        let Some(cookie) = link.socket.receive() else {
            return false;
        };
        let Some(request) = self.layer.try_get(cookie.tag()) else {
            return false;
        };
        let Ok(claim) = request.word.reply(cookie, link.route) else {
            return false;
        };
        assert_eq!(
            request.word.route(),
            Some(link.route),
            "a request was answered over another link than it was sent on"
        );
        answer(&request, claim, Outcome::End(Status::Ok));
        true
    }

    // driver/timeout.rs

    /// The block layer looks for requests that take too long.
    pub fn time_out(&self) {
        self.layer.for_each_request(|request| {
            let Some(route) = request.word.route() else {
                return;
            };
            let connection = &self.connections[usize::from(route.connection)];
            if let Some(link) = connection.link_of(route) {
                self.kill_link(connection, &link);
            }
        });
        self.run_requeued();
    }

    // What must hold once all is quiet.

    /// All threads are done: what is put back is sent, or fails; each request has ended.
    pub fn assert_all_ended(&self) {
        // What is parked is tried again now and then.
        self.hand_out(true);
        self.layer.assert_all_ended();
    }

    /// What is known of the connections is true.
    pub fn assert_counted(&self) {
        for connection in &self.connections {
            assert_eq!(
                connection.is_dead(),
                connection.link().is_dead(),
                "a connection is not what its link is, dead or alive"
            );
        }
        let live = self.connections.iter().filter(|it| !it.is_dead()).count();
        assert_eq!(
            self.live.load() as usize,
            live,
            "the connections that live are counted wrongly"
        );
    }

    /// No link lives any more.
    pub fn assert_none_lives(&self) {
        let links = self.links.lock().unwrap();
        assert!(
            links.iter().all(|link| link.is_dead()),
            "a link lives that nobody will shut down"
        );
    }
}

fn send(link: &Link, request: &Ref, sending: &Sending<'_, RequestWord>) -> Sent {
    link.socket.send(sending.cookie(request.tag))
}

pub fn answer(request: &Ref, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    request.finish(outcome);
}
