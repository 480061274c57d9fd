// SPDX-License-Identifier: GPL-2.0

//! A generation that serves requests.

use super::{
    connection::{Connection, ConnectionRef, Death},
    device::{Device, RequestWord, Trouble},
    netlink,
    owner::Setup,
};
use crate::{
    abstractions::{
        block::mq::{Disk, Outcome, Request, Status},
        ratelimit::RateLimit,
    },
    protocol::{
        flags::TransmissionFlags,
        request::{Claim, Route},
    },
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc, CondVar, Mutex,
    },
};

/// A generation that serves requests.
///
/// Reached from the request path without a lock; what changes in it is atomic.
#[pin_data]
pub(crate) struct Attachment {
    pub(super) generation: u64,
    pub(super) connections: KVec<ConnectionRef>,
    flags: Atomic<u32>,
    timeout: Atomic<u32>,
    /// Connections that are not dead.
    live: Atomic<u32>,
    /// No request is to be sent any more.
    draining: Atomic<bool>,
    /// The last connection died of a request's time-out.
    timed_out: Atomic<bool>,
    /// Bounds what servers can make the log say.
    pub(super) said: RateLimit,
    #[pin]
    pub(super) end: Mutex<End>,
    #[pin]
    pub(super) end_changed: CondVar,
}

/// How far a generation's end has come.
pub(super) struct End {
    /// Receivers that have not left yet.
    pub(super) receivers: usize,
    /// Somebody asked for the end.
    pub(super) asked: bool,
}

impl Attachment {
    /// Makes the attachment of a generation. Takes the setup's connections, unless it fails.
    pub(super) fn new(generation: u64, setup: &mut Setup) -> Result<Arc<Self>> {
        let config = setup.config;
        let connections = &mut setup.connections.0;
        let count = connections.len();
        let live = u32::try_from(count)?;
        Arc::pin_init(
            try_pin_init!(Self {
                generation,
                connections: core::mem::take(connections),
                flags: Atomic::new(config.flags.bits()),
                timeout: Atomic::new(config.timeout),
                live: Atomic::new(live),
                draining: Atomic::new(false),
                timed_out: Atomic::new(false),
                said: RateLimit::new(),
                end <- new_mutex!(End { receivers: 0, asked: false }, "rnbd::end"),
                end_changed <- new_condvar!("rnbd::end_changed"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// What the export can do.
    pub(super) fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::from_bits(self.flags.load(Relaxed))
    }

    pub(super) fn set_flags(&self, flags: TransmissionFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    /// Longest that a request may take, in seconds; 0 for no bound.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout.load(Relaxed)
    }

    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Relaxed);
        for connection in &self.connections {
            connection.socket.set_send_timeout(seconds);
        }
    }

    /// How many connections are not dead.
    pub(super) fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// Whether the last connection died of a request's time-out.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Relaxed)
    }

    /// The connection that a route leads over, unless the route is from elsewhere.
    pub(super) fn connection(&self, route: Route) -> Option<&ConnectionRef> {
        self.connections
            .get(usize::from(route.connection))
            .filter(|connection| connection.route == route)
    }

    /// A live connection for requests of a hardware queue: its own, or the next one that lives.
    pub(super) fn choose(&self, queue: u32) -> Option<&ConnectionRef> {
        if self.draining.load(Relaxed) {
            return None;
        }
        let own = usize::try_from(queue).ok()?;
        let own = own.checked_rem(self.connections.len())?;
        let (before, from) = self.connections.split_at_checked(own)?;
        let mut in_order = Iterator::chain(from.iter(), before);
        in_order.find(|connection| !connection.is_dead())
    }

    /// Kills a connection, says so in the log unless the generation ends, and keeps count. May
    /// sleep. Its receiver then sees to the requests that are stranded on it.
    pub(super) fn kill(&self, connection: &Connection, death: Death) {
        if !connection.kill(death) {
            return;
        }
        let left = self.live.fetch_sub(1, Full).saturating_sub(1);
        if left == 0 && matches!(death, Death::TimedOut) {
            self.timed_out.store(true, Relaxed);
        }
        if !self.draining.load(Relaxed) {
            connection.disk().data().note(Trouble::Connection {
                generation: self.generation,
                index: connection.route.connection,
                death,
            });
            netlink::link_dead(connection.disk().data().index);
            dev_warn!(
                connection.disk().device(),
                "connection {}: {death}; {left} of {} left\n",
                connection.route.connection,
                self.connections.len()
            );
        }
    }

    /// Whether no request is to be sent any more.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Lets no request be sent any more; those on the wire may still be answered. Any context.
    pub(super) fn stop_sending(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Kills all connections. May sleep.
    pub(super) fn kill_all(&self) {
        self.stop_sending();
        for connection in &self.connections {
            self.kill(connection, Death::Retired);
        }
    }

    /// What becomes of a request that its connection could not serve: it goes to another, if
    /// there is one.
    pub(super) fn fate(&self) -> Outcome {
        if self.live() > 0 && !self.draining.load(Relaxed) {
            Outcome::Requeue
        } else {
            Outcome::End(Status::IoError)
        }
    }

    /// Ends the requests that wait for a reply over `route`, which is dead, or has them sent over
    /// another connection.
    pub(super) fn release_stranded(&self, disk: &Disk<Device>, route: Route) {
        disk.for_each_request(|request| {
            if let Some(claim) = request.data().word.claim_from(route) {
                answer(request, claim, self.fate());
            }
        });
    }

    /// Wakes the keeper, after `change`.
    pub(super) fn tell_keeper(&self, change: impl FnOnce(&mut End)) {
        change(&mut self.end.lock());
        self.end_changed.notify_all();
    }
}

/// Answers a request, as the one who has the right to. Any context.
pub(super) fn answer(request: &Request<Device>, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    // There is one claim at a time, and it is used up: nobody else has finished the request.
    let finished = request.finish(outcome);
    debug_assert!(finished.is_ok());
}
