// SPDX-License-Identifier: GPL-2.0

//! What the driver does with requests, retold for loom.
//!
//! Mirrors `driver/attachment.rs`, `receive.rs`, `inbox.rs` and `timeout.rs`: the same functions,
//! the same order of accesses, without the bytes and the time. Change them together.

use crate::{
    block::{Layer, Outcome, Ref, Status},
    connection::{Connection, Death, Link, Loss},
    explore::{Flag, Number, RequestWord},
    keeper::{End, Presence},
    rules::Rules,
    socket::{Event, Received},
};
use loom::{
    sync::{Condvar, Mutex, RwLock},
    thread,
};
use rnbd_protocol::request::{Claim, Route};
use std::sync::{Arc, Mutex as StdMutex};

pub struct Device {
    pub layer: Arc<Layer>,
    /// How many requests end together at most.
    together: usize,
    pub rules: Rules,
    pub connections: Vec<Connection>,
    /// Requests wait for a connection when none lives.
    waits: bool,
    live: Number,
    /// The last connection died of a request's time-out.
    pub timed_out: Flag,
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
            together: requests.min(2) as usize,
            rules,
            waits,
            live: Number::new(sockets.len() as u32),
            timed_out: Flag::new(),
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

    pub fn own(&self, queue: usize) -> &Connection {
        &self.connections[queue % self.connections.len()]
    }

    pub fn choose(&self, queue: usize) -> Option<&Connection> {
        if self.draining.is_set() {
            return None;
        }
        let (before, from) = self.connections.split_at(queue % self.connections.len());
        from.iter().chain(before).find(|c| !c.is_dead())
    }

    /// Something kills what a connection sends on.
    pub fn kill(&self, connection: usize) {
        let connection = &self.connections[connection];
        self.kill_link(connection, &connection.link(), Death::Broken);
    }

    pub fn kill_link(&self, connection: &Connection, link: &Link, death: Death) {
        let loss = connection.kill(link);
        if loss == Loss::None {
            return;
        }
        if !self.rules.counts_before_shutdown {
            link.bury();
        }
        if loss == Loss::Current && self.count_lost() == 0 && death == Death::TimedOut {
            self.timed_out.store_relaxed(true);
        }
        if self.rules.counts_before_shutdown {
            link.bury();
        }
    }

    /// Returns how many others there are.
    pub fn count_lost(&self) -> u32 {
        let early = (!self.rules.notes_before_counting).then(|| self.live.fetch_sub_full(1));
        *self.lost.lock().unwrap() = true;
        early.unwrap_or_else(|| self.live.fetch_sub_full(1)) - 1
    }

    pub fn count_revived(&self) {
        self.live.fetch_add_full(1);
    }

    pub fn kill_all(&self) {
        self.draining.store_relaxed(true);
        for connection in &self.connections {
            self.kill_link(connection, &connection.link(), Death::Broken);
            if let Some(leaving) = connection.leaving() {
                self.kill_link(connection, &leaving, Death::Broken);
            }
        }
    }

    pub fn disposition(&self) -> Outcome {
        if self.draining.is_set() {
            Outcome::End(Status::IoError)
        } else if self.live.load() > 0 {
            Outcome::Requeue
        } else if self.waits && *self.lost.lock().unwrap() {
            Outcome::RequeueDelayed
        } else {
            Outcome::End(Status::IoError)
        }
    }

    fn release_stranded(&self, route: Route) {
        self.layer.tagset_busy_iter(|request| {
            let from = match request.word.route() {
                Some(other) if !self.rules.releases_its_own => other,
                _ => route,
            };
            if let Some(claim) = request.word.claim_from(from) {
                answer(request, claim, self.disposition());
            }
        });
    }

    // driver/receive.rs

    /// Starts the receiver of a connection's link.
    pub fn receiver(self: &Arc<Self>, connection: u16, link: Arc<Link>) -> thread::JoinHandle<()> {
        self.tell_keeper(|end| end.receivers += 1);
        self.spawn(move |device| {
            let connection = &device.connections[usize::from(connection)];
            let mut answered = Vec::new();
            while device.serve_reply(&link, &mut answered) {}
            answered.clear();
            device.kill_link(connection, &link, Death::Broken);
            device.release_stranded(link.route);
            device.tell_keeper(|end| end.receivers -= 1);
            device.run_requeued();
        })
    }

    fn serve_reply(&self, link: &Link, answered: &mut Vec<Ref>) -> bool {
        let cookie = loop {
            match link.socket.receive(answered.is_empty()) {
                Received::Reply(cookie) => break cookie,
                // They end before anything is waited for.
                Received::Nothing => answered.clear(),
                Received::End => return false,
            }
        };
        let Some(request) = self.layer.try_get(cookie.tag()) else {
            return false;
        };
        let Ok(claim) = request.word.reply(cookie, link.route) else {
            return false;
        };
        link.count_answered();
        assert_eq!(
            request.word.route(),
            Some(link.route),
            "a request was answered over another link than it was sent on"
        );
        answer(&request, claim, Outcome::End(Status::Ok));
        // Those that are answered end together. What does not fit does not wait.
        answered.push(request);
        if answered.len() >= self.together {
            answered.clear();
        }
        true
    }

    // driver/timeout.rs

    /// The block layer looks for requests that take too long.
    pub fn time_out(&self) {
        self.layer.tagset_busy_iter(|request| {
            let Some(route) = request.word.route() else {
                return;
            };
            let connection = &self.connections[usize::from(route.connection)];
            if let Some(link) = connection.link_of(route) {
                self.kill_link(connection, &link, Death::TimedOut);
            }
        });
        self.run_requeued();
    }

    // What must hold once all is quiet.

    /// All threads are done: what is put back is sent, or fails; each request has ended.
    pub fn assert_all_ended(&self) {
        // What is parked is tried again now and then.
        self.hand_out(true);
        assert!(
            self.connections.iter().all(|it| it.outbox.is_empty()),
            "a request was left in an outbox"
        );
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
            "a link lives that will never be shut down"
        );
    }
}

pub fn answer(request: &Ref, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    request.finish(outcome);
}
