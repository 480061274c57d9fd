// SPDX-License-Identifier: GPL-2.0

//! The disk of a device.
//!
//! A device outlives its disks: a disk has a reference to its device, and ioctls that come through
//! any of its disks reach the device.

use super::Device;
use crate::{abstractions::block::mq::Disk, driver::nbd::Nbd};
use kernel::{
    prelude::*,
    sync::{aref::ARef, Arc},
};

/// The driver's data of a disk.
pub(crate) struct DiskData {
    /// The device whose disk it is, or was.
    pub(crate) device: Arc<Device>,
}

impl Device {
    /// The disk that the device has now. Any context.
    pub(crate) fn disk(&self) -> Option<ARef<Disk<Nbd>>> {
        self.current.lock().clone()
    }

    /// Makes the device's disk, empty, and adds it to the system. Sleeps.
    pub(crate) fn add_disk(this: &Arc<Self>, nr_hw_queues: u32) -> Result {
        let index = this.index();
        let mut slot = this.gendisk.lock();
        let maker = &this.maker;
        let data = try_init!(DiskData {
            device: this.clone(),
        }? Error);
        let disk = maker
            .builder(index, nr_hw_queues)
            .build(maker.module, fmt!("nbd{index}"), maker.attributes, data)
            .inspect_err(|error| pr_err!("nbd{index}: cannot add the device ({error:?})\n"))?;
        this.set_current(Some(disk.get()));
        *slot = Some(disk);
        Ok(())
    }

    /// Takes the device's disk out of the system. Sleeps.
    pub(crate) fn remove_disk(&self) {
        let mut slot = self.gendisk.lock();
        let disk = slot.take();
        drop(disk);
        self.set_current(None);
    }

    fn set_current(&self, disk: Option<ARef<Disk<Nbd>>>) {
        let before = core::mem::replace(&mut *self.current.lock(), disk);
        // Outside of the spinlock: it may be the last reference.
        drop(before);
    }
}
