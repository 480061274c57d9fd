// SPDX-License-Identifier: GPL-2.0

//! What the disks of all devices have in common.

use super::owner::Setup;
use crate::{
    abstractions::{
        block::mq::{AttributeGroup, GenDiskBuilder, QueueLimits},
        workqueue::Workqueue,
    },
    driver::{nbd::Nbd, params::Params, wire::outbox::QUEUE_DEPTH},
    protocol::{geometry::BlockSize, setup::Connections},
};
use kernel::{bindings, prelude::*, sync::Arc};

/// Largest request: 32 MiB, which is what servers must take at least, in sectors.
const MAX_HW_SECTORS: u32 = 65536;

/// Size of request that suits a network, in bytes.
const IO_OPT: u32 = 128 << 10;

/// What the disks of all devices have in common.
pub(crate) struct Maker {
    pub(crate) module: &'static ThisModule,
    pub(crate) params: Params,
    /// Attributes that each disk has in sysfs.
    pub(crate) attributes: &'static AttributeGroup<Nbd>,
    /// Tells user space that a connection of a device is dead.
    pub(crate) link_dead: fn(u32),
    /// Where generations are ended whose tasks are not there.
    pub(crate) workers: Arc<Workqueue>,
    /// Where tasks are watched that are away: for long, and without anything that memory waits for.
    pub(crate) watchers: Arc<Workqueue>,
    /// Where disks are replaced. That may take long, and ends no request.
    pub(crate) disks: Arc<Workqueue>,
}

/// What a disk must have from the start, for the generation that it is made for.
#[derive(Clone, Copy)]
pub(crate) struct DiskNeeds {
    /// A hardware queue for each connection.
    pub(crate) nr_hw_queues: u32,
    /// In bytes.
    pub(crate) block_size: u32,
}

impl DiskNeeds {
    pub(super) fn new(nr_hw_queues: u32, block_size: BlockSize) -> Self {
        Self {
            nr_hw_queues,
            block_size: block_size.bytes() as u32,
        }
    }

    /// Those of the generation that is set up so.
    pub(super) fn of(setup: &Setup) -> Self {
        let connections = u32::try_from(setup.connections.count()).unwrap_or(u32::MAX);
        Self::new(connections, setup.config.block_size)
    }
}

impl Maker {
    /// A disk of device `index`, to be made.
    pub(crate) fn builder(&self, index: u32, needs: DiskNeeds) -> GenDiskBuilder {
        let mut limits = QueueLimits::new();
        limits
            .block_size(needs.block_size)
            .max_hw_sectors(MAX_HW_SECTORS)
            .io_opt(IO_OPT)
            .max_segments(u16::MAX);
        GenDiskBuilder {
            major: bindings::NBD_MAJOR,
            first_minor: index << self.params.part_shift,
            minors: self.params.minors(),
            nr_hw_queues: needs.nr_hw_queues,
            queue_depth: QUEUE_DEPTH,
            // The server puts requests in order. And a scheduler has single requests handed out by
            // a worker, since the driver may sleep: two task switches more for each.
            scheduled: false,
            limits,
        }
    }
}
