// SPDX-License-Identifier: GPL-2.0

//! A device, its disks and those who open them, retold for loom around the real [`Lifecycle`].
//!
//! Mirrors `driver/device/disk.rs`, and of `driver/device/start.rs`, `drain.rs` and `end.rs` what has
//! to do with the disk: change them together. [`Disk`] does as the block layer does.
//! The task that begins to replace a disk does the worker's part itself, since it waits for it; others
//! wait as well. That a disk has partitions, and so is not kept, is no part of it.

use crate::{
    explore::{TryMutex, TryMutexGuard},
    gendisk::Disk,
    rules::Rules,
};
use loom::sync::{Condvar, Mutex, MutexGuard};
use rnbd_protocol::setup::{
    Connections, DiskPlan, DiskUse, EndReason, Failure, Interface, Kinds, Lifecycle, Owner, Phase,
    Refusal, Retired, Setup,
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex as StdMutex},
};

pub enum World {}

impl Kinds for World {
    type Owner = Client;
    type Connections = Count;
    type Attachment = Arc<Attachment>;
}

/// A process that attaches the device, and lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Client(pub u32);

impl Owner for Client {
    fn is_alive(&self) -> bool {
        true
    }

    fn is_parent_of_caller(&self) -> bool {
        false
    }
}

#[derive(Default)]
pub struct Count(usize);

impl Connections for Count {
    fn count(&self) -> usize {
        self.0
    }
}

/// A generation, on its disk.
pub struct Attachment {
    generation: u32,
    disk: Arc<Disk>,
}

struct Last {
    owner: Client,
    lost: bool,
    disk: Arc<Disk>,
}

#[derive(Default)]
struct Pending {
    done: Mutex<bool>,
    done_changed: Condvar,
}

#[derive(Default)]
struct Slot {
    disk: Option<Arc<Disk>>,
    pending: Option<Arc<Pending>>,
}

/// A disk that a generation can start on, with the slot that it is in.
struct Fitted<'a> {
    slot: TryMutexGuard<'a, Slot>,
    disk: Arc<Disk>,
    plan: DiskPlan,
}

/// The device.
pub struct Device {
    rules: Rules,
    /// `Device::in_system`.
    slot: TryMutex<Slot>,
    setup: Mutex<Lifecycle<World>>,
    phase_changed: Condvar,
    /// What the system has under the device's name.
    named: Mutex<Option<Arc<Disk>>>,
    /// The last generation that is gone; no part of the model.
    last: StdMutex<Option<Last>>,
}

impl Device {
    /// A device with a disk that nothing was attached to.
    pub fn new(rules: Rules) -> Arc<Self> {
        let device = Arc::new(Self {
            rules,
            slot: TryMutex::new(Slot::default()),
            setup: Mutex::new(Lifecycle::default()),
            phase_changed: Condvar::new(),
            named: Mutex::new(None),
            last: StdMutex::new(None),
        });
        let serial = device.lock().disk.replace();
        device.replace_disk(None, serial.expect("no generation is attached"));
        device
    }

    pub fn lock(&self) -> MutexGuard<'_, Lifecycle<World>> {
        self.setup.lock().unwrap()
    }

    fn when_drained<R>(&self, step: impl FnOnce(&mut Lifecycle<World>) -> R) -> R {
        let mut life = self.lock();
        while matches!(life.phase(), Phase::Draining { .. }) {
            life = self.phase_changed.wait(life).unwrap();
        }
        step(&mut life)
    }

    // block/bdev.c, and driver/block.rs

    /// Opens the disk that has the device's name now; none if that goes meanwhile.
    pub fn open(&self, opener: u32) -> Option<Arc<Disk>> {
        let disk = self.named.lock().unwrap().clone()?;
        let in_system = disk.open_lock.lock();
        if !*in_system {
            return None;
        }
        self.lock().disk.opened();
        disk.openers.fetch_add_relaxed(1);
        let mut book = disk.book.lock().unwrap();
        let seen = book.attached;
        book.openers.push((opener, seen));
        drop(book);
        drop(in_system);
        Some(disk)
    }

    pub fn close(&self, opener: u32, disk: &Disk) {
        let _held = disk.open_lock.lock();
        let others = disk.openers.fetch_sub_full(1) - 1;
        let mut book = disk.book.lock().unwrap();
        book.openers.retain(|(who, _)| *who != opener);
        drop(book);
        if others == 0 {
            // `blkdev_flush_mapping`
            disk.pages.store_release(0);
        }
        self.closed(disk, disk.openers.load() == 0);
    }

    // driver/device/end.rs

    fn closed(&self, disk: &Disk, unopened: bool) {
        self.lock().disk.closed();
        if unopened {
            self.clean_disk(disk);
        }
    }

    /// `retire`, of a generation that runs.
    pub fn retire(&self, reason: EndReason) -> Arc<Attachment> {
        match self.lock().retire(reason) {
            Retired::Stopped(attachment) => attachment,
            _ => panic!("no generation runs"),
        }
    }

    // driver/device/drain.rs

    pub fn drain(&self, attachment: &Attachment) {
        let disk = &attachment.disk;
        disk.detach();
        self.lock().disk.detached();
        if !self.rules.cleans_under_open_lock {
            if disk.openers.load() == 0 {
                self.clean_disk(disk);
            }
        } else if let Some(_unopened) = disk.try_unopened() {
            self.clean_disk(disk);
        }
        let mut life = self.lock();
        let owner = life.owner().copied();
        let reason = life.drained();
        let ended = owner.zip(reason).map(|(owner, reason)| Last {
            owner,
            lost: reason.is_loss(),
            disk: disk.clone(),
        });
        *self.last.lock().unwrap() = ended;
        self.phase_changed.notify_all();
    }

    // driver/device/disk.rs

    /// None if something has changed.
    fn fit_disk(
        &self,
        plan: impl FnOnce(&Lifecycle<World>) -> Result<DiskPlan, Refusal>,
    ) -> Result<Option<Fitted<'_>>, Refusal> {
        let mut slot = self.slot.lock();
        if let Some(pending) = slot.pending.clone() {
            drop(slot);
            let mut done = pending.done.lock().unwrap();
            while !*done {
                done = pending.done_changed.wait(done).unwrap();
            }
            return Ok(None);
        }
        let disk = slot.disk.clone().expect("a disk");
        self.clean_in(&disk);
        let plan = match plan(&self.lock()) {
            Err(Refusal::Draining) => return Ok(None),
            planned => planned?,
        };
        if plan != DiskPlan::Replace {
            return Ok(Some(Fitted { slot, disk, plan }));
        }
        // `Replacement::begin`
        let serial = self.lock().disk.replace();
        let pending = Arc::<Pending>::default();
        slot.pending = Some(pending.clone());
        let old = slot.disk.take();
        drop(slot);
        self.replace_disk(old, serial.expect("no generation is attached"));
        *pending.done.lock().unwrap() = true;
        pending.done_changed.notify_all();
        Ok(None)
    }

    /// The worker's part.
    fn replace_disk(&self, old: Option<Arc<Disk>>, serial: u64) {
        if let Some(old) = old {
            *self.named.lock().unwrap() = None;
            old.remove();
        }
        let disk = Disk::new(serial);
        // It may be opened before the slot has it.
        *self.named.lock().unwrap() = Some(disk.clone());
        let mut slot = self.slot.lock();
        slot.pending = None;
        slot.disk = Some(disk);
        self.lock().disk.added(serial);
    }

    fn clean_disk(&self, disk: &Disk) {
        let slot = self.slot.try_lock();
        if slot.is_some() || !self.rules.cleans_outside_of_starts {
            self.clean(disk);
        }
    }

    /// With the slot held.
    fn clean_in(&self, disk: &Disk) {
        if !self.rules.keeps_what_is_clean {
            if disk.openers.load() == 0 {
                self.lock().disk.cleaned(disk.serial);
            }
        } else if self.lock().disk.may_clean(disk.serial) {
            if !self.rules.cleans_under_open_lock {
                if disk.openers.load() == 0 {
                    self.clean(disk);
                }
            } else if let Some(_unopened) = disk.try_unopened() {
                self.clean(disk);
            }
        }
    }

    fn clean(&self, disk: &Disk) {
        let may = self.lock().disk.may_clean(disk.serial);
        if may && disk.forget_medium() {
            self.lock().disk.cleaned(disk.serial);
        }
    }

    // driver/device/start.rs

    /// `NBD_SET_SOCK`, and `NBD_DO_IT` until it serves. Tells what became of the last disk.
    pub fn start(&self, caller: Client) -> Result<DiskPlan, Refusal> {
        let (_, added) = self.when_drained(|life| {
            life.add(caller, DiskUse::Shared, |_, connections| {
                connections.0 += 1;
                Ok::<_, Infallible>(())
            })
        });
        added.map_err(refusal)?;
        self.attach(
            caller,
            Interface::Ioctl,
            |life| Ok(life.plan_start(&caller, DiskUse::Shared)?.0),
            |life, disk| {
                life.start(caller, DiskUse::Shared, |generation, _| {
                    attachment(generation, disk)
                })
                .map_err(refusal)
            },
        )
    }

    /// `NBD_CMD_CONNECT`. Tells what became of the last disk.
    pub fn connect(&self, caller: Client) -> Result<DiskPlan, Refusal> {
        let setup = || Setup::<World> {
            connections: Count(1),
            ..Setup::new(caller)
        };
        self.attach(
            caller,
            Interface::Netlink,
            |life| life.plan_connect(&setup(), DiskUse::Shared),
            |life, disk| {
                life.connect(setup(), DiskUse::Shared, |generation, _| {
                    attachment(generation, disk)
                })
                .map(|connected| connected.attachment)
                .map_err(|(failure, _)| refusal(failure))
            },
        )
    }

    fn attach(
        &self,
        caller: Client,
        interface: Interface,
        plan: impl Fn(&Lifecycle<World>) -> Result<DiskPlan, Refusal>,
        start: impl Fn(&mut Lifecycle<World>, &Arc<Disk>) -> Result<Arc<Attachment>, Refusal>,
    ) -> Result<DiskPlan, Refusal> {
        loop {
            self.when_drained(|_| ());
            let Some(fitted) = self.fit_disk(&plan)? else {
                continue;
            };
            let started = start(&mut self.lock(), &fitted.disk);
            match started {
                Ok(attachment) => {
                    let last = self.last.lock().unwrap();
                    let (continues, replaced) = match &*last {
                        Some(last) => (
                            interface == Interface::Ioctl && last.lost && last.owner == caller,
                            !Arc::ptr_eq(&last.disk, &fitted.disk),
                        ),
                        None => (false, false),
                    };
                    drop(last);
                    // `bring_up`
                    fitted.disk.attach(attachment.generation, continues);
                    drop(fitted.slot);
                    return Ok(match replaced {
                        true => DiskPlan::Replace,
                        false => fitted.plan,
                    });
                }
                Err(Refusal::Draining | Refusal::NeedsDisk) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Nobody has a disk open.
    pub fn assert_closed(&self) {
        assert_eq!(self.lock().disk.opens(), 0);
    }
}

fn attachment(generation: u64, disk: &Arc<Disk>) -> Result<Arc<Attachment>, Infallible> {
    disk.book.lock().unwrap().taken = true;
    Ok(Arc::new(Attachment {
        generation: generation as u32,
        disk: disk.clone(),
    }))
}

fn refusal(failure: Failure<Infallible>) -> Refusal {
    match failure {
        Failure::Refused(refusal) => refusal,
        Failure::Step(never) => match never {},
    }
}
