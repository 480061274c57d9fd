// SPDX-License-Identifier: GPL-2.0

//! A generation that serves requests.

use super::{
    connection::{Connection, ConnectionRef, Loss},
    device::{Device, RequestWord, Trouble},
    keeper::{self, Keeper, Presence},
    link::{Death, Link},
    netlink,
    owner::Setup,
};
use crate::{
    abstractions::{
        block::mq::{Disk, Outcome, Request, Status},
        ratelimit::RatelimitState,
        work::{WithWork, WorkFunc},
    },
    protocol::{
        fallback::{self, Disposition},
        flags::TransmissionFlags,
        request::{Claim, Route},
    },
};
use kernel::{
    new_condvar, new_mutex, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Full, Relaxed},
        Arc, CondVar, Mutex, SpinLock,
    },
    time::{Instant, Monotonic},
};

/// An attachment that may be shared, and that a worker can end.
pub(crate) type AttachmentRef = Arc<WithWork<Attachment>>;

/// A generation that serves requests.
///
/// Reached from the request path without a lock; what changes in it is atomic.
#[pin_data]
pub(crate) struct Attachment {
    pub(super) generation: u64,
    disk: ARef<Disk<Device>>,
    pub(super) connections: KVec<ConnectionRef>,
    /// Who waits for the end.
    pub(super) keeper: Keeper,
    flags: Atomic<u32>,
    timeout: Atomic<u32>,
    dead_conn_timeout: Atomic<u32>,
    /// Connections that are not dead.
    live: Atomic<u32>,
    /// No request is to be sent any more.
    draining: Atomic<bool>,
    /// The last connection died of a request's time-out.
    timed_out: Atomic<bool>,
    /// Bounds what servers can make the log say.
    pub(super) said: RatelimitState,
    /// Since when requests have waited for a connection, as none is left.
    #[pin]
    waits: SpinLock<Option<Instant<Monotonic>>>,
    /// What it has in the system. Held while connections get other links.
    #[pin]
    pub(super) presence: Mutex<Presence>,
    #[pin]
    pub(super) end: Mutex<End>,
    #[pin]
    pub(super) end_changed: CondVar,
}

/// How far a generation's end has come.
#[derive(Default)]
pub(super) struct End {
    /// Receivers that have not left yet.
    pub(super) receivers: usize,
    /// Somebody asked for the end.
    pub(super) asked: bool,
    /// The generation is brought up: a worker may end it.
    pub(super) armed: bool,
    /// A worker was woken to end it: another run would meet the next generation.
    woken: bool,
}

impl Attachment {
    /// Makes the attachment of a generation. Takes the setup's connections, unless it fails.
    pub(super) fn new(
        disk: &Disk<Device>,
        generation: u64,
        setup: &mut Setup,
        keeper: Keeper,
    ) -> Result<AttachmentRef> {
        let config = setup.config;
        let connections = &mut setup.connections.0;
        let live = u32::try_from(connections.len())?;
        Arc::pin_init(
            WithWork::new(try_pin_init!(Self {
                generation,
                disk: disk.get(),
                connections: core::mem::take(connections),
                keeper,
                flags: Atomic::new(config.flags.bits()),
                timeout: Atomic::new(config.timeout),
                dead_conn_timeout: Atomic::new(config.dead_conn_timeout),
                live: Atomic::new(live),
                draining: Atomic::new(false),
                timed_out: Atomic::new(false),
                said: RatelimitState::new(),
                waits <- new_spinlock!(None, "rnbd::waits"),
                presence <- new_mutex!(Presence::default(), "rnbd::presence"),
                end <- new_mutex!(End::default(), "rnbd::end"),
                end_changed <- new_condvar!("rnbd::end_changed"),
            }? Error)),
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

    /// The export cannot do this after all. True for the first who finds out.
    pub(super) fn withdraw(&self, flag: TransmissionFlags) -> bool {
        let mut old = self.flags.load(Relaxed);
        loop {
            let flags = TransmissionFlags::from_bits(old);
            match self.flags.cmpxchg(old, flags.without(flag).bits(), Full) {
                Ok(_) => return flags.contains(flag),
                Err(met) => old = met,
            }
        }
    }

    /// Longest that a request may take, in seconds; 0 for no bound.
    pub(super) fn timeout(&self) -> u32 {
        self.timeout.load(Relaxed)
    }

    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Relaxed);
        for connection in &self.connections {
            connection.link().socket.set_sndtimeo(seconds);
        }
    }

    pub(super) fn set_dead_conn_timeout(&self, seconds: u32) {
        self.dead_conn_timeout.store(seconds, Relaxed);
    }

    /// How many connections are not dead.
    pub(super) fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// Whether the last connection died of a request's time-out.
    pub(super) fn timed_out(&self) -> bool {
        self.timed_out.load(Relaxed)
    }

    /// The connection and the link that a route leads over, unless another link has taken its
    /// place.
    pub(super) fn link_of(&self, route: Route) -> Option<(&ConnectionRef, Arc<Link>)> {
        let connection = self.connections.get(usize::from(route.connection))?;
        Some((connection, connection.link_of(route)?))
    }

    /// The connection that requests of a hardware queue are for, alive or dead.
    pub(super) fn own(&self, queue: u32) -> Option<&ConnectionRef> {
        fallback::own(&self.connections, queue)
    }

    /// A live connection for requests of a hardware queue: its own, or the next one that lives.
    pub(super) fn choose(&self, queue: u32) -> Option<&ConnectionRef> {
        if self.draining.load(Relaxed) {
            return None;
        }
        fallback::choose(&self.connections, queue, |connection| !connection.is_dead())
    }

    /// Kills a link of a connection, says so in the log unless that was wished for, and keeps
    /// count. May sleep. Its receiver then sees to the requests that are stranded on it.
    pub(super) fn kill(&self, connection: &Connection, link: &Link, death: Death) {
        let loss = connection.kill(link);
        if loss == Loss::None {
            return;
        }
        if loss == Loss::Current && self.count_lost() == 0 && matches!(death, Death::TimedOut) {
            self.timed_out.store(true, Relaxed);
        }
        // Not before that is counted: with the last receiver the generation may end, and it is
        // asked why.
        connection.bury(link, death);
        if death.is_wished() || self.is_draining() {
            return;
        }
        connection.disk().data().note(Trouble::Connection {
            generation: self.generation,
            index: connection.index,
            death,
        });
        netlink::link_dead(connection.disk().data().index);
        dev_warn!(
            connection.disk().device(),
            "connection {}: {death}; {} of {} left\n",
            connection.index,
            self.live(),
            self.connections.len()
        );
    }

    /// Counts a connection that has nothing left to send on. Returns how many others there are.
    pub(super) fn count_lost(&self) -> u32 {
        // First: whoever finds none left waits for this one, not for one that was lost earlier.
        *self.waits.lock() = None;
        self.live.fetch_sub(1, Full).saturating_sub(1)
    }

    /// Counts a connection that has got a link again.
    pub(super) fn count_revived(&self) {
        self.live.fetch_add(1, Full);
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
            // In this order: what is current now may be leaving the next moment.
            self.kill(connection, &connection.link(), Death::Retired);
            if let Some(leaving) = connection.leaving() {
                self.kill(connection, &leaving, Death::Retired);
            }
        }
    }

    /// Whether a request waits for a new connection, since all are dead. The time that this may take
    /// runs from the first one that does; when that has waited in vain, all fail at once.
    fn awaits_connection(&self) -> bool {
        let seconds = self.dead_conn_timeout.load(Relaxed);
        if seconds == 0 {
            return false;
        }
        let since = *self.waits.lock().get_or_insert_with(Instant::now);
        since.elapsed().as_millis() < i64::from(seconds).saturating_mul(1000)
    }

    /// What becomes of a request that its connection could not serve: it goes to another if there
    /// is one, or waits for one if that is wanted.
    pub(super) fn disposition(&self) -> Outcome {
        let draining = self.is_draining();
        match fallback::disposition(draining, self.live(), || self.awaits_connection()) {
            Disposition::Fail => Outcome::End(Status::IoError),
            Disposition::Retry => Outcome::Requeue,
            Disposition::Wait => Outcome::RequeueDelayed,
        }
    }

    /// Ends the requests that wait for a reply over `route`, which is dead, or has them sent over
    /// another connection.
    pub(super) fn release_stranded(&self, disk: &Disk<Device>, route: Route) {
        disk.tagset_busy_iter(|request| {
            if let Some(claim) = request.data().word.claim_from(route) {
                answer(request, claim, self.disposition());
            }
        });
    }

    /// Wakes the keeper, after `change`. Any context that may sleep.
    pub(super) fn tell_keeper(this: &AttachmentRef, change: impl FnOnce(&mut End)) {
        let due = {
            let mut end = this.end.lock();
            change(&mut end);
            end.asked && end.armed && !core::mem::replace(&mut end.woken, true)
        };
        this.end_changed.notify_all();
        if due {
            this.keeper.wake(this);
        }
    }
}

impl WorkFunc for Attachment {
    /// Ends the generation, on behalf of the task that started it and went away.
    fn run(this: &AttachmentRef) {
        keeper::finish(&this.disk, this);
    }
}

/// Answers a request, as the one who has the right to. Any context.
pub(super) fn answer(request: &Request<Device>, claim: Claim<'_, RequestWord>, outcome: Outcome) {
    claim.answer();
    // There is one claim at a time, and it is used up: nobody else has finished the request.
    let finished = request.finish(outcome);
    debug_assert!(finished.is_ok());
}
