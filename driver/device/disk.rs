// SPDX-License-Identifier: GPL-2.0

//! The disk of a device, and which one a generation gets (invariant G4).
//!
//! A device outlives its disks: a disk has a reference to its device, and ioctls that come through
//! any of its disks reach the device. A disk serves one generation, with those that continue it. It
//! is kept for another one only if it was not open for a moment after the last one had gone, and
//! never had partitions; else it is taken out of the system, and its openers get errors for ever. See
//! [`DiskState`].
//!
//! A worker takes a disk out and adds the next one. The block layer waits there for whatever has the
//! old disk locked, and for the task that makes nodes in `/dev`; the caller waits for the worker, with
//! a bound. If it gives up, the worker goes on: the device gets its disk.
//!
//! [`DiskState`]: crate::protocol::setup::DiskState

use super::{
    maker::DiskNeeds,
    owner::Lifecycle,
    slot::{self, Patience, Pending, Seen, Slot},
    Device,
};
use crate::{
    abstractions::{
        block::mq::{Corpse, Disk, GenDisk, IoctlMode, Unopened},
        memalloc::MemallocNoio,
        work::{WithWork, WorkFunc},
    },
    driver::nbd::Nbd,
    protocol::{
        geometry::BlockSize,
        setup::{DiskPlan, DiskUse, Refusal},
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, Mutex, MutexGuard,
    },
    time::{delay::fsleep, Delta},
};

/// How often it is tried to make a disk, and how long is waited in between.
const TRIES: u32 = 50;
const PAUSE: Delta = Delta::from_millis(100);

/// How often no page must have come before none is expected any more: more than a task sleeps that is
/// held up.
const QUIET: u32 = 5;

/// The driver's data of a disk.
pub(crate) struct DiskData {
    /// The device whose disk it is, or was.
    pub(crate) device: Arc<Device>,
    /// Which of the device's disks it is.
    serial: u64,
    /// It has, or had, partitions. A task that is about to open one may have found it before it was
    /// dropped, and then opens it nevertheless.
    partitioned: Atomic<bool>,
}

impl DiskData {
    /// Whether it is the disk that the device has, and not one that it had. May sleep.
    pub(crate) fn is_current(&self) -> bool {
        self.device.lock_setup().disk.is_current(self.serial)
    }

    /// The disk's name in the device's [`DiskState`](crate::protocol::setup::DiskState).
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }
}

/// Keeps in mind whether a disk has had partitions. To be called whenever it is opened or closed.
pub(crate) fn note_partitions(disk: &Disk<Nbd>) {
    if disk.has_partitions() {
        disk.data().partitioned.store(true, Relaxed);
    }
}

/// A disk that a generation can start on, with the slot that it is in.
pub(super) struct Fitted<'a> {
    pub(super) slot: MutexGuard<'a, Slot>,
    pub(super) disk: ARef<Disk<Nbd>>,
    pub(super) disk_use: DiskUse,
    pub(super) plan: DiskPlan,
}

/// Why there is no [`Fitted`] disk.
pub(super) enum Unfit {
    /// Something has changed: plan anew.
    Again,
    Refused(Refusal),
    Failed(Error),
}

impl Device {
    /// The disk that the device has now, or had last. Any context.
    pub(crate) fn disk(&self) -> Option<ARef<Disk<Nbd>>> {
        self.current.lock().clone()
    }

    /// Makes the device's first disk, and adds it to the system, if it has none; for the module's start.
    /// Sleeps.
    pub(crate) fn add_disk(this: &Arc<Self>, nr_hw_queues: u32) -> Result {
        let needs = DiskNeeds::new(nr_hw_queues, BlockSize::DEFAULT);
        let mut slot = this.in_system.lock();
        if slot.disk.is_none() && slot.pending.is_none() {
            let serial = this.change(|life| life.disk.replace()).ok_or(EBUSY)?;
            let disk = Self::make_disk(this, serial, needs)?;
            this.install(&mut slot, disk, serial);
        }
        Ok(())
    }

    /// Takes the device's disk out of the system, for good. Returns it if it still has an exclusive
    /// user. Sleeps, for as long as the block layer takes for it.
    pub(crate) fn remove_disk(&self) -> Option<ARef<Disk<Nbd>>> {
        let (disk, pending) = {
            let mut slot = self.in_system.lock();
            slot.closed = true;
            (slot.disk.take(), slot.pending.take())
        };
        if let Some(pending) = pending {
            pending.wait_done();
        }
        self.change(|life| life.disk.replace());
        self.set_current(None);
        let disk = disk?;
        let corpse = disk.get();
        let remains = disk.remove();
        remains.drop_pages();
        if remains.is_open() {
            // What is being written still comes. Without memory it stays until it is closed.
            let _noio = MemallocNoio::save();
            if let Ok(burial) = Arc::pin_init(WithWork::new(Burial(remains)), GFP_KERNEL) {
                WithWork::queue_work(&burial, &self.maker.disks);
            }
        }
        corpse.bd_holder().is_some().then_some(corpse)
    }

    /// The disk that a generation needs which is about to start. `plan` tells, or refuses; by an ioctl
    /// with `mode`. Sleeps, for a bounded time.
    pub(super) fn fit_disk<'a>(
        this: &'a Arc<Self>,
        mode: IoctlMode,
        patience: &mut Patience,
        plan: impl FnOnce(&mut Lifecycle, DiskUse) -> Result<(DiskPlan, DiskNeeds), Refusal>,
    ) -> Result<Fitted<'a>, Unfit> {
        let mut slot = this.in_system.lock();
        let pending = match slot.pending.clone() {
            Some(pending) => pending,
            None => {
                let mut disk_use = DiskUse::Shared;
                if let Some(disk) = &slot.disk {
                    disk_use = slot::disk_use(disk, mode);
                    // What has just been closed, while something else had a lock, is as good.
                    this.clean_in(disk);
                }
                let (plan, needs) = match this.change(|life| plan(life, disk_use)) {
                    Ok(planned) => planned,
                    Err(Refusal::Draining) => return Err(Unfit::Again),
                    Err(refusal) => return Err(Unfit::Refused(refusal)),
                };
                let serves = |disk: &&GenDisk<Nbd>| match plan {
                    DiskPlan::Replace => false,
                    DiskPlan::Continue => true,
                    DiskPlan::Keep => take_block_size(disk, mode, needs.block_size),
                };
                let disk = slot.disk.as_ref().filter(serves).map(|disk| disk.get());
                if let Some(disk) = disk {
                    return Ok(Fitted {
                        slot,
                        disk,
                        disk_use,
                        plan,
                    });
                }
                Replacement::begin(this, &mut slot, needs).map_err(Unfit::Failed)?
            }
        };
        drop(slot);
        match pending.wait(patience) {
            Seen::Done => Err(Unfit::Again),
            Seen::Delayed(None) => Err(Unfit::Refused(Refusal::NeedsDisk)),
            Seen::Delayed(Some(error)) => Err(Unfit::Failed(error)),
            Seen::Interrupted => Err(Unfit::Failed(ERESTARTSYS)),
        }
    }

    fn make_disk(this: &Arc<Self>, serial: u64, needs: DiskNeeds) -> Result<GenDisk<Nbd>> {
        let index = this.index();
        let maker = &this.maker;
        let data = try_init!(DiskData {
            device: this.clone(),
            serial,
            partitioned: Atomic::new(false),
        }? Error);
        maker
            .builder(index, needs)
            .build(maker.module, fmt!("nbd{index}"), maker.attributes, data)
            .inspect_err(|error| pr_err!("nbd{index}: cannot add the disk ({error:?})\n"))
    }

    /// Puts a disk in its place.
    fn install(&self, slot: &mut Slot, disk: GenDisk<Nbd>, serial: u64) {
        self.set_current(Some(disk.get()));
        slot.disk = Some(disk);
        self.change(|life| life.disk.added(serial));
    }

    fn set_current(&self, disk: Option<ARef<Disk<Nbd>>>) {
        let before = core::mem::replace(&mut *self.current.lock(), disk);
        // Outside of the spinlock: it may be the last reference.
        drop(before);
    }

    /// Sees to a disk that a generation has left, and that is not open any more: cleans it, so that it can
    /// serve the next one. If it had partitions, the next open takes them away. Sleeps, but for no I/O.
    pub(crate) fn tidy_disk(&self, disk: &Disk<Nbd>, unopened: &Unopened<'_, Nbd>) {
        // Not while a generation is being started: it may be one that goes on with the disk. It is not
        // waited for, since it may wait for what the caller holds.
        let Some(_slot) = self.in_system.try_lock() else {
            return;
        };
        self.clean(disk, unopened);
        // Not before: an open that looks for partitions waits for all that is being written, which may
        // be held back.
        if self.lock_setup().disk.may_clean(disk.data().serial) && disk.has_partitions() {
            disk.need_part_scan();
        }
    }

    /// Cleans the disk in the slot, which is held, if it is not open.
    fn clean_in(&self, disk: &Disk<Nbd>) {
        if self.may_clean(disk) {
            if let Some(unopened) = disk.try_unopened() {
                self.clean(disk, &unopened);
            }
        }
    }

    fn may_clean(&self, disk: &Disk<Nbd>) -> bool {
        let data = disk.data();
        !data.partitioned.load(Relaxed) && self.lock_setup().disk.may_clean(data.serial)
    }

    fn clean(&self, disk: &Disk<Nbd>, unopened: &Unopened<'_, Nbd>) {
        note_partitions(disk);
        if self.may_clean(disk) && unopened.forget_medium().is_ok() {
            self.change(|life| life.disk.cleaned(disk.data().serial));
        }
    }
}

/// How long the open lock of a disk that is idle is waited for, in milliseconds.
const OPEN_PATIENCE_MS: u32 = 1000;

/// Gives a disk that is kept the block size of its next generation. False if that cannot be: it is open
/// with smaller blocks; or somebody else has it exclusively, who may be about to mount it, and relies on
/// what he has found. Sleeps, for a bounded time.
fn take_block_size(disk: &Disk<Nbd>, mode: IoctlMode, bytes: u32) -> bool {
    if disk.logical_block_size() == bytes {
        return true;
    }
    let Some(locked) = disk.lock_open_timeout(OPEN_PATIENCE_MS) else {
        return false;
    };
    if slot::disk_use(disk, mode) == DiskUse::Exclusive || !locked.page_cache_fits(bytes) {
        return false;
    }
    let set = disk.update_limits(|limits| {
        limits.block_size(bytes);
    });
    set.is_ok()
}

/// Gives a device another disk, in a worker.
#[pin_data]
struct Replacement {
    device: Arc<Device>,
    needs: DiskNeeds,
    pending: Arc<Pending>,
    /// The name of the new disk, and the one before; until the worker has begun.
    #[pin]
    disks: Mutex<Option<(u64, Option<GenDisk<Nbd>>)>>,
}

impl Replacement {
    /// Begins to replace the disk in `slot`, to which nothing is attached. If that fails nothing is
    /// changed.
    fn begin(device: &Arc<Device>, slot: &mut Slot, needs: DiskNeeds) -> Result<Arc<Pending>> {
        // What waits for memory may wait for a device of this driver.
        let _noio = MemallocNoio::save();
        let pending = Pending::new()?;
        let done = pending.clone();
        let work = Arc::pin_init(
            WithWork::new(pin_init!(Self {
                device: device.clone(),
                needs,
                pending: done,
                disks <- new_mutex!(None, "rnbd::replacement"),
            })),
            GFP_KERNEL,
        )?;
        if slot.closed {
            return Err(ENODEV);
        }
        let serial = device.change(|life| life.disk.replace()).ok_or(EBUSY)?;
        *work.disks.lock() = Some((serial, slot.disk.take()));
        slot.pending = Some(pending.clone());
        WithWork::queue_work(&work, &device.maker.disks);
        Ok(pending)
    }
}

impl WorkFunc for Replacement {
    fn run(this: &Arc<WithWork<Self>>) {
        let _noio = MemallocNoio::save();
        let Some((serial, old)) = this.disks.lock().take() else {
            return;
        };
        let corpse = old.map(GenDisk::remove);
        let device = &this.device;
        let mut made = None;
        for _ in 0..TRIES {
            match Device::make_disk(device, serial, this.needs) {
                Ok(disk) => {
                    made = Some(disk);
                    break;
                }
                Err(error) => this.pending.note(error),
            }
            if device.in_system.lock().closed {
                break;
            }
            fsleep(PAUSE);
        }
        let unused = {
            let mut slot = device.in_system.lock();
            slot.pending = None;
            match made {
                Some(disk) if !slot.closed => {
                    device.install(&mut slot, disk, serial);
                    None
                }
                // The device goes; or the next start tries again.
                unused => unused,
            }
        };
        drop(unused);
        this.pending.finish();
        if let Some(corpse) = corpse {
            drop_pages(&corpse);
        }
    }
}

/// What is left of the disk of a device that has gone, and is open still.
struct Burial(Corpse);

impl WorkFunc for Burial {
    fn run(this: &Arc<WithWork<Self>>) {
        drop_pages(&this.0);
    }
}

/// Drops what the page caches of a disk hold that is gone, until nothing comes any more: a `write()` that
/// is in progress goes on for a while, and is held up when too much is dirty.
fn drop_pages(corpse: &Corpse) {
    let mut quiet = 0;
    while quiet < QUIET {
        quiet = match corpse.drop_pages() {
            true => 0,
            false => quiet.saturating_add(1),
        };
        fsleep(PAUSE);
    }
}
