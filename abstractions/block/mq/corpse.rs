// SPDX-License-Identifier: GPL-2.0

//! What is left of a disk that was taken out.

use super::{bdev::Bdev, gen_disk::GenDisk, operations::Operations};
use kernel::prelude::*;

impl<T: Operations> GenDisk<T> {
    /// Takes the disk out of the system. Sleeps.
    pub(crate) fn remove(self) -> Corpse {
        // First: partitions leave the disk's table with it.
        let mut bdevs = KVec::new();
        self.for_each_bdev(|bdev| {
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
    /// Drops their pages, written or not; but none of an exclusive holder's. Whether there were any.
    /// Sleeps, but for no I/O: all of it has ended with the disk.
    pub(crate) fn drop_pages(&self) -> bool {
        self.0
            .iter()
            .fold(false, |any, bdev| bdev.drop_pages() || any)
    }
}
