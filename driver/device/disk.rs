// SPDX-License-Identifier: GPL-2.0

//! The disk of a device, and which one a generation gets (invariant G4).
//!
//! A device outlives its disks: a disk has a reference to its device, and ioctls that come through
//! any of its disks reach the device. A disk serves one generation, with those that continue it. It
//! is kept for another one only if it was not open for a moment after the last one had gone; else it
//! is taken out of the system, and its openers get errors for ever. See [`DiskState`].
//!
//! [`DiskState`]: crate::protocol::setup::DiskState

use super::{
    removal::{Removal, Seen},
    slot::Slot,
    Device,
};
use crate::{
    abstractions::block::mq::{Disk, Unopened},
    driver::nbd::Nbd,
    protocol::setup::DiskPlan,
};
use kernel::{
    prelude::*,
    sync::{aref::ARef, Arc},
};

/// The driver's data of a disk.
pub(crate) struct DiskData {
    /// The device whose disk it is, or was.
    pub(crate) device: Arc<Device>,
    /// Which of the device's disks it is.
    serial: u64,
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

impl Device {
    /// The disk that the device has now. Any context.
    pub(crate) fn disk(&self) -> Option<ARef<Disk<Nbd>>> {
        self.current.lock().clone()
    }

    /// Makes the device's first disk, and adds it to the system. Sleeps.
    pub(crate) fn add_disk(this: &Arc<Self>, nr_hw_queues: u32) -> Result {
        let mut slot = this.in_system.lock();
        Self::next_disk(this, &mut slot, nr_hw_queues)
    }

    /// Takes the device's disk out of the system, for good. Sleeps.
    pub(crate) fn remove_disk(&self) {
        let mut slot = self.in_system.lock();
        self.change(|life| life.disk.replace());
        self.set_current(None);
        drop(slot.disk.take());
        drop(slot.leaving.take());
    }

    /// The disk for a generation that is about to start, as was planned. Sleeps, for a bounded time.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the last disk does not go, or is attached; `ERESTARTSYS` if a signal came first; what
    /// making a disk fails with: the device is without one then, and gets one at the next try.
    pub(super) fn fit_disk(
        this: &Arc<Self>,
        slot: &mut Slot,
        plan: DiskPlan,
        nr_hw_queues: u32,
    ) -> Result<ARef<Disk<Nbd>>> {
        if plan == DiskPlan::Replace {
            Self::next_disk(this, slot, nr_hw_queues)?;
        }
        slot.disk.as_ref().map(|disk| disk.get()).ok_or(ENODEV)
    }

    /// Gives the device another disk.
    fn next_disk(this: &Arc<Self>, slot: &mut Slot, nr_hw_queues: u32) -> Result {
        let index = this.index();
        let serial = this.change(|life| life.disk.replace()).ok_or(EBUSY)?;
        if slot.disk.is_some() {
            this.set_current(None);
            slot.leaving = Some(Removal::start(&mut slot.disk, &this.maker.workers)?);
        }
        if let Some(leaving) = &slot.leaving {
            match leaving.wait() {
                Seen::Gone => slot.leaving = None,
                Seen::Interrupted => return Err(ERESTARTSYS),
                Seen::Delayed => {
                    pr_err!("nbd{index}: its last disk is still being closed by a task that waits for I/O: end that, and try again\n");
                    return Err(EBUSY);
                }
            }
        }
        let maker = &this.maker;
        let data = try_init!(DiskData {
            device: this.clone(),
            serial,
        }? Error);
        let disk = maker
            .builder(index, nr_hw_queues)
            .build(maker.module, fmt!("nbd{index}"), maker.attributes, data)
            .inspect_err(|error| pr_err!("nbd{index}: cannot add the disk ({error:?})\n"))?;
        this.set_current(Some(disk.get()));
        slot.disk = Some(disk);
        this.change(|life| life.disk.added(serial));
        Ok(())
    }

    fn set_current(&self, disk: Option<ARef<Disk<Nbd>>>) {
        let before = core::mem::replace(&mut *self.current.lock(), disk);
        // Outside of the spinlock: it may be the last reference.
        drop(before);
    }

    /// Cleans `disk`, which is not open, of what a generation has left, so that it can serve the next
    /// one. Sleeps, but for no I/O.
    pub(crate) fn clean_disk(&self, disk: &Disk<Nbd>, unopened: &Unopened<'_, Nbd>) {
        let serial = disk.data().serial;
        // Not while a generation is being started: it may be one that goes on with the disk. It is not
        // waited for, since it may wait for what the caller holds.
        let Some(_slot) = self.in_system.try_lock() else {
            return;
        };
        let may_clean = self.lock_setup().disk.may_clean(serial);
        if may_clean && unopened.forget_medium().is_ok() {
            self.change(|life| life.disk.cleaned(serial));
        }
    }
}
