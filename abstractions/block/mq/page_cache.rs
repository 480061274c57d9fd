// SPDX-License-Identifier: GPL-2.0

//! The block size of a disk's page cache.
//!
//! The block layer sets it when a block device is opened first: at least the logical block size of that
//! moment. After that it is its exclusive user's alone, such as a filesystem that is being mounted:
//! whoever looks buffers up by one size and makes them by another does so for ever. So it is not changed
//! here; it is looked whether it suits.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{bdev::Bdev, unopened::OpenLocked, Disk, Operations};

impl<T: Operations> Disk<T> {
    /// The logical block size, in bytes. Any context.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: The disk has its queue. It is a plain number.
        unsafe { (&raw const (*self.queue()).limits.logical_block_size).read_volatile() }
    }
}

impl<T: Operations> OpenLocked<'_, T> {
    /// Whether the page caches of the disk and its partitions have blocks of at least `bytes`, a power of
    /// two, or get them when they are opened, once the disk's logical block size is that. I/O of smaller
    /// blocks than the disk's fails.
    pub(crate) fn page_cache_fits(&self, bytes: u32) -> bool {
        let mut fits = true;
        self.disk()
            .for_each_bdev(|bdev| fits &= bdev.has_blocks_of(bytes) || !bdev.is_open());
        fits
    }
}

impl Bdev {
    /// Whether blocks of the page cache have at least so many bytes.
    fn has_blocks_of(&self, bytes: u32) -> bool {
        // SAFETY: The block device is valid, and so are its page cache and inode. It is a plain number.
        let bits = unsafe {
            (&raw const (*(*(*self.as_raw()).bd_mapping).host).i_blkbits).read_volatile()
        };
        u32::from(bits) >= bytes.trailing_zeros()
    }

    /// Whether it is open, itself or, for a whole disk, a partition. Stable only under the open lock.
    pub(super) fn is_open(&self) -> bool {
        // SAFETY: The block device is valid. It is a plain number.
        unsafe { (&raw const (*self.as_raw()).bd_openers.counter).read_volatile() != 0 }
    }
}
