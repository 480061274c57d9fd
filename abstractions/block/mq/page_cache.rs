// SPDX-License-Identifier: GPL-2.0

//! The block size of a disk's page cache.
//!
//! The block layer sets it when a block device is opened first, by the limits of that moment. A
//! device whose block size comes later, when its client has it open, has to set it anew: I/O of
//! smaller blocks would fail.
//!
//! C header: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use super::{bdev::Bdev, Disk, Operations};
use crate::bindings as extra;
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    prelude::*,
    time::{delay::fsleep, Delta},
};

/// How long locks of a page cache are waited for, in milliseconds.
const PATIENCE_MS: u32 = 2000;

impl<T: Operations> Disk<T> {
    /// Sees to it that the page caches of the disk and its partitions have blocks of at least `bytes`,
    /// a power of two. Clean pages are dropped for it. Sleeps, for two seconds at most for each.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a page cache with smaller blocks has pages that are dirty or in use, or is being
    /// written to; or if the blocks are to be larger than a page, and the disk is not empty: readers
    /// choose the size of a folio before they take a lock.
    pub(crate) fn raise_page_cache_block_size(&self, bytes: u32) -> Result {
        let bits = u8::try_from(bytes.trailing_zeros())?;
        let may = usize::from(bits) <= PAGE_SHIFT || self.capacity() == 0;
        let mut result = Ok(());
        self.for_each_bdev(|bdev| {
            if result.is_ok() && bdev.has_smaller_blocks(bits) {
                result = may.then_some(()).ok_or(EBUSY);
                result = result.and_then(|()| bdev.raise_blkbits(bits));
            }
        });
        result
    }
}

impl Bdev {
    /// Whether the page cache has blocks of less than 2^`bits` bytes.
    fn has_smaller_blocks(&self, bits: u8) -> bool {
        // SAFETY: The block device is valid, and so are its page cache and inode. It is a plain
        // number; whoever changes something by it looks again under the lock.
        unsafe {
            (&raw const (*(*(*self.as_raw()).bd_mapping).host).i_blkbits).read_volatile() < bits
        }
    }

    /// As `set_blocksize()`, but with a bound on the wait, and without I/O.
    fn raise_blkbits(&self, bits: u8) -> Result {
        let bdev = self.as_raw();
        // SAFETY: The block device is valid, and so are its page cache and inode.
        let (mapping, inode) = unsafe { ((*bdev).bd_mapping, (*(*bdev).bd_mapping).host) };
        // SAFETY: The locks are part of the inode and the mapping. This is the order in which
        // `set_blocksize()` takes them.
        unsafe {
            let _inode = write_lock(&raw mut (*inode).i_rwsem)?;
            let _invalidate = write_lock(&raw mut (*mapping).invalidate_lock)?;
            if !self.has_smaller_blocks(bits) {
                return Ok(());
            }
            bindings::invalidate_bdev(bdev);
            // What reclaim has left of pages is no page, but counts.
            bindings::invalidate_mapping_pages(mapping, 0, kernel::ffi::c_ulong::MAX);
            if !extra::rnbd_helper_mapping_empty(mapping) {
                return Err(EBUSY);
            }
            // Nothing is cached, and with both locks nothing comes: the geometry may change.
            (&raw mut (*inode).i_blkbits).write_volatile(bits);
            let order = u32::from(bits).saturating_sub(PAGE_SHIFT as u32);
            extra::rnbd_helper_mapping_set_folio_min_order(mapping, order);
        }
        Ok(())
    }
}

/// A semaphore that is held for writing.
struct WriteLocked(*mut bindings::rw_semaphore);

impl Drop for WriteLocked {
    fn drop(&mut self) {
        // SAFETY: It was taken by `write_lock`, whose caller keeps it.
        unsafe { bindings::up_write(self.0) };
    }
}

/// Takes `lock` for writing, or fails with `EBUSY` after a while. Sleeps.
///
/// # Safety
///
/// `lock` is valid and initialised, and stays so until what is returned is dropped.
unsafe fn write_lock(lock: *mut bindings::rw_semaphore) -> Result<WriteLocked> {
    for _ in 0..PATIENCE_MS {
        // SAFETY: By the safety requirement.
        if unsafe { bindings::down_write_trylock(lock) } != 0 {
            return Ok(WriteLocked(lock));
        }
        fsleep(Delta::from_millis(1));
    }
    Err(EBUSY)
}
