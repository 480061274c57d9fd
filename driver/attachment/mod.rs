// SPDX-License-Identifier: GPL-2.0

//! An attachment: a generation that serves requests.
//!
//! * [`keeper`]: what ends it. [`presence`]: what it has in the system while it runs.
//! * [`submit`]: requests that come from the block layer. [`timeout`]: those that take too long.
//! * [`replace`]: other sockets for its connections.

pub(crate) mod keeper;
pub(crate) mod presence;
pub(crate) mod replace;
pub(crate) mod submit;
pub(crate) mod timeout;

use self::{keeper::Keeper, presence::Presence};
use super::{
    nbd::{answer, Nbd},
    wire::{
        connection::{Connection, ConnectionArray, ConnectionRef, Loss},
        journal::{Journal, LastError},
        link::{DeadReason, Link},
        overseer::Overseer,
    },
};
use crate::{
    abstractions::{
        block::mq::{Disk, Outcome, Status},
        ratelimit::RatelimitState,
    },
    protocol::{
        end::End,
        fallback::{self, Disposition},
        flags::TransmissionFlags,
        request::Route,
        setup::Config,
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

/// How long a request that an outbox had no room for waits at most, in milliseconds.
const FULL_DELAY_MS: u32 = 100;

/// An attachment that may be shared.
pub(crate) type AttachmentRef = Arc<Attachment>;

/// A generation that serves requests.
///
/// Reached from the request path without a lock; what changes in it is atomic.
#[pin_data]
pub(crate) struct Attachment {
    pub(crate) generation: u64,
    /// The disk whose requests it serves.
    disk: ARef<Disk<Nbd>>,
    journal: Arc<Journal>,
    pub(crate) connections: KVec<ConnectionRef>,
    /// What waits for the end.
    pub(crate) keeper: KBox<dyn Keeper<Self>>,
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
    pub(crate) log_limit: RatelimitState,
    /// Since when requests have waited for a connection, as none is left. Held while it is said when
    /// they come again: the last one to say so knows all that has changed.
    #[pin]
    waits: SpinLock<Option<Instant<Monotonic>>>,
    /// What it has in the system. Held while connections get other links.
    #[pin]
    pub(crate) presence: Mutex<Presence<Self>>,
    #[pin]
    pub(crate) end: Mutex<End>,
    #[pin]
    pub(crate) end_changed: CondVar,
}

impl Attachment {
    /// Makes the attachment of a generation that serves `disk`. Takes the setup's connections,
    /// unless it fails.
    pub(crate) fn new(
        disk: &Disk<Nbd>,
        journal: &Arc<Journal>,
        generation: u64,
        config: &Config,
        connections: &mut ConnectionArray,
        keeper: KBox<dyn Keeper<Self>>,
    ) -> Result<AttachmentRef> {
        let live = u32::try_from(connections.0.len())?;
        let interface = keeper.interface();
        Arc::pin_init(
            try_pin_init!(Self {
                generation,
                disk: disk.get(),
                journal: journal.clone(),
                connections: core::mem::take(&mut connections.0),
                keeper,
                flags: Atomic::new(config.flags.bits()),
                timeout: Atomic::new(config.timeout),
                dead_conn_timeout: Atomic::new(config.dead_conn_timeout),
                live: Atomic::new(live),
                draining: Atomic::new(false),
                timed_out: Atomic::new(false),
                log_limit: RatelimitState::new(),
                waits <- new_spinlock!(None, "rnbd::waits"),
                presence <- new_mutex!(Presence::default(), "rnbd::presence"),
                end <- new_mutex!(End::new(interface), "rnbd::end"),
                end_changed <- new_condvar!("rnbd::end_changed"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// What the export can do.
    pub(crate) fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::from_bits(self.flags.load(Relaxed))
    }

    pub(crate) fn set_flags(&self, flags: TransmissionFlags) {
        self.flags.store(flags.bits(), Relaxed);
    }

    /// Longest that a request may take, in seconds; 0 for no bound.
    pub(crate) fn timeout(&self) -> u32 {
        self.timeout.load(Relaxed)
    }

    pub(crate) fn set_timeout(&self, seconds: u32) {
        self.timeout.store(seconds, Relaxed);
        for connection in &self.connections {
            connection.link().socket.set_sndtimeo(seconds);
        }
    }

    /// Requests that wait for a connection wait so long in all from now on. Any context.
    pub(crate) fn set_dead_conn_timeout(&self, seconds: u32) {
        self.dead_conn_timeout.store(seconds, Relaxed);
        self.kick_parked();
    }

    /// What has come from the server, and gone to it. That it has changed is a sign of life.
    pub(crate) fn progress(&self) -> u64 {
        let links = self.connections.iter().flat_map(|connection| {
            let links = [Some(connection.link()), connection.leaving()];
            links.into_iter().flatten()
        });
        links.fold(0, |sum: u64, link| sum.wrapping_add(link.bytes()))
    }

    /// How many connections are not dead.
    pub(crate) fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// Whether the last connection died of a request's time-out.
    pub(crate) fn timed_out(&self) -> bool {
        self.timed_out.load(Relaxed)
    }

    /// The connection and the link that a route leads over, unless another link has taken its
    /// place.
    pub(crate) fn link_of(&self, route: Route) -> Option<(&ConnectionRef, Arc<Link>)> {
        let connection = self.connections.get(usize::from(route.connection))?;
        Some((connection, connection.link_of(route)?))
    }

    /// The connection that requests of a hardware queue are for, alive or dead.
    pub(crate) fn own(&self, queue: u32) -> Option<&ConnectionRef> {
        fallback::own(&self.connections, queue)
    }

    /// A live connection for requests of a hardware queue: its own, or the next one that lives.
    pub(crate) fn choose(&self, queue: u32) -> Option<&ConnectionRef> {
        if self.draining.load(Relaxed) {
            return None;
        }
        fallback::choose(&self.connections, queue, |connection| !connection.is_dead())
    }

    /// Counts a connection that has nothing left to send on. Returns how many others there are.
    pub(crate) fn dec_live(&self) -> u32 {
        // First: a request that finds none left waits for this one, not for one that was lost earlier.
        *self.waits.lock() = None;
        self.live.fetch_sub(1, Full).saturating_sub(1)
    }

    /// Counts a connection that has got a link again. Requests that wait for one come again.
    pub(crate) fn inc_live(&self) {
        self.live.fetch_add(1, Full);
        let _waits = self.waits.lock();
        self.disk.kick_requeue_list();
    }

    /// Lets no request be sent any more; those on the wire may still be answered. Any context.
    pub(crate) fn stop_sending(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Kills all connections. May sleep.
    pub(crate) fn kill_all(&self) {
        self.stop_sending();
        for connection in &self.connections {
            // In this order: what is current now may be leaving the next moment.
            self.kill(connection, &connection.link(), DeadReason::Retired);
            if let Some(leaving) = connection.leaving() {
                self.kill(connection, &leaving, DeadReason::Retired);
            }
        }
    }

    /// Whether a request waits for a new connection, since all are dead. The time that this may take
    /// runs from the first one that does; when that has waited in vain, all fail at once.
    fn may_wait_for_reconnect(&self) -> bool {
        let mut since = self.waits.lock();
        self.wait_left_ms(since.get_or_insert_with(Instant::now)) > 0
    }

    /// How long requests that have waited for a connection `since` then wait on, in milliseconds.
    fn wait_left_ms(&self, since: &Instant<Monotonic>) -> i64 {
        let seconds = self.dead_conn_timeout.load(Relaxed);
        i64::from(seconds)
            .saturating_mul(1000)
            .saturating_sub(since.elapsed().as_millis())
    }

    /// Says when requests come again that were given back to wait: for a connection, until the time is
    /// over; for room in an outbox, a while, since the sender says so too. Any context.
    pub(crate) fn kick_parked(&self) {
        let since = self.waits.lock();
        let ms = if self.is_draining() {
            0
        } else if self.live() > 0 {
            FULL_DELAY_MS
        } else {
            match since.as_ref() {
                // A little later, so that the time is over.
                Some(since) => {
                    let left = self.wait_left_ms(since).max(0).saturating_add(1);
                    u32::try_from(left).unwrap_or(u32::MAX)
                }
                // None waits for a connection.
                None => FULL_DELAY_MS,
            }
        };
        self.disk.delay_kick_requeue_list(ms);
    }

    /// Tells the keeper what has changed of the end. Any context that may sleep.
    pub(crate) fn tell_keeper(this: &AttachmentRef, change: impl FnOnce(&mut End)) {
        let due = {
            let mut end = this.end.lock();
            change(&mut end);
            end.take_if_due()
        };
        this.end_changed.notify_all();
        if due {
            this.keeper.end_due(this);
        }
    }
}

impl Overseer for Attachment {
    fn disk(&self) -> &Disk<Nbd> {
        &self.disk
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    fn disposition(&self) -> Outcome {
        let draining = self.is_draining();
        match fallback::disposition(draining, self.live(), || self.may_wait_for_reconnect()) {
            Disposition::Fail => Outcome::End(Status::IoError),
            Disposition::Retry => Outcome::Requeue,
            Disposition::Wait => Outcome::RequeueDelayed,
        }
    }

    // Says so in the log, unless it was wished for.
    fn kill(&self, connection: &Connection, link: &Link, death: DeadReason) {
        let loss = connection.kill(link);
        if loss == Loss::None {
            return;
        }
        if loss == Loss::Current && self.dec_live() == 0 && matches!(death, DeadReason::TimedOut) {
            self.timed_out.store(true, Relaxed);
        }
        // Not before that is counted: with the last receiver the generation may end, and it is
        // asked why.
        connection.shutdown(link, death);
        if death.is_deliberate() || self.is_draining() {
            return;
        }
        self.journal.note(LastError::Connection {
            generation: self.generation,
            index: connection.index,
            death,
        });
        dev_warn!(
            self.disk.device(),
            "connection {}: {death}; {} of {} left\n",
            connection.index,
            self.live(),
            self.connections.len()
        );
    }

    fn clear_flag(&self, flag: TransmissionFlags) -> bool {
        let mut old = self.flags.load(Relaxed);
        loop {
            let flags = TransmissionFlags::from_bits(old);
            match self.flags.cmpxchg(old, flags.without(flag).bits(), Full) {
                Ok(_) => return flags.contains(flag),
                Err(met) => old = met,
            }
        }
    }

    fn log_limit(&self) -> &RatelimitState {
        &self.log_limit
    }

    fn receiver_comes(&self) {
        self.end.lock().receiver_comes();
    }

    fn receiver_goes(this: &AttachmentRef, route: Route) {
        this.disk.tagset_busy_iter(|request| {
            if let Some(claim) = request.data().word.claim_from(route) {
                answer(request, claim, this.disposition());
            }
        });
        Self::tell_keeper(this, End::receiver_goes);
    }
}
