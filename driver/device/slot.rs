// SPDX-License-Identifier: GPL-2.0

//! What a device has in the system.

use super::removal::Removal;
use crate::{
    abstractions::{
        block::mq::{GenDisk, IoctlMode},
        work::WithWork,
    },
    driver::nbd::Nbd,
    protocol::setup::DiskUse,
};
use kernel::sync::Arc;

/// What a device has in the system.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) disk: Option<GenDisk<Nbd>>,
    /// The disk before, on its way out of the system.
    pub(super) leaving: Option<Arc<WithWork<Removal>>>,
}

impl Slot {
    /// Whether the disk is used exclusively, by another than the caller of an ioctl with `mode`.
    pub(super) fn disk_use(&self, mode: IoctlMode) -> DiskUse {
        match &self.disk {
            Some(disk) if !mode.is_excl() && disk.bd_holder().is_some() => DiskUse::Exclusive,
            _ => DiskUse::Shared,
        }
    }
}
