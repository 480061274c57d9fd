// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading; the devices there are.

use super::{debugfs::DeviceFiles, device::Device, params::Params, sysfs};
use crate::abstractions::block::{
    major::Major,
    mq::{DiskBuilder, GenDisk, QueueLimits},
};
use kernel::{bindings, debugfs::Dir, prelude::*, str::CString};

/// Requests that a hardware queue takes.
const QUEUE_DEPTH: u32 = 128;

/// Largest request: 32 MiB, which is what servers must take at least, in sectors.
const MAX_HW_SECTORS: u32 = 65536;

/// Size of request that suits a network, in bytes.
const IO_OPT: u32 = 128 << 10;

/// The loaded module.
pub(crate) struct Module {
    // Dropped in this order: what shows a disk, the disk, what it is made of.
    _devices: KVec<Entry>,
    _debugfs: Dir,
    _major: Major,
}

/// One device, in the system.
struct Entry {
    _files: DeviceFiles,
    _disk: GenDisk<Device>,
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
                _disk: disk,
            };
            devices.push(entry, GFP_KERNEL)?;
        }
        Ok(Self {
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
