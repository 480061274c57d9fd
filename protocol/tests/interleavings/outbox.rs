// SPDX-License-Identifier: GPL-2.0

//! Requests that wait to be sent, retold for loom. Mirrors `driver/outbox.rs` and
//! `driver/sender.rs`: change them together.
//!
//! In the driver each connection has a thread that sends. loom has few threads: here a task that
//! wants the sender is it for a while, once it holds no lock; unless a test gives the connection a
//! thread ([`Device::sender`](crate::transport::Device::sender)).

use crate::block::Ref;
use loom::sync::{Condvar, Mutex};

/// Requests that wait to be sent on a connection.
#[derive(Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    /// A sender is wanted, or has sent.
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<Ref>,
    /// The connection's sender is to send them.
    due: bool,
    closed: bool,
    /// A task is the sender just now, or a thread is it all the time.
    has_sender: bool,
}

impl Outbox {
    pub fn put(&self, request: &Ref) {
        self.waiting.lock().unwrap().requests.push(request.clone());
    }

    /// Has the connection's sender send what waits. True if that was not known yet.
    pub fn commit(&self) -> bool {
        let wake = {
            let mut waiting = self.waiting.lock().unwrap();
            !waiting.requests.is_empty() && !std::mem::replace(&mut waiting.due, true)
        };
        if wake {
            self.changed.notify_all();
        }
        wake
    }

    pub fn call_sender(&self) {
        self.waiting.lock().unwrap().due = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to send; for a thread.
    pub fn wait(&self) -> bool {
        let mut waiting = self.waiting.lock().unwrap();
        while !waiting.due && !waiting.closed {
            waiting = self.changed.wait(waiting).unwrap();
        }
        waiting.due
    }

    pub fn close(&self) {
        self.waiting.lock().unwrap().closed = true;
        self.changed.notify_all();
    }

    pub fn take(&self) -> Vec<Ref> {
        let mut waiting = self.waiting.lock().unwrap();
        waiting.due = false;
        std::mem::take(&mut waiting.requests)
    }

    /// Nothing waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap().requests.is_empty()
    }

    // The sender.

    /// A thread is the sender, for good.
    pub fn has_thread(&self) {
        self.waiting.lock().unwrap().has_sender = true;
    }

    /// Becomes the sender, if one is wanted and there is none.
    pub fn become_sender(&self) -> bool {
        let mut waiting = self.waiting.lock().unwrap();
        let wanted = waiting.due && !waiting.has_sender;
        if wanted {
            waiting.has_sender = true;
        }
        wanted
    }

    /// Has sent, and is the sender no longer.
    pub fn leave_sender(&self) {
        self.waiting.lock().unwrap().has_sender = false;
        self.changed.notify_all();
    }

    /// Waits until the sender has nothing to do; for one that is no thread.
    pub fn join_sender(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        while waiting.due || waiting.has_sender {
            waiting = self.changed.wait(waiting).unwrap();
        }
    }
}
