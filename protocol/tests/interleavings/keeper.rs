// SPDX-License-Identifier: GPL-2.0

//! How a generation is brought up and ended, retold for loom. Mirrors `driver/device/{start,drain,end}.rs`:
//! change them together. [`End`] tells `protocol/end.rs` with rules that can be taken away: `armed` is what
//! `End::leave` says, and `woken` what `End::take_if_due` says once. The real one is explored in
//! [`away`](crate::away).

use crate::{
    block::{Outcome, Status},
    transport::{answer, Device},
};
use loom::thread;
use std::sync::Arc;

/// What a generation has in the system while it runs.
#[derive(Default)]
pub struct Presence {
    pub receivers: Vec<thread::JoinHandle<()>>,
    pub closed: bool,
}

/// How far a generation's end has come.
#[derive(Default)]
pub struct End {
    pub receivers: usize,
    pub asked: bool,
    pub armed: bool,
    woken: bool,
    /// The worker that ends generations is to run.
    scheduled: bool,
    /// It has brought one to its end.
    pub drained: bool,
}

impl Device {
    pub fn tell_keeper(&self, change: impl FnOnce(&mut End)) {
        let mut end = self.end.lock().unwrap();
        change(&mut end);
        let may = end.armed || !self.rules.ends_after_start;
        if end.asked && may && !(end.woken && self.rules.ends_once) {
            end.woken = true;
            end.scheduled = true;
        }
        drop(end);
        self.end_changed.notify_all();
    }

    /// Makes the attachment serve requests.
    pub fn bring_up(self: &Arc<Self>) {
        let mut presence = self.presence.lock().unwrap();
        for connection in &self.connections {
            let receiver = self.receiver(connection.index, connection.link());
            presence.receivers.push(receiver);
        }
    }

    /// `NBD_CMD_CONNECT`: a worker ends it.
    pub fn connect(self: &Arc<Self>) {
        self.bring_up();
        self.tell_keeper(|end| end.armed = true);
    }

    /// `NBD_CMD_DISCONNECT` at a server that is to answer what it was asked.
    pub fn disconnect(&self) {
        self.draining.store_relaxed(true);
        self.tell_keeper(|end| end.asked = true);
    }

    /// The worker, until it has ended one generation and has nothing to do.
    pub fn end_when_asked(&self) {
        loop {
            let mut end = self.end.lock().unwrap();
            while !end.scheduled {
                if end.drained {
                    return;
                }
                end = self.end_changed.wait(end).unwrap();
            }
            end.scheduled = false;
            assert!(!end.drained, "the next generation is ended with this one");
            assert!(end.armed, "a generation is ended while it is brought up");
            drop(end);
            self.drain();
            self.end.lock().unwrap().drained = true;
        }
    }

    /// `let_server_finish`, with a grace that is over at any moment, and the `run` that follows it.
    pub fn drain(&self) {
        self.kill_all();
        self.wait_for_receivers();
        let receivers = {
            let mut presence = self.presence.lock().unwrap();
            presence.closed = true;
            std::mem::take(&mut presence.receivers)
        };
        for receiver in receivers {
            receiver.join().unwrap();
        }
        if self.rules.awaits_all_receivers {
            self.wait_for_receivers();
        }
        // `quiesce_once`.
        drop(self.dispatch.write().unwrap());
        for connection in &self.connections {
            connection.outbox.close();
        }
        for connection in &self.connections {
            connection.outbox.join_sender();
        }
        if self.rules.gives_back_what_is_left {
            for connection in &self.connections {
                self.send_left(connection);
            }
        }
        self.layer.tagset_busy_iter(|request| {
            if let Some(claim) = request.word.claim() {
                answer(request, claim, Outcome::End(Status::IoError));
            }
        });
        self.kick_requeue_list();
        assert_eq!(
            self.end.lock().unwrap().receivers,
            0,
            "a receiver outlives its generation"
        );
    }

    pub fn wait_for_receivers(&self) {
        let mut end = self.end.lock().unwrap();
        while end.receivers > 0 {
            end = self.end_changed.wait(end).unwrap();
        }
    }

    /// Waits for the receivers of links that are dead.
    pub fn join_receivers(&self) {
        let receivers = std::mem::take(&mut self.presence.lock().unwrap().receivers);
        for receiver in receivers {
            receiver.join().unwrap();
        }
    }
}
