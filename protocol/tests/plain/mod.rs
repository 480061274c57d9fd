// SPDX-License-Identifier: GPL-2.0

//! The rules of a setup, told as plainly as can be: flat fields, whole numbers, no types of the
//! driver but its refusals. Slow, and that does not matter.

use rnbd_protocol::setup::{DiskUse, EndReason, Refusal};

/// What a process may say of an export.
#[derive(Clone, Copy, Debug)]
pub enum Setting {
    Size(u64),
    /// A size, in blocks of the present block size.
    Blocks(u64),
    BlockSize(u64),
    Flags(u32),
    Timeout(u32),
}

/// How a call ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<T> {
    Done(T),
    Refused(Refusal),
    /// The caller's own step failed.
    Failed,
}

/// Size, block size, flags, time-out.
type Settings = (u64, u64, u32, u32);

const FRESH: Settings = (0, 1024, 0, 0);
const CAN_MULTI_CONN: u32 = 1 << 8;

struct Person {
    parent: Option<usize>,
    alive: bool,
}

pub struct Plain {
    max_block: u64,
    people: Vec<Person>,
    phase: &'static str,
    generation: u64,
    owner: Option<usize>,
    settings: Settings,
    sockets: Vec<u32>,
    reason: Option<EndReason>,
    /// Owner and size of the last generation that ran and is gone.
    last: Option<(usize, u64)>,
    /// That owner, until it has cleared.
    clear_due: Option<usize>,
}

impl Plain {
    pub fn new(max_block: u64) -> Self {
        Self {
            max_block,
            people: Vec::new(),
            phase: "idle",
            generation: 0,
            owner: None,
            settings: FRESH,
            sockets: Vec::new(),
            reason: None,
            last: None,
            clear_due: None,
        }
    }

    pub fn phase(&self) -> &'static str {
        self.phase
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn owner(&self) -> Option<usize> {
        self.owner
    }

    pub fn sockets(&self) -> &Vec<u32> {
        &self.sockets
    }

    pub fn config(&self) -> Settings {
        self.settings
    }

    pub fn arrive(&mut self, parent: Option<usize>) {
        self.people.push(Person {
            parent,
            alive: true,
        });
    }

    pub fn die(&mut self, who: usize) {
        self.people[who].alive = false;
    }

    pub fn is_alive(&self, who: usize) -> bool {
        self.people[who].alive
    }

    /// Somebody else, who lives, is setting the device up.
    fn taken(&self, who: usize) -> bool {
        self.phase == "setup" && self.owner.is_some_and(|o| o != who && self.people[o].alive)
    }

    /// The device becomes idle; its sockets are let go.
    fn let_go(&mut self) -> Vec<u32> {
        self.phase = "idle";
        self.owner = None;
        std::mem::take(&mut self.sockets)
    }

    /// `who` has a setup from here on; the sockets of a dead one's are let go.
    fn take(&mut self, who: usize) -> Vec<u32> {
        if self.phase == "setup" && self.owner == Some(who) {
            return vec![];
        }
        let orphan = self.let_go();
        self.phase = "setup";
        self.owner = Some(who);
        self.settings = FRESH;
        self.generation += 1;
        orphan
    }

    /// `socket` is the one to add, if making it works.
    pub fn add(&mut self, who: usize, disk: DiskUse, socket: Option<u32>) -> Answer<Vec<u32>> {
        match self.phase {
            "running" => return Answer::Refused(Refusal::Running),
            "draining" => return Answer::Refused(Refusal::Draining),
            _ => {}
        }
        let was_last = self.last.is_some_and(|(owner, _)| owner == who);
        if disk == DiskUse::Exclusive && !was_last {
            return Answer::Refused(Refusal::Held);
        }
        if self.taken(who) {
            return Answer::Refused(Refusal::Owned);
        }
        let orphan = self.take(who);
        match socket {
            Some(socket) => {
                self.sockets.push(socket);
                Answer::Done(orphan)
            }
            None => Answer::Failed,
        }
    }

    pub fn configure(&mut self, who: usize, setting: Setting) -> Answer<Vec<u32>> {
        if self.phase == "draining" {
            return Answer::Refused(Refusal::Draining);
        }
        if self.taken(who) {
            return Answer::Refused(Refusal::Owned);
        }
        let stays = self.phase == "running" || (self.phase == "setup" && self.owner == Some(who));
        let (mut size, mut block, mut flags, mut timeout) =
            if stays { self.settings } else { FRESH };
        let most = u128::from(u64::MAX >> 1);
        match setting {
            Setting::Size(bytes) if u128::from(bytes) > most => return Answer::Failed,
            Setting::Size(bytes) => size = bytes,
            Setting::Blocks(count) => {
                let bytes = u128::from(count) * u128::from(block);
                if bytes > most {
                    return Answer::Failed;
                }
                size = bytes as u64;
            }
            Setting::BlockSize(0) => block = 1024,
            Setting::BlockSize(bytes) => {
                let good = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
                if !good.contains(&bytes) || bytes > self.max_block {
                    return Answer::Failed;
                }
                block = bytes;
            }
            Setting::Flags(bits) => flags = bits,
            Setting::Timeout(seconds) => timeout = seconds,
        }
        let orphan = match self.phase {
            "running" => vec![],
            _ => self.take(who),
        };
        self.settings = (size, block, flags, timeout);
        Answer::Done(orphan)
    }

    /// Gives the sockets that are attached.
    pub fn start(&mut self, who: usize, disk: DiskUse, works: bool) -> Answer<Vec<u32>> {
        match self.phase {
            "idle" => return Answer::Refused(Refusal::NoConnection),
            "running" => return Answer::Refused(Refusal::Running),
            "draining" => return Answer::Refused(Refusal::Draining),
            _ => {}
        }
        let child = self.people[who].parent.is_some() && self.people[who].parent == self.owner;
        if self.taken(who) && !child {
            return Answer::Refused(Refusal::Owned);
        }
        if self.sockets.is_empty() {
            return Answer::Refused(Refusal::NoConnection);
        }
        if self.sockets.len() > 1 && self.settings.2 & CAN_MULTI_CONN == 0 {
            return Answer::Refused(Refusal::NotMultiConn);
        }
        if disk == DiskUse::Exclusive && self.last != Some((who, self.settings.0)) {
            return Answer::Refused(Refusal::Held);
        }
        if !works {
            return Answer::Failed;
        }
        self.phase = "running";
        self.owner = Some(who);
        Answer::Done(self.sockets.clone())
    }

    /// Gives the sockets to dispose of, and those of the attachment that drains.
    pub fn retire(&mut self, reason: EndReason) -> (Vec<u32>, Vec<u32>) {
        match self.phase {
            "setup" => return (self.let_go(), vec![]),
            "running" => {
                self.phase = "draining";
                self.reason = Some(reason);
            }
            _ => {}
        }
        (vec![], self.sockets.clone())
    }

    /// Whose generation has ended may clear once more without hitting the next living owner.
    pub fn clear(&mut self, who: usize) -> (Vec<u32>, Vec<u32>) {
        let others = self.owner.is_some_and(|o| o != who && self.people[o].alive);
        if self.clear_due == Some(who) {
            self.clear_due = None;
            if others {
                return (vec![], vec![]);
            }
        }
        if self.phase == "setup" && self.owner == Some(who) {
            self.generation += 1;
            return (std::mem::take(&mut self.sockets), vec![]);
        }
        self.retire(EndReason::Cleared)
    }

    pub fn abandon(&mut self) -> Vec<u32> {
        match self.phase {
            "setup" => self.let_go(),
            _ => vec![],
        }
    }

    pub fn drained(&mut self) -> Option<EndReason> {
        if self.phase != "draining" {
            return None;
        }
        self.last = self.owner.map(|owner| (owner, self.settings.0));
        self.clear_due = self.owner;
        self.let_go();
        self.reason.take()
    }
}
