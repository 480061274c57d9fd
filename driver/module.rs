// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading; the devices there are.

use super::{device::Device, params::Params};
use crate::abstractions::block::{
    major::Major,
    mq::{DiskBuilder, GenDisk, QueueLimits},
};
use kernel::{bindings, prelude::*};

/// Requests that a hardware queue takes.
const QUEUE_DEPTH: u32 = 128;

/// Largest request: 32 MiB, which is what servers must take at least, in sectors.
const MAX_HW_SECTORS: u32 = 65536;

/// Size of request that suits a network, in bytes.
const IO_OPT: u32 = 128 << 10;

/// The loaded module.
pub(crate) struct Module {
    /// Dropped first: the major number goes when nothing uses it any more.
    _disks: KVec<GenDisk<Device>>,
    _major: Major,
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
        let mut disks = KVec::with_capacity(params.devices as usize, GFP_KERNEL)?;
        for index in 0..params.devices {
            disks.push(add_disk(module, params, index)?, GFP_KERNEL)?;
        }
        Ok(Self {
            _disks: disks,
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
    .build(module, fmt!("nbd{index}"), Device::new(index))
    .inspect_err(|error| pr_err!("nbd{index}: cannot add the device ({error:?})\n"))
}
