// SPDX-License-Identifier: GPL-2.0

//! Reconnect and handover, retold for loom. Mirrors `driver/replace.rs`: change them together.

use crate::{
    connection::{Connection, Death, Link},
    keeper::Presence,
    socket::Event,
    transport::{answer, Device},
};
use loom::thread;
use std::sync::Arc;

/// Which connections get another socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Dead ones.
    Dead,
    /// Dead ones, and when these have theirs, live ones.
    All,
    /// As well, and a sender on one keeps it waiting too long.
    AllStuck,
}

/// A link that another has taken the place of.
pub struct Old {
    connection: u16,
    link: Arc<Link>,
    receiver: thread::JoinHandle<()>,
}

/// The generation has ended.
#[derive(Debug)]
pub struct Ended;

impl Device {
    /// `NBD_CMD_RECONFIGURE`, with a socket for each list of events. Returns how many were taken.
    pub fn replace(self: &Arc<Self>, sockets: &[&[Event]], scope: Scope) -> Result<usize, Ended> {
        let old = self.put_all(sockets, scope)?;
        let taken = old.len();
        self.kick_requeue_list();
        self.retire(old);
        Ok(taken)
    }

    pub fn kick_requeue_list(&self) {
        self.hand_out(self.rules.kicks);
    }

    pub fn put_all(
        self: &Arc<Self>,
        sockets: &[&[Event]],
        scope: Scope,
    ) -> Result<Vec<Old>, Ended> {
        let mut presence = self.presence.lock().unwrap();
        if presence.closed {
            return Err(Ended);
        }
        let mut sockets = sockets.iter();
        let mut old: Vec<Old> = Vec::new();
        let scopes: &[bool] = match scope {
            Scope::Dead => &[true],
            Scope::All | Scope::AllStuck => &[true, false],
        };
        for &dead in scopes {
            for connection in &self.connections {
                let done = old.iter().any(|old| old.connection == connection.index);
                if connection.is_dead() != dead || done {
                    continue;
                }
                let Some(events) = sockets.next() else {
                    return Ok(old);
                };
                let is_stuck = scope == Scope::AllStuck;
                old.push(self.put(&mut presence, connection, events, is_stuck));
            }
        }
        Ok(old)
    }

    fn put(
        self: &Arc<Self>,
        presence: &mut Presence,
        connection: &Connection,
        events: &[Event],
        is_stuck: bool,
    ) -> Old {
        let index = connection.index;
        let epoch = connection.link().route.epoch + 1;
        let link = Link::new(index, epoch, events);
        self.links.lock().unwrap().push(link.clone());
        let receiver = self.receiver(index, link.clone());

        let kill = || self.kill_link(connection, &connection.link(), Death::Broken);
        let mut tx = connection.lock_sender(is_stuck, kill);
        let partial = tx.partial.take();
        let displaced = connection.put_link(&mut tx, link.clone());
        drop(tx);
        if displaced.was_dead {
            self.count_revived();
        }
        if self.rules.finds_stillborn && link.is_dead() && connection.lose(&link) {
            self.count_lost();
        }
        if let Some(leaving) = displaced.leaving {
            if self.rules.forgets_its_own {
                self.kill_link(connection, &leaving, Death::Broken);
            }
        }
        if let Some(partial) = partial.filter(|_| self.rules.resends_parts) {
            if let Some(sending) = partial.request.word.resume(partial.mark) {
                if let Some(claim) = sending.abandon() {
                    answer(&partial.request, claim, self.disposition());
                }
            }
        }
        if self.rules.sees_the_end && self.draining.is_set() {
            self.kill_link(connection, &link, Death::Broken);
        }
        Old {
            connection: index,
            link: displaced.link,
            receiver: std::mem::replace(&mut presence.receivers[usize::from(index)], receiver),
        }
    }

    /// Releases links whose places are taken. The driver gives their servers a while; here it is
    /// over at any moment.
    pub fn retire(&self, old: Vec<Old>) {
        for Old {
            connection,
            link,
            receiver,
        } in old
        {
            let connection = &self.connections[usize::from(connection)];
            self.kill_link(connection, &link, Death::Broken);
            receiver.join().unwrap();
            connection.forget(&link);
        }
        self.run_requeued();
    }
}
