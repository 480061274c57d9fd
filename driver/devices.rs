// SPDX-License-Identifier: GPL-2.0

//! The devices there are: made with the module, made for netlink, and removed.

use super::{debugfs::DeviceFiles, device::Device, params::Params, sysfs};
use crate::{
    abstractions::{
        block::mq::{Disk, GenDisk, GenDiskBuilder, QueueLimits},
        workqueue::Workqueue,
    },
    protocol::setup::Phase,
};
use kernel::{
    bindings,
    debugfs::Dir,
    new_condvar, new_mutex,
    prelude::*,
    rbtree::RBTree,
    str::CString,
    sync::{Arc, CondVar, Mutex},
};

/// Requests that a hardware queue takes.
pub(super) const QUEUE_DEPTH: u32 = 128;

/// Largest request: 32 MiB, which is what servers must take at least, in sectors.
const MAX_HW_SECTORS: u32 = 65536;

/// Size of request that suits a network, in bytes.
const IO_OPT: u32 = 128 << 10;

/// The devices there are.
#[pin_data]
pub(super) struct Devices {
    module: &'static ThisModule,
    params: Params,
    debugfs: Dir,
    keepers: Arc<Workqueue>,
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
pub(super) struct Entry {
    _files: DeviceFiles,
    disk: GenDisk<Device>,
    // Last: when the disk is gone, its number can be used again.
    _place: TakenPlace,
}

impl Entry {
    pub(super) fn disk(&self) -> &Disk<Device> {
        &self.disk
    }
}

/// A place in the table, free again when this is dropped.
struct TakenPlace {
    devices: Arc<Devices>,
    index: u32,
}

impl Drop for TakenPlace {
    fn drop(&mut self) {
        let removed = self.devices.table.lock().remove_node(&self.index);
        self.devices.changed.notify_all();
        drop(removed);
    }
}

impl Devices {
    /// No devices yet. Those that are attached by netlink are ended on `keepers`.
    pub(super) fn new(
        module: &'static ThisModule,
        params: Params,
        debugfs: Dir,
        keepers: Arc<Workqueue>,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                module,
                params,
                debugfs,
                keepers,
                table <- new_mutex!(RBTree::new(), "rnbd::devices"),
                changed <- new_condvar!("rnbd::devices_changed"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn module(&self) -> &'static ThisModule {
        self.module
    }

    /// Where devices that are attached by netlink are ended.
    pub(super) fn keepers(&self) -> &Workqueue {
        &self.keepers
    }

    /// How many there are. For an estimate: it may have changed when this returns.
    pub(super) fn count(&self) -> usize {
        self.table.lock().values().count()
    }

    /// Calls `visit` for each device, by their numbers, until it fails. The table's lock is held:
    /// devices neither come nor go.
    pub(super) fn try_for_each<E>(
        &self,
        mut visit: impl FnMut(&Disk<Device>) -> Result<(), E>,
    ) -> Result<(), E> {
        for place in self.table.lock().values() {
            if let Place::Present(entry) = place {
                visit(entry.disk())?;
            }
        }
        Ok(())
    }

    /// The device with this number.
    pub(super) fn find(&self, index: u32) -> Option<Arc<Entry>> {
        match self.table.lock().get(&index) {
            Some(Place::Present(entry)) => Some(entry.clone()),
            _ => None,
        }
    }

    /// How many there can be: their numbers are below that.
    pub(super) fn most(&self) -> u32 {
        self.params.most_devices()
    }

    /// The device with this number, which is made if it is not there. Sleeps; a signal stops the
    /// wait for one that is being made or removed, with `EINTR`.
    pub(super) fn find_or_add(
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

    /// The first device from number `from` on that nobody uses, or else a new one, or else the
    /// first that is free but open. None, if there is no such device.
    pub(super) fn first_free(
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
            let is_idle = matches!(entry.disk().data().lock_setup().phase(), Phase::Idle);
            if index < from || !is_idle {
                continue;
            }
            if entry.disk().openers() == 0 {
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
    pub(super) fn add_initial(this: &Arc<Self>) -> Result {
        for index in 0..this.params.devices {
            Self::find_or_add(this, index, this.params.nr_hw_queues)?;
        }
        Ok(())
    }

    /// Makes the device whose place was just taken.
    fn build(this: &Arc<Self>, index: u32, nr_hw_queues: u32) -> Result<Arc<Entry>> {
        let place = TakenPlace {
            devices: this.clone(),
            index,
        };
        let name = CString::try_from_fmt(fmt!("nbd{index}"))?;
        let disk = this.add_disk(index, nr_hw_queues)?;
        let entry = Entry {
            _files: DeviceFiles::create(&this.debugfs, &name, &disk)?,
            disk,
            _place: place,
        };
        let entry = Arc::new(entry, GFP_KERNEL)?;
        if let Some(place) = this.table.lock().get_mut(&index) {
            *place = Place::Present(entry.clone());
        }
        this.changed.notify_all();
        Ok(entry)
    }

    fn add_disk(&self, index: u32, nr_hw_queues: u32) -> Result<GenDisk<Device>> {
        let mut limits = QueueLimits::new();
        limits
            .max_hw_sectors(MAX_HW_SECTORS)
            .io_opt(IO_OPT)
            .max_segments(u16::MAX);
        GenDiskBuilder {
            major: bindings::NBD_MAJOR,
            first_minor: index << self.params.part_shift,
            minors: self.params.minors(),
            nr_hw_queues,
            queue_depth: QUEUE_DEPTH,
            // The server puts requests in order. And a scheduler has single requests handed out by
            // a worker, since the driver may sleep: two task switches more for each.
            scheduled: false,
            limits,
        }
        .build(
            self.module,
            fmt!("nbd{index}"),
            &sysfs::GROUP,
            Device::new(index),
        )
        .inspect_err(|error| pr_err!("nbd{index}: cannot add the device ({error:?})\n"))
    }

    /// Takes a device out of the table. It goes, and its number is free, when what is returned is
    /// dropped and nobody else has hold of it; dropping sleeps.
    pub(super) fn take_out(&self, index: u32) -> Option<Arc<Entry>> {
        let mut table = self.table.lock();
        match core::mem::replace(table.get_mut(&index)?, Place::Changing) {
            Place::Present(entry) => Some(entry),
            Place::Changing => None,
        }
    }

    /// Takes all devices out of the system, for the module to go. Sleeps.
    pub(super) fn remove_all(&self) {
        loop {
            let next = self.table.lock().keys().next().copied();
            // Nobody else has hold of one: it goes at once.
            match next.and_then(|index| self.take_out(index)) {
                Some(entry) => drop(entry),
                None => break,
            }
        }
    }
}
