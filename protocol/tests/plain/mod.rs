// SPDX-License-Identifier: GPL-2.0

//! The rules of a setup, told as plainly as can be: flat fields, whole numbers, no types of the
//! driver but its refusals. Slow, and that does not matter.

pub mod calls;
mod disk;
mod end;

use disk::Disk;
use rnbd_protocol::setup::{DiskPlan, DiskUse, EndReason, Refusal};

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

/// What is to be attached by netlink.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub sockets: Vec<u32>,
    pub flags: u32,
    pub destroy: bool,
    pub works: bool,
    /// Whether another disk can be made, if it takes one.
    pub fits: bool,
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

/// Whether a generation can have so many sockets.
fn may_have(sockets: usize, flags: u32) -> Result<(), Refusal> {
    match sockets {
        0 => Err(Refusal::NoConnection),
        1 => Ok(()),
        _ if flags & CAN_MULTI_CONN != 0 => Ok(()),
        _ => Err(Refusal::NotMultiConn),
    }
}

/// A generation that ran and is gone.
#[derive(Clone, Copy)]
struct Last {
    owner: usize,
    size: u64,
    block_size: u64,
    lost: bool,
}

pub struct Plain {
    max_block: u64,
    people: Vec<Person>,
    phase: &'static str,
    generation: u64,
    owner: Option<usize>,
    settings: Settings,
    sockets: Vec<u32>,
    /// Attached by netlink.
    netlink: bool,
    /// The device goes with the generation.
    destroy: bool,
    reason: Option<EndReason>,
    disks: Vec<Disk>,
    last: Option<Last>,
    /// The owner of that, until it has cleared.
    clear_due: Option<usize>,
    /// What processes have said whose place another has taken, and whether they have not cleared since.
    drafts: Vec<(usize, Settings, bool)>,
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
            netlink: false,
            destroy: false,
            reason: None,
            disks: Vec::new(),
            last: None,
            clear_due: None,
            drafts: Vec::new(),
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

    pub fn is_by_netlink(&self) -> bool {
        self.netlink
    }

    pub fn is_to_go(&self) -> bool {
        self.destroy
    }

    /// The number of a device that is gone is given to another.
    pub fn anew(self) -> Self {
        let people = self.people;
        Self {
            people,
            ..Self::new(self.max_block)
        }
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

    /// Another process, which lives, is setting the device up, and has brought a socket.
    fn taken(&self, who: usize) -> bool {
        self.phase == "setup"
            && !self.sockets.is_empty()
            && self.owner.is_some_and(|o| o != who && self.people[o].alive)
    }

    /// What is being said now makes way for something else, and is kept if its owner lives.
    fn put_aside(&mut self) {
        let people = &self.people;
        let Some(owner) = self.owner.filter(|&owner| people[owner].alive) else {
            return;
        };
        if self.phase == "setup" {
            self.drafts.retain(|draft| people[draft.0].alive);
            if self.drafts.len() == 8 {
                self.drafts.remove(0);
            }
            self.drafts.push((owner, self.settings, true));
        }
    }

    /// What it has said that does not set the device up; or its parent, who does.
    fn said(&self, who: usize) -> Settings {
        let parent = self.people[who].parent;
        match self.drafts.iter().find(|draft| draft.0 == who) {
            Some(draft) => draft.1,
            None if self.phase == "setup" && parent.is_some() && parent == self.owner => {
                self.settings
            }
            None => FRESH,
        }
    }

    /// The last close.
    pub fn forget_drafts(&mut self) {
        self.drafts.clear();
    }

    /// The device becomes idle; its sockets are let go.
    fn let_go(&mut self) -> Vec<u32> {
        self.phase = "idle";
        self.owner = None;
        self.netlink = false;
        self.destroy = false;
        std::mem::take(&mut self.sockets)
    }

    /// `who` has a setup from here on; the sockets of a dead one's are let go.
    fn take(&mut self, who: usize) -> Vec<u32> {
        if self.phase == "setup" && self.owner == Some(who) {
            return vec![];
        }
        let said = self.said(who);
        self.drafts.retain(|draft| draft.0 != who);
        self.put_aside();
        let orphan = self.let_go();
        self.phase = "setup";
        self.owner = Some(who);
        self.settings = said;
        self.generation += 1;
        orphan
    }

    /// Why an ioctl cannot set up.
    fn in_use(&self) -> Option<Refusal> {
        match self.phase {
            "running" if self.netlink => Some(Refusal::Netlink),
            "running" => Some(Refusal::Running),
            "draining" => Some(Refusal::Draining),
            "gone" => Some(Refusal::Gone),
            _ => None,
        }
    }

    /// `socket` is the one to add, if making it works.
    pub fn add(&mut self, who: usize, disk: DiskUse, socket: Option<u32>) -> Answer<Vec<u32>> {
        if let Some(refusal) = self.in_use() {
            return Answer::Refused(refusal);
        }
        let comes_back = self.last.is_some_and(|last| last.lost && last.owner == who);
        if disk == DiskUse::Exclusive && !comes_back {
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
        match self.in_use() {
            None | Some(Refusal::Running) => {}
            Some(refusal) => return Answer::Refused(refusal),
        }
        if self.taken(who) {
            return Answer::Refused(Refusal::Owned);
        }
        let stays = self.phase == "running" || (self.phase == "setup" && self.owner == Some(who));
        let before = match stays {
            true => self.settings,
            false => self.said(who),
        };
        let Some(after) = self.changed(before, setting) else {
            return Answer::Failed;
        };
        let orphan = match self.phase {
            "running" => vec![],
            _ => self.take(who),
        };
        self.settings = after;
        Answer::Done(orphan)
    }

    pub fn reconfigure(&mut self, setting: Setting) -> Answer<()> {
        if self.phase != "running" || !self.netlink {
            return Answer::Refused(Refusal::NotNetlink);
        }
        match self.changed(self.settings, setting) {
            None => Answer::Failed,
            Some(after) => {
                self.settings = after;
                Answer::Done(())
            }
        }
    }

    /// What settings become; none if they cannot be so.
    fn changed(&self, before: Settings, setting: Setting) -> Option<Settings> {
        let (mut size, mut block, mut flags, mut timeout) = before;
        let most = u128::from(u64::MAX >> 1);
        match setting {
            Setting::Size(bytes) if u128::from(bytes) > most => return None,
            Setting::Size(bytes) => size = bytes,
            Setting::Blocks(count) => {
                let bytes = u128::from(count) * u128::from(block);
                if bytes > most {
                    return None;
                }
                size = bytes as u64;
            }
            Setting::BlockSize(0) => block = 1024,
            Setting::BlockSize(bytes) => {
                let good = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];
                if !good.contains(&bytes) || bytes > self.max_block {
                    return None;
                }
                block = bytes;
            }
            Setting::Flags(bits) => flags = bits,
            Setting::Timeout(seconds) => timeout = seconds,
        }
        Some((size, block, flags, timeout))
    }

    /// Which disk a generation by netlink needs.
    pub fn plan_connect(&self, disk: DiskUse, want: &Wanted) -> Result<DiskPlan, Refusal> {
        match self.phase {
            // By whatever it is attached.
            "running" => return Err(Refusal::Running),
            "draining" => return Err(Refusal::Draining),
            "gone" => return Err(Refusal::Gone),
            // Nor is one's own setup mixed with this.
            "setup" if self.taken(usize::MAX) => return Err(Refusal::Owned),
            _ => {}
        }
        if disk == DiskUse::Exclusive {
            return Err(Refusal::Held);
        }
        may_have(want.sockets.len(), want.flags)?;
        Ok(self.disk_for(false))
    }

    /// Sets up and starts in one step, by netlink. Gives the orphan's sockets.
    pub fn connect(&mut self, who: usize, disk: DiskUse, want: &Wanted) -> Answer<Vec<u32>> {
        let plan = match self.plan_connect(disk, want) {
            Ok(plan) => plan,
            Err(refusal) => return Answer::Refused(refusal),
        };
        if !self.fit(plan, want.fits) {
            return Answer::Refused(Refusal::NeedsDisk);
        }
        if !want.works {
            return Answer::Failed;
        }
        self.put_aside();
        let orphan = self.let_go();
        self.phase = "running";
        self.generation += 1;
        self.owner = Some(who);
        self.settings = (FRESH.0, FRESH.1, want.flags, FRESH.3);
        self.sockets = want.sockets.clone();
        self.netlink = true;
        self.destroy = want.destroy;
        self.enter_disk();
        Answer::Done(orphan)
    }

    /// Which disk the generation needs that is set up, and how many sockets it has.
    pub fn plan_start(&self, who: usize, disk: DiskUse) -> Result<(DiskPlan, usize), Refusal> {
        if self.phase == "idle" {
            return Err(Refusal::NoConnection);
        }
        if let Some(refusal) = self.in_use() {
            return Err(refusal);
        }
        let child = self.people[who].parent.is_some() && self.people[who].parent == self.owner;
        if self.taken(who) && !child {
            return Err(Refusal::Owned);
        }
        let (size, block_size, flags, _) = self.settings;
        may_have(self.sockets.len(), flags)?;
        // A client that lost its server, and is back at it.
        let something_is_left = self.disk().is_some_and(|disk| disk.stained);
        let goes_on = match self.last {
            Some(last) if last.lost && last.owner == who && something_is_left => {
                last.size == size && last.block_size == block_size
            }
            _ => false,
        };
        if disk == DiskUse::Exclusive && !goes_on {
            return Err(Refusal::Held);
        }
        Ok((self.disk_for(goes_on), self.sockets.len()))
    }

    /// Gives the sockets that are attached.
    pub fn start(
        &mut self,
        who: usize,
        disk: DiskUse,
        works: bool,
        fits: bool,
    ) -> Answer<Vec<u32>> {
        let plan = match self.plan_start(who, disk) {
            Ok((plan, _)) => plan,
            Err(refusal) => return Answer::Refused(refusal),
        };
        if !self.fit(plan, fits) {
            return Answer::Refused(Refusal::NeedsDisk);
        }
        if !works {
            return Answer::Failed;
        }
        self.phase = "running";
        self.owner = Some(who);
        self.enter_disk();
        Answer::Done(self.sockets.clone())
    }
}
