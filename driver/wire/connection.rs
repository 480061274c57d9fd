// SPDX-License-Identifier: GPL-2.0

//! One connection: a place in the generation's array, the link that it has, and what is sent on it.

use super::{
    batch::Batch,
    journal::Journal,
    link::{DeadReason, Link},
    outbox::Outbox,
};
use crate::{
    abstractions::{block::mq::Request, net::socket::Socket, trace},
    driver::nbd::Nbd,
    protocol::{
        cookie::Sequence,
        request::{Route, SendMark},
    },
};
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard, SpinLock,
    },
    time::{delay::fsleep, Delta},
    types::ScopeGuard,
};

/// How often the sender looks whether it may have the send lock.
const TICK: Delta = Delta::from_millis(1);

/// A connection that may be shared.
pub(crate) type ConnectionRef = Arc<Connection>;

/// One connection of a generation.
#[pin_data]
pub(crate) struct Connection {
    /// Its place in the generation's array.
    pub(crate) index: u16,
    /// That of its device.
    pub(crate) journal: Arc<Journal>,
    /// Its link died, and no other has come yet: for choosing a connection without a lock.
    dead: Atomic<bool>,
    /// Requests that wait to be sent.
    #[pin]
    pub(crate) outbox: Outbox,
    /// Its links, for those that do not send. Innermost of all locks.
    #[pin]
    links: SpinLock<Links>,
    /// Serialises senders: a request goes out whole before the next begins.
    #[pin]
    pub(crate) tx: Mutex<Tx>,
    /// How many tasks want `tx` but for the sender, which lets them have it between two batches.
    tx_wanted: Atomic<u32>,
}

struct Links {
    /// What requests are sent on.
    current: Arc<Link>,
    /// What requests were sent on before, and may still be answered on.
    leaving: Option<Arc<Link>>,
}

/// What a connection's senders leave to each other.
pub(crate) struct Tx {
    /// What requests are sent on; the connection's current link.
    pub(crate) link: Arc<Link>,
    /// Numbers what is sent.
    pub(crate) sequence: Sequence,
    /// The server was told that nothing more will come.
    pub(crate) disconnected: bool,
    /// A request of which only a part went out, before a signal stopped its sender. Nothing else
    /// may go out before the rest of it has.
    pub(crate) pending: Option<PendingRequest>,
    /// What is being sent.
    pub(crate) batch: Batch,
}

/// A request of which only a part went out.
pub(crate) struct PendingRequest {
    pub(crate) request: ARef<Request<Nbd>>,
    pub(crate) mark: SendMark,
    /// Bytes that went out, header included.
    pub(crate) sent: usize,
}

/// What a link displaced that was put in a connection.
pub(crate) struct Displaced {
    /// The link before: it may have requests under way.
    pub(crate) link: Arc<Link>,
    /// It was known to be dead.
    pub(crate) was_dead: bool,
    /// The link before that, if it has not been forgotten yet.
    pub(crate) leaving: Option<Arc<Link>>,
}

/// What a link's death means to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing: it was dead.
    None,
    /// Nothing is left to send on.
    Current,
    /// Nothing: requests are sent on another link by now.
    Left,
}

impl Connection {
    /// A live connection over `socket`, the `index`th of its generation.
    pub(crate) fn new(journal: &Arc<Journal>, index: u16, socket: Socket) -> Result<ConnectionRef> {
        let route = Route {
            connection: index,
            epoch: 0,
        };
        let link = Link::new(route, socket)?;
        let links = Links {
            current: link.clone(),
            leaving: None,
        };
        let tx = Tx {
            link,
            sequence: Sequence::default(),
            disconnected: false,
            pending: None,
            batch: Batch::new()?,
        };
        let outbox = Outbox::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                index,
                journal: journal.clone(),
                dead: Atomic::new(false),
                outbox <- outbox,
                links <- new_spinlock!(links, "rnbd::links"),
                tx <- new_mutex!(tx, "rnbd::tx"),
                tx_wanted: Atomic::new(0),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Whether there is nothing to send on. Takes no lock.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// What requests are sent on. Any context.
    pub(crate) fn link(&self) -> Arc<Link> {
        self.links.lock().current.clone()
    }

    /// The link before that, while requests may still be answered on it. Any context.
    pub(crate) fn leaving(&self) -> Option<Arc<Link>> {
        self.links.lock().leaving.clone()
    }

    /// The link that a route leads over, if it is one of those that requests may be on.
    pub(crate) fn link_of(&self, route: Route) -> Option<Arc<Link>> {
        let links = self.links.lock();
        let of_route = |link: &&Arc<Link>| link.route == route;
        Some(&links.current)
            .filter(of_route)
            .or(links.leaving.as_ref().filter(of_route))
            .cloned()
    }

    /// Takes the send lock, for the connection's sender: not before others that want it. Sleeps.
    pub(crate) fn lock_tx(&self) -> MutexGuard<'_, Tx> {
        while self.tx_is_wanted() {
            fsleep(TICK);
        }
        self.tx.lock()
    }

    /// Whether another task than the sender wants the send lock.
    pub(crate) fn tx_is_wanted(&self) -> bool {
        self.tx_wanted.load(Relaxed) != 0
    }

    /// Has the sender let go of the send lock between two batches, until what is returned is dropped.
    pub(crate) fn want_tx(&self) -> impl Drop + '_ {
        self.tx_wanted.add(1, Relaxed);
        ScopeGuard::new(|| {
            self.tx_wanted.fetch_sub(1, Relaxed);
        })
    }

    /// Kills one of the connection's links. Tells the first killer alone what that means: it has to
    /// [shutdown](Self::shutdown) it. Any context.
    pub(crate) fn kill(&self, link: &Link) -> Loss {
        if !link.mark_dead() {
            Loss::None
        } else if self.lose(link) {
            Loss::Current
        } else {
            Loss::Left
        }
    }

    /// Says how a dead link died, and shuts its socket down. Its receiver leaves. May sleep.
    pub(crate) fn shutdown(&self, link: &Link, death: DeadReason) {
        link.shutdown(death);
        trace::connection_dead(self.journal.index, self.index.into(), death.name());
    }

    /// Notes that `link`, which is dead, is what requests would be sent on. True once for it.
    pub(crate) fn lose(&self, link: &Link) -> bool {
        let links = self.links.lock();
        let lost = links.current.route == link.route && !self.dead.load(Relaxed);
        if lost {
            self.dead.store(true, Relaxed);
        }
        lost
    }

    /// Kills the current link for one that is about to be put in its place: so the connection
    /// does not count as dead. May sleep.
    pub(crate) fn cut_off(&self) {
        let link = self.link();
        if link.mark_dead() {
            self.shutdown(&link, DeadReason::HandedOver);
        }
    }

    /// Kills a connection that no generation has started to use. May sleep.
    pub(crate) fn discard(&self) {
        let link = self.link();
        if self.kill(&link) != Loss::None {
            self.shutdown(&link, DeadReason::Retired);
        }
    }

    /// Tells the server that nothing more will come, if that can be done at once or was done: false
    /// if another task is sending, for that may wait for the server. Does not wait.
    pub(crate) fn send_disconnect(&self) -> bool {
        let Some(mut tx) = self.tx.try_lock() else {
            return false;
        };
        if tx.disconnected {
            return true;
        }
        if tx.pending.is_some() {
            return false;
        }
        let (sent, result) = tx.link.send_disconnect();
        // A part of the message is as good as none, and cannot be taken back: the end follows it.
        tx.disconnected = sent > 0;
        tx.disconnected || result.is_err_and(|error| error != EAGAIN)
    }

    /// Puts `link` in the place of the current one, for all that is sent from now on.
    pub(crate) fn put_link(&self, tx: &mut Tx, link: Arc<Link>) -> Displaced {
        tx.link = link.clone();
        tx.disconnected = false;
        let mut links = self.links.lock();
        let old = core::mem::replace(&mut links.current, link);
        let was_dead = self.dead.load(Relaxed);
        self.dead.store(false, Relaxed);
        let leaving = links.leaving.replace(old.clone());
        Displaced {
            link: old,
            was_dead,
            leaving,
        }
    }

    /// Forgets a link before the current one: no request is on it any more.
    pub(crate) fn forget(&self, link: &Link) {
        let forgotten = {
            let mut links = self.links.lock();
            links.leaving.take_if(|leaving| leaving.route == link.route)
        };
        // Outside of the spinlock: it may be the last reference to a socket.
        drop(forgotten);
    }
}

/// The connections that were added to a setup.
#[derive(Default)]
pub(crate) struct ConnectionArray(pub(crate) KVec<ConnectionRef>);

impl ConnectionArray {
    /// Adds a connection over `socket`. Sleeps.
    pub(crate) fn push(&mut self, journal: &Arc<Journal>, socket: Socket) -> Result {
        let index = u16::try_from(self.0.len())?;
        let connection = Connection::new(journal, index, socket)?;
        self.0.push(connection, GFP_KERNEL)?;
        Ok(())
    }

    /// Disposes of connections that no generation will use: their sockets are shut down and
    /// released. Sleeps.
    pub(crate) fn dispose(self) {
        for connection in &self.0 {
            connection.discard();
        }
    }
}
