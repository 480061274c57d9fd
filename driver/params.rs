// SPDX-License-Identifier: GPL-2.0

//! Module parameters, checked as nbd.ko does.

use crate::{max_part, nbds_max, pre_defined_connections};
use kernel::{bindings, prelude::*};

/// Bits of a minor number.
const MINOR_BITS: u32 = bindings::MINORBITS;

/// The parameters, checked.
#[derive(Clone, Copy)]
pub(crate) struct Params {
    /// How many devices to make.
    pub(crate) devices: u32,
    /// Bits of a minor number that count partitions.
    pub(crate) part_shift: u32,
    /// How many hardware queues a device has from the start.
    pub(crate) nr_hw_queues: u32,
}

impl Params {
    /// Reads and checks what the module was loaded with, and corrects what sysfs shows of it.
    pub(crate) fn read() -> Result<Self> {
        let Ok(partitions) = u32::try_from(max_part.get()) else {
            pr_err!("max_part={}: must not be negative\n", max_part.get());
            return Err(EINVAL);
        };
        // As many bits as the largest partition number has.
        let part_shift = u32::BITS.saturating_sub(partitions.leading_zeros());
        if 1_u64 << part_shift > u64::from(bindings::DISK_MAX_PARTS) {
            let most = bindings::DISK_MAX_PARTS.saturating_sub(1);
            pr_err!("max_part={partitions}: at most {most} partitions per device\n");
            return Err(EINVAL);
        }
        let most_devices = 1_u32 << MINOR_BITS.saturating_sub(part_shift);
        let devices = match u32::try_from(nbds_max.get()) {
            Ok(devices) if devices <= most_devices => devices,
            _ => {
                pr_err!(
                    "nbds_max={}: must be 0 to {most_devices} with max_part={partitions}\n",
                    nbds_max.get()
                );
                return Err(EINVAL);
            }
        };
        let nr_hw_queues = match u32::try_from(pre_defined_connections.get()) {
            Ok(count) if count >= 1 => count,
            _ => {
                pr_err!(
                    "pre_defined_connections={}: must be at least 1\n",
                    pre_defined_connections.get()
                );
                return Err(EINVAL);
            }
        };
        // Minor 0 of each device is the whole disk.
        let rounded = (1_i32 << part_shift).saturating_sub(1);
        max_part.set(rounded);
        Ok(Self {
            devices,
            part_shift,
            nr_hw_queues,
        })
    }

    /// How many devices there can be, with the minor numbers that each has.
    pub(crate) fn most_devices(self) -> u32 {
        1 << MINOR_BITS.saturating_sub(self.part_shift)
    }

    /// How many minor numbers a device has.
    pub(crate) fn minors(self) -> u32 {
        1 << self.part_shift
    }
}

/// Whether devices have partitions.
pub(crate) fn partitions_allowed() -> bool {
    max_part.get() > 0
}
