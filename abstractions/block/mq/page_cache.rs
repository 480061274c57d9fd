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

    /// Whether the page caches of the disk and its partitions have blocks of at least `bytes`, a power of
    /// two, or get them when they are opened. I/O of smaller blocks than the disk's fails.
    ///
    /// Does not wait. If it holds for the logical block size it goes on to hold: none is made smaller than
    /// that one.
    pub(crate) fn page_cache_fits(&self, bytes: u32) -> bool {
        match self.try_lock_open() {
            Some(locked) => locked.page_cache_fits(bytes),
            // One that is not open may just be being opened.
            None => self.all_bdevs(|bdev| bdev.has_blocks_of(bytes)),
        }
    }

    fn all_bdevs(&self, test: impl Fn(&Bdev) -> bool) -> bool {
        let mut all = true;
        self.for_each_bdev(|bdev| all &= test(bdev));
        all
    }
}

impl<T: Operations> OpenLocked<'_, T> {
    /// As [`Disk::page_cache_fits`].
    pub(crate) fn page_cache_fits(&self, bytes: u32) -> bool {
        self.disk()
            .all_bdevs(|bdev| bdev.has_blocks_of(bytes) || !bdev.is_open())
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
