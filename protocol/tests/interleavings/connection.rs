// SPDX-License-Identifier: GPL-2.0

//! A connection and its links, retold for loom.
//!
//! Mirrors `driver/connection.rs` and `driver/link.rs`: change them together.

use crate::{
    block::Ref,
    explore::{Flag, Number},
    outbox::Outbox,
    rules::Rules,
    socket::{Event, Socket},
};
use loom::sync::{Condvar, Mutex, MutexGuard};
use rnbd_protocol::{
    cookie::Sequence,
    request::{Route, SendMark},
};
use std::sync::Arc;

/// One socket of a connection.
pub struct Link {
    pub route: Route,
    pub socket: Socket,
    dead: Flag,
    asked: Number,
    answered: Number,
}

impl Link {
    pub fn new(connection: u16, epoch: u16, events: &[Event]) -> Arc<Self> {
        Arc::new(Self {
            route: Route { connection, epoch },
            socket: Socket::new(events),
            dead: Flag::new(),
            asked: Number::new(0),
            answered: Number::new(0),
        })
    }

    /// Its one sender at a time calls this.
    pub fn count_asked(&self, requests: usize) {
        self.asked.add_alone(requests as u32);
    }

    /// Its receiver alone calls this.
    pub fn count_answered(&self) {
        self.answered.add_alone(1);
    }

    pub fn is_quiet(&self) -> bool {
        self.asked.load() == self.answered.load()
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_set()
    }

    fn die(&self) -> bool {
        !self.dead.set_full()
    }

    pub fn bury(&self) {
        self.socket.shutdown();
    }
}

pub struct Connection {
    pub index: u16,
    dead: Flag,
    links: Mutex<Links>,
    links_changed: Condvar,
    pub tx: Mutex<Tx>,
    pub outbox: Outbox,
    rules: Rules,
}

struct Links {
    current: Arc<Link>,
    leaving: Option<Arc<Link>>,
}

/// What a connection's senders leave to each other.
pub struct Tx {
    pub link: Arc<Link>,
    pub sequence: Sequence,
    pub partial: Option<Partial>,
}

/// A request of which only a part went out.
pub struct Partial {
    pub request: Ref,
    pub mark: SendMark,
}

/// What a link displaced that was put in a connection.
pub struct Displaced {
    pub link: Arc<Link>,
    pub was_dead: bool,
    pub leaving: Option<Arc<Link>>,
}

/// What a link's death means to its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    None,
    Current,
    Left,
}

/// Why a link died.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Broken,
    TimedOut,
}

impl Connection {
    pub fn new(index: u16, events: &[Event], rules: Rules) -> Self {
        let link = Link::new(index, 0, events);
        Self {
            index,
            dead: Flag::new(),
            links: Mutex::new(Links {
                current: link.clone(),
                leaving: None,
            }),
            links_changed: Condvar::new(),
            tx: Mutex::new(Tx {
                link,
                sequence: Sequence::default(),
                partial: None,
            }),
            outbox: Outbox::default(),
            rules,
        }
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_set()
    }

    pub fn link(&self) -> Arc<Link> {
        self.links.lock().unwrap().current.clone()
    }

    pub fn leaving(&self) -> Option<Arc<Link>> {
        self.links.lock().unwrap().leaving.clone()
    }

    pub fn link_of(&self, route: Route) -> Option<Arc<Link>> {
        let links = self.links.lock().unwrap();
        let of_route = |link: &&Arc<Link>| link.route == route;
        Some(&links.current)
            .filter(of_route)
            .or(links.leaving.as_ref().filter(of_route))
            .cloned()
    }

    /// The first killer has to bury the link.
    pub fn kill(&self, link: &Link) -> Loss {
        if !link.die() {
            Loss::None
        } else if self.lose(link) {
            Loss::Current
        } else {
            Loss::Left
        }
    }

    pub fn lose(&self, link: &Link) -> bool {
        let links = self.links.lock().unwrap();
        let is_current = !self.rules.minds_epochs || links.current.route == link.route;
        let lost = is_current && !self.dead.is_set();
        if lost {
            self.dead.store_relaxed(true);
            self.links_changed.notify_all();
        }
        lost
    }

    pub fn cut_off(&self) {
        let link = self.link();
        if link.die() {
            link.bury();
        }
    }

    pub fn put_link(&self, tx: &mut Tx, link: Arc<Link>) -> Displaced {
        tx.link = link.clone();
        let mut links = self.links.lock().unwrap();
        let old = std::mem::replace(&mut links.current, link);
        let was_dead = self.dead.is_set();
        self.dead.store_relaxed(false);
        let leaving = links.leaving.replace(old.clone());
        self.links_changed.notify_all();
        Displaced {
            link: old,
            was_dead,
            leaving,
        }
    }

    /// Waits until a link that is dead is known to be, or another has taken its place.
    pub fn await_change(&self, link: &Link) {
        let mut links = self.links.lock().unwrap();
        while links.current.route == link.route && !self.dead.is_set() {
            links = self.links_changed.wait(links).unwrap();
        }
    }

    pub fn forget(&self, link: &Link) {
        let mut links = self.links.lock().unwrap();
        let forgets_any = !self.rules.forgets_its_own;
        links
            .leaving
            .take_if(|leaving| forgets_any || leaving.route == link.route);
    }

    /// Waits for the task that sends. If it is stuck, or has left a part, its link is killed first:
    /// the driver gives it a while, which may be over at any moment.
    pub fn lock_sender(&self, is_stuck: bool, kill: impl FnOnce()) -> MutexGuard<'_, Tx> {
        if !is_stuck {
            let tx = self.tx.lock().unwrap();
            if tx.partial.is_none() || tx.link.is_dead() {
                return tx;
            }
        }
        if self.rules.cuts_off {
            self.cut_off();
        } else {
            kill();
        }
        self.tx.lock().unwrap()
    }
}
