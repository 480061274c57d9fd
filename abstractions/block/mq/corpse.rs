// SPDX-License-Identifier: GPL-2.0

//! What is left of a disk that was taken out.

use super::{bdev::Bdev, gen_disk::GenDisk, operations::Operations};
use kernel::{bindings, prelude::*};

impl<T: Operations> GenDisk<T> {
    /// Takes the disk out of the system. All I/O of it fails from now on, nothing is written back, and
    /// its exclusive holders are told that it is dead, as one that was pulled out
    /// (`blk_mark_disk_dead`). Sleeps.
    pub(crate) fn remove(self) -> Corpse {
        // SAFETY: The disk was added, and is there until it is dropped.
        unsafe { bindings::blk_mark_disk_dead(self.as_raw()) };
        // First: partitions leave the disk's table with it.
        let mut bdevs = KVec::new();
        self.for_each_bdev(|bdev| {
            // Nothing more is to be written to it.
            bdev.set_nr_sectors(0);
            // Without memory some keep their pages until they are closed.
            let _ = bdevs.push(bdev.clone(), GFP_KERNEL);
        });
        drop(self);
        Corpse(bdevs)
    }
}

/// The page caches of a disk that was taken out, and of its partitions.
///
/// Nothing writes back what is dirty there, and all that write to whatever device wait when too much
/// is.
pub(crate) struct Corpse(KVec<Bdev>);

impl Corpse {
    /// Whether one of them is open still. Another may be about to be closed.
    pub(crate) fn is_open(&self) -> bool {
        self.0.iter().any(Bdev::is_open)
    }

    /// Drops their pages, written or not; but none of an exclusive holder's. Whether there were any.
    /// Sleeps, but for no I/O: all of it has ended with the disk.
    pub(crate) fn drop_pages(&self) -> bool {
        self.0
            .iter()
            .fold(false, |any, bdev| bdev.drop_pages() || any)
    }
}
