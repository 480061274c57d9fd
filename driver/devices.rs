// SPDX-License-Identifier: GPL-2.0

//! The devices there are: made with the module, made for netlink, and removed.

use super::{
    device::{maker::Maker, Device},
    nbd::Nbd,
    show::debugfs::DeviceFiles,
};
use crate::{
    abstractions::{block::mq::Disk, workqueue::Workqueue},
    protocol::setup::Phase,
};
use kernel::{
    debugfs::Dir,
    new_condvar, new_mutex,
    prelude::*,
    rbtree::{RBTree, RBTreeNodeReservation},
    str::CString,
    sync::{aref::ARef, Arc, CondVar, Mutex},
};

/// The devices there are.
#[pin_data]
pub(crate) struct Devices {
    maker: Arc<Maker>,
    debugfs: Dir,
    #[pin]
    table: Mutex<RBTree<u32, Place>>,
    /// A place in the table has changed.
    #[pin]
    changed: CondVar,
    /// The devices that the module comes with are made.
    #[pin]
    loaded: Mutex<bool>,
    #[pin]
    loaded_changed: CondVar,
}

/// A device's place.
enum Place {
    /// A device.
    Present(Arc<Entry>),
    /// One that is just being added, or removed.
    Changing,
    /// None, but the disk of one that was removed had an exclusive user. The kernel knows a mounted
    /// filesystem by that number.
    Haunted(ARef<Disk<Nbd>>),
}

impl Place {
    /// Whether a device may be made here.
    fn is_free(&self) -> bool {
        matches!(self, Self::Haunted(disk) if disk.bd_holder().is_none())
    }
}

/// One device, in the system until this is dropped.
pub(crate) struct Entry {
    _files: DeviceFiles,
    device: InSystem,
}

impl Entry {
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device.device
    }
}

/// A device that has its disk in the system, and its place in the table, until this is dropped.
struct InSystem {
    devices: Arc<Devices>,
    device: Arc<Device>,
}

impl Drop for InSystem {
    fn drop(&mut self) {
        let corpse = self.device.remove_disk();
        let index = self.device.index();
        let removed = {
            let mut table = self.devices.table.lock();
            match (corpse, table.get_mut(&index)) {
                (Some(corpse), Some(place)) => {
                    *place = Place::Haunted(corpse);
                    None
                }
                _ => table.remove_node(&index),
            }
        };
        self.devices.changed.notify_all();
        drop(removed);
    }
}

impl Devices {
    /// No devices yet.
    pub(crate) fn new(maker: Arc<Maker>, debugfs: Dir) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                maker,
                debugfs,
                table <- new_mutex!(RBTree::new(), "rnbd::devices"),
                changed <- new_condvar!("rnbd::devices_changed"),
                loaded <- new_mutex!(false, "rnbd::loaded"),
                loaded_changed <- new_condvar!("rnbd::loaded_changed"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn module(&self) -> &'static ThisModule {
        self.maker.module
    }

    /// Where generations are ended whose tasks are not there.
    pub(crate) fn workers(&self) -> &Workqueue {
        &self.maker.workers
    }

    /// How many there are. For an estimate: it may have changed when this returns.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().values().count()
    }

    /// Calls `visit` for each device, by their numbers, until it fails. The table's lock is held:
    /// devices neither come nor go.
    pub(crate) fn try_for_each<E>(
        &self,
        mut visit: impl FnMut(&Device) -> Result<(), E>,
    ) -> Result<(), E> {
        for place in self.table.lock().values() {
            if let Place::Present(entry) = place {
                visit(entry.device())?;
            }
        }
        Ok(())
    }

    /// The device with this number.
    pub(crate) fn find(&self, index: u32) -> Option<Arc<Entry>> {
        match self.table.lock().get(&index) {
            Some(Place::Present(entry)) => Some(entry.clone()),
            _ => None,
        }
    }

    /// How many there can be: their numbers are below that.
    pub(crate) fn most(&self) -> u32 {
        self.maker.params.most_devices()
    }

    /// The device with this number, which is made if it is not there: without a disk, which the first
    /// start gives it. Sleeps; a signal stops the wait for one that is being made or removed, with
    /// `EINTR`.
    ///
    /// # Errors
    ///
    /// `EBUSY` if something still uses the number of a device that was removed.
    pub(crate) fn find_or_add(this: &Arc<Self>, index: u32) -> Result<Arc<Entry>> {
        // Before the lock: what waits for memory may wait for a device, and others for the lock.
        let reservation = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = this.table.lock();
        loop {
            match table.get(&index) {
                None => break,
                Some(place) if place.is_free() => break,
                Some(Place::Haunted(_)) => return Err(EBUSY),
                Some(Place::Present(entry)) => return Ok(entry.clone()),
                Some(Place::Changing) => {
                    if this.changed.wait_interruptible(&mut table) {
                        return Err(EINTR);
                    }
                }
            }
        }
        let before = table.insert(reservation.into_node(index, Place::Changing));
        drop(table);
        drop(before);
        Self::build(this, index)
    }

    /// The first device from number `from` on that is not in use, or else a new one, or else the
    /// first that is free but open. None, if there is no such device.
    pub(crate) fn first_free(this: &Arc<Self>, from: u32) -> Result<Option<Arc<Entry>>> {
        let reservation = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = this.table.lock();
        let mut unused = 0;
        let mut open = None;
        for (&index, place) in table.iter() {
            if index == unused && !place.is_free() {
                unused = unused.saturating_add(1);
            }
            let Place::Present(entry) = place else {
                continue;
            };
            let device = entry.device();
            let is_idle = matches!(device.lock_setup().phase(), Phase::Idle);
            if index < from || !is_idle {
                continue;
            }
            if device.disk().is_none_or(|disk| disk.openers() == 0) {
                return Ok(Some(entry.clone()));
            }
            open = open.or_else(|| Some(entry.clone()));
        }
        if unused >= this.most() {
            return Ok(open);
        }
        let before = table.insert(reservation.into_node(unused, Place::Changing));
        drop(table);
        drop(before);
        Self::build(this, unused).map(Some)
    }

    /// Makes the devices that the module comes with. One that cannot be made is said, and left out.
    pub(crate) fn add_initial(this: &Arc<Self>) {
        for index in 0..this.maker.params.devices {
            let made = Self::find_or_add(this, index).and_then(|entry| {
                Device::add_disk(entry.device(), this.maker.params.nr_hw_queues).map(|()| entry)
            });
            if let Err(error) = made {
                pr_err!("nbd{index}: there is no such device ({error:?})\n");
                drop(this.take_out(index));
            }
        }
        *this.loaded.lock() = true;
        this.loaded_changed.notify_all();
    }

    /// Waits until the devices that the module comes with are made. Sleeps; a signal stops the wait with
    /// `EINTR`.
    pub(crate) fn wait_loaded(&self) -> Result {
        let mut loaded = self.loaded.lock();
        while !*loaded {
            if self.loaded_changed.wait_interruptible(&mut loaded) {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    /// Makes the device whose place was just taken.
    fn build(this: &Arc<Self>, index: u32) -> Result<Arc<Entry>> {
        let made = Self::make(this, index);
        let removed = {
            let mut table = this.table.lock();
            match (&made, table.get_mut(&index)) {
                (Ok(entry), Some(place)) => {
                    *place = Place::Present(entry.clone());
                    None
                }
                // One that was dropped on the way has given back its place.
                (Err(_), Some(Place::Changing)) => table.remove_node(&index),
                _ => None,
            }
        };
        this.changed.notify_all();
        drop(removed);
        made
    }

    fn make(this: &Arc<Self>, index: u32) -> Result<Arc<Entry>> {
        let name = CString::try_from_fmt(fmt!("nbd{index}"))?;
        let device = Device::new(index, &this.maker)?;
        let files = DeviceFiles::create(&this.debugfs, &name, &device)?;
        let entry = Entry {
            _files: files,
            device: InSystem {
                devices: this.clone(),
                device,
            },
        };
        Ok(Arc::new(entry, GFP_KERNEL)?)
    }

    /// Takes a device out of the table. It goes, and its number is free, when what is returned is
    /// dropped and nothing else has hold of it; dropping sleeps.
    pub(crate) fn take_out(&self, index: u32) -> Option<Arc<Entry>> {
        let mut table = self.table.lock();
        let place = table.get_mut(&index)?;
        match place {
            Place::Present(entry) => {
                let entry = entry.clone();
                *place = Place::Changing;
                Some(entry)
            }
            Place::Changing | Place::Haunted(_) => None,
        }
    }

    /// Takes all devices out of the system, for the module to go. Sleeps.
    pub(crate) fn remove_all(&self) {
        loop {
            let next = self.table.lock().keys().next().copied();
            let Some(index) = next else {
                break;
            };
            // Nothing else has hold of one: it goes at once. What is left of one that has gone, too.
            drop(self.take_out(index));
            let left = self.table.lock().remove_node(&index);
            drop(left);
        }
    }
}
