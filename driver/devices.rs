// SPDX-License-Identifier: GPL-2.0

//! The devices there are: made with the module, made for netlink, and removed.

use super::{
    device::{maker::Maker, Device},
    show::debugfs::DeviceFiles,
};
use crate::{abstractions::workqueue::Workqueue, protocol::setup::Phase};
use kernel::{
    debugfs::Dir,
    new_condvar, new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::CString,
    sync::{Arc, CondVar, Mutex},
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
}

/// A device's place.
enum Place {
    /// A device.
    Present(Arc<Entry>),
    /// One that is just being added, or removed.
    Changing,
}

/// One device, in the system until this is dropped.
pub(crate) struct Entry {
    _files: DeviceFiles,
    device: InSystem,
    // Last: when the disk is gone, its number can be used again.
    _place: ReservedIndex,
}

impl Entry {
    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device.0
    }
}

/// A device that has its disk in the system until this is dropped.
struct InSystem(Arc<Device>);

impl Drop for InSystem {
    fn drop(&mut self) {
        self.0.remove_disk();
    }
}

/// A place in the table, free again when this is dropped.
struct ReservedIndex {
    devices: Arc<Devices>,
    index: u32,
}

impl Drop for ReservedIndex {
    fn drop(&mut self) {
        let removed = self.devices.table.lock().remove_node(&self.index);
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
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn module(&self) -> &'static ThisModule {
        self.maker.module
    }

    /// Where generations of netlink are ended.
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

    /// The device with this number, which is made if it is not there. Sleeps; a signal stops the
    /// wait for one that is being made or removed, with `EINTR`.
    pub(crate) fn find_or_add(
        this: &Arc<Self>,
        index: u32,
        nr_hw_queues: u32,
    ) -> Result<Arc<Entry>> {
        let mut table = this.table.lock();
        loop {
            match table.get(&index) {
                None => break,
                Some(Place::Present(entry)) => return Ok(entry.clone()),
                Some(Place::Changing) => {
                    if this.changed.wait_interruptible(&mut table) {
                        return Err(EINTR);
                    }
                }
            }
        }
        table.try_create_and_insert(index, Place::Changing, GFP_KERNEL)?;
        drop(table);
        Self::build(this, index, nr_hw_queues)
    }

    /// The first device from number `from` on that is not in use, or else a new one, or else the
    /// first that is free but open. None, if there is no such device.
    pub(crate) fn first_free(
        this: &Arc<Self>,
        from: u32,
        nr_hw_queues: u32,
    ) -> Result<Option<Arc<Entry>>> {
        let mut table = this.table.lock();
        let mut unused = 0;
        let mut open = None;
        for (&index, place) in table.iter() {
            if index == unused {
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
        table.try_create_and_insert(unused, Place::Changing, GFP_KERNEL)?;
        drop(table);
        Self::build(this, unused, nr_hw_queues).map(Some)
    }

    /// Makes the devices that the module comes with.
    pub(crate) fn add_initial(this: &Arc<Self>) -> Result {
        for index in 0..this.maker.params.devices {
            Self::find_or_add(this, index, this.maker.params.nr_hw_queues)?;
        }
        Ok(())
    }

    /// Makes the device whose place was just taken.
    fn build(this: &Arc<Self>, index: u32, nr_hw_queues: u32) -> Result<Arc<Entry>> {
        let place = ReservedIndex {
            devices: this.clone(),
            index,
        };
        let name = CString::try_from_fmt(fmt!("nbd{index}"))?;
        let device = Device::new(index, &this.maker)?;
        let files = DeviceFiles::create(&this.debugfs, &name, &device)?;
        Device::add_disk(&device, nr_hw_queues)?;
        let entry = Entry {
            _files: files,
            device: InSystem(device),
            _place: place,
        };
        let entry = Arc::new(entry, GFP_KERNEL)?;
        if let Some(place) = this.table.lock().get_mut(&index) {
            *place = Place::Present(entry.clone());
        }
        this.changed.notify_all();
        Ok(entry)
    }

    /// Takes a device out of the table. It goes, and its number is free, when what is returned is
    /// dropped and nothing else has hold of it; dropping sleeps.
    pub(crate) fn take_out(&self, index: u32) -> Option<Arc<Entry>> {
        let mut table = self.table.lock();
        match core::mem::replace(table.get_mut(&index)?, Place::Changing) {
            Place::Present(entry) => Some(entry),
            Place::Changing => None,
        }
    }

    /// Takes all devices out of the system, for the module to go. Sleeps.
    pub(crate) fn remove_all(&self) {
        loop {
            let next = self.table.lock().keys().next().copied();
            // Nothing else has hold of one: it goes at once.
            match next.and_then(|index| self.take_out(index)) {
                Some(entry) => drop(entry),
                None => break,
            }
        }
    }
}
