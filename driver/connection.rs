// SPDX-License-Identifier: GPL-2.0

//! One connection: a place in the generation's array, the link that it has, and who sends on it.

use super::{
    batch::Batch,
    device::Device,
    link::{Death, Link},
    outbox::Outbox,
};
use crate::{
    abstractions::{
        block::mq::{Disk, Request},
        net::socket::Socket,
        trace,
    },
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
        Arc, Mutex, SpinLock,
    },
};

/// A connection that may be shared.
pub(super) type ConnectionRef = Arc<Connection>;

/// One connection of a generation.
#[pin_data]
pub(super) struct Connection {
    /// Its place in the generation's array.
    pub(super) index: u16,
    disk: ARef<Disk<Device>>,
    /// Its link died, and no other has come yet: for choosing a connection without a lock.
    dead: Atomic<bool>,
    /// Requests that wait to be sent.
    #[pin]
    pub(super) outbox: Outbox,
    /// Its links, for those who do not send. Innermost of all locks.
    #[pin]
    links: SpinLock<Links>,
    /// Serialises senders: a request goes out whole before the next begins.
    #[pin]
    pub(super) tx: Mutex<Tx>,
}

struct Links {
    /// What requests are sent on.
    current: Arc<Link>,
    /// What requests were sent on before, and may still be answered on.
    leaving: Option<Arc<Link>>,
}

/// What a connection's senders leave to each other.
pub(super) struct Tx {
    /// What requests are sent on; the connection's current link.
    pub(super) link: Arc<Link>,
    /// Numbers what is sent.
    pub(super) sequence: Sequence,
    /// The server was told that nothing more will come.
    pub(super) disconnected: bool,
    /// A request of which only a part went out, before a signal stopped its sender. Nothing else
    /// may go out before the rest of it has.
    pub(super) partial: Option<Partial>,
    /// What is being sent.
    pub(super) batch: Batch,
}

/// A request of which only a part went out.
pub(super) struct Partial {
    pub(super) request: ARef<Request<Device>>,
    pub(super) mark: SendMark,
    /// Bytes that went out, header included.
    pub(super) sent: usize,
}

/// What a link displaced that was put in a connection.
pub(super) struct Displaced {
    /// The link before: it may have requests under way.
    pub(super) link: Arc<Link>,
    /// It was known to be dead.
    pub(super) was_dead: bool,
    /// The link before that, if it has not been forgotten yet.
    pub(super) leaving: Option<Arc<Link>>,
}

/// What a link's death means to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing: it was dead.
    None,
    /// Nothing is left to send on.
    Current,
    /// Nothing: requests are sent on another link by now.
    Left,
}

impl Connection {
    /// A live connection over `socket`, the `index`th of its generation.
    pub(super) fn new(disk: &Disk<Device>, index: u16, socket: Socket) -> Result<ConnectionRef> {
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
            partial: None,
            batch: Batch::new()?,
        };
        let outbox = Outbox::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                index,
                disk: disk.get(),
                dead: Atomic::new(false),
                outbox <- outbox,
                links <- new_spinlock!(links, "rnbd::links"),
                tx <- new_mutex!(tx, "rnbd::tx"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The disk that the connection serves.
    pub(super) fn disk(&self) -> &Disk<Device> {
        &self.disk
    }

    /// Whether there is nothing to send on. Takes no lock.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// What requests are sent on. Any context.
    pub(super) fn link(&self) -> Arc<Link> {
        self.links.lock().current.clone()
    }

    /// The link before that, while requests may still be answered on it. Any context.
    pub(super) fn leaving(&self) -> Option<Arc<Link>> {
        self.links.lock().leaving.clone()
    }

    /// The link that a route leads over, if it is one of those that requests may be on.
    pub(super) fn link_of(&self, route: Route) -> Option<Arc<Link>> {
        let links = self.links.lock();
        let of_route = |link: &&Arc<Link>| link.route == route;
        Some(&links.current)
            .filter(of_route)
            .or(links.leaving.as_ref().filter(of_route))
            .cloned()
    }

    /// Kills one of the connection's links. Tells the first killer alone what that means: he has to
    /// [bury](Self::bury) it. Any context.
    pub(super) fn kill(&self, link: &Link) -> Loss {
        if !link.die() {
            Loss::None
        } else if self.lose(link) {
            Loss::Current
        } else {
            Loss::Left
        }
    }

    /// Says how a dead link died, and shuts its socket down. Its receiver leaves. May sleep.
    pub(super) fn bury(&self, link: &Link, death: Death) {
        link.bury(death);
        trace::connection_dead(self.disk.data().index, self.index.into(), death.name());
    }

    /// Notes that `link`, which is dead, is what requests would be sent on. True once for it.
    pub(super) fn lose(&self, link: &Link) -> bool {
        let links = self.links.lock();
        let lost = links.current.route == link.route && !self.dead.load(Relaxed);
        if lost {
            self.dead.store(true, Relaxed);
        }
        lost
    }

    /// Kills the current link for one that is about to be put in its place: so the connection
    /// does not count as dead. May sleep.
    pub(super) fn cut_off(&self) {
        let link = self.link();
        if link.die() {
            self.bury(&link, Death::HandedOver);
        }
    }

    /// Kills a connection that no generation has started to use. May sleep.
    pub(super) fn discard(&self) {
        let link = self.link();
        if self.kill(&link) != Loss::None {
            self.bury(&link, Death::Retired);
        }
    }

    /// Puts `link` in the place of the current one, for whoever sends from now on.
    pub(super) fn put_link(&self, tx: &mut Tx, link: Arc<Link>) -> Displaced {
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
    pub(super) fn forget(&self, link: &Link) {
        let forgotten = {
            let mut links = self.links.lock();
            links.leaving.take_if(|leaving| leaving.route == link.route)
        };
        // Outside of the spinlock: it may be the last reference to a socket.
        drop(forgotten);
    }
}
