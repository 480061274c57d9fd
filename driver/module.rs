// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading; the devices there are.

use super::{debugfs::DeviceFiles, device::Device, netlink, params::Params, sysfs};
use crate::abstractions::{
    block::{
        major::Major,
        mq::{DiskBuilder, GenDisk, QueueLimits},
    },
    net::genetlink::Registration,
};
use kernel::{bindings, debugfs::Dir, prelude::*, str::CString, sync::Arc};

/// Requests that a hardware queue takes.
const QUEUE_DEPTH: u32 = 128;

/// Largest request: 32 MiB, which is what servers must take at least, in sectors.
const MAX_HW_SECTORS: u32 = 65536;

/// Size of request that suits a network, in bytes.
const IO_OPT: u32 = 128 << 10;

/// The loaded module.
pub(crate) struct Module {
    // Dropped in this order: who asks for disks, what shows a disk, the disk, what it is made of.
    _netlink: Registration<Arc<Devices>>,
    _devices: Arc<Devices>,
    _debugfs: Dir,
    _major: Major,
}

/// The devices there are.
pub(super) struct Devices(KVec<Entry>);

/// One device, in the system.
struct Entry {
    _files: DeviceFiles,
    disk: GenDisk<Device>,
}

impl Devices {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them, by their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.iter().map(|entry| entry.disk.data())
    }

    /// The one with this number.
    pub(super) fn find(&self, index: u32) -> Option<&Device> {
        self.iter().find(|device| device.index == index)
    }
}

impl kernel::Module for Module {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let params = Params::read()?;
        let major = Major::register(bindings::NBD_MAJOR, c"nbd").inspect_err(|error| {
            pr_err!(
                "major number {} is taken ({error:?}): is nbd.ko loaded? Unload it first: modprobe -r nbd\n",
                bindings::NBD_MAJOR
            );
        })?;
        let debugfs = Dir::new(c"nbd");
        let mut devices = KVec::with_capacity(params.devices as usize, GFP_KERNEL)?;
        for index in 0..params.devices {
            let disk = add_disk(module, params, index)?;
            let name = CString::try_from_fmt(fmt!("nbd{index}"))?;
            let files = DeviceFiles::create(&debugfs, &name, &disk)?;
            let entry = Entry {
                _files: files,
                disk,
            };
            devices.push(entry, GFP_KERNEL)?;
        }
        let devices = Arc::new(Devices(devices), GFP_KERNEL)?;
        // Last: requests may come at once.
        let netlink = netlink::register(devices.clone())?;
        Ok(Self {
            _netlink: netlink,
            _devices: devices,
            _debugfs: debugfs,
            _major: major,
        })
    }
}

fn add_disk(module: &'static ThisModule, params: Params, index: u32) -> Result<GenDisk<Device>> {
    let mut limits = QueueLimits::new();
    limits
        .max_hw_sectors(MAX_HW_SECTORS)
        .io_opt(IO_OPT)
        .max_segments(u16::MAX);
    DiskBuilder {
        major: bindings::NBD_MAJOR,
        first_minor: index << params.part_shift,
        minors: params.minors(),
        hw_queues: params.hw_queues,
        queue_depth: QUEUE_DEPTH,
        limits,
    }
    .build(
        module,
        fmt!("nbd{index}"),
        &sysfs::GROUP,
        Device::new(index),
    )
    .inspect_err(|error| pr_err!("nbd{index}: cannot add the device ({error:?})\n"))
}
