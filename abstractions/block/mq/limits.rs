// SPDX-License-Identifier: GPL-2.0

//! Queue limits: what requests may look like.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{Disk, Operations};
use crate::{abstractions::deadline::Deadline, bindings as extra};
use kernel::{bindings, error::to_result, prelude::*};

/// Limits of the requests that a disk gets.
pub(crate) struct QueueLimits(bindings::queue_limits);

/// The largest logical block size that this kernel allows, in bytes.
#[inline]
pub(crate) const fn max_block_size() -> u64 {
    extra::BLK_LARGEST_BLOCK
}

impl Default for QueueLimits {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}

impl QueueLimits {
    /// The block layer's own defaults.
    #[inline]
    pub(crate) fn new() -> Self {
        Self(pin_init::zeroed())
    }

    #[inline]
    pub(super) fn into_raw(self) -> bindings::queue_limits {
        self.0
    }

    #[inline]
    fn feature(&mut self, bits: u32, on: bool) {
        if on {
            self.0.features |= bits;
        } else {
            self.0.features &= !bits;
        }
    }

    /// Largest request, in sectors of 512 bytes.
    #[inline]
    pub(crate) fn max_hw_sectors(&mut self, sectors: u32) -> &mut Self {
        self.0.max_hw_sectors = sectors;
        self
    }

    /// Size of request that the device likes best, in bytes.
    #[inline]
    pub(crate) fn io_opt(&mut self, bytes: u32) -> &mut Self {
        self.0.io_opt = bytes;
        self
    }

    /// Number of segments that a request may have, of any size.
    #[inline]
    pub(crate) fn max_segments(&mut self, segments: u16) -> &mut Self {
        self.0.max_segments = segments;
        self.0.max_segment_size = u32::MAX;
        self
    }

    /// Logical and physical block size, in bytes; a power of two up to [`max_block_size`].
    #[inline]
    pub(crate) fn block_size(&mut self, bytes: u32) -> &mut Self {
        self.0.logical_block_size = bytes;
        self.0.physical_block_size = bytes;
        self
    }

    /// Whether the device has a cache that must be flushed.
    #[inline]
    pub(crate) fn write_cache(&mut self, on: bool) -> &mut Self {
        self.feature(extra::BLK_FEAT_WRITE_CACHE, on);
        self
    }

    /// Whether the device can force a single write through its cache.
    #[inline]
    pub(crate) fn fua(&mut self, on: bool) -> &mut Self {
        self.feature(extra::BLK_FEAT_FUA, on);
        self
    }

    /// Whether the device is rotational.
    #[inline]
    pub(crate) fn rotational(&mut self, on: bool) -> &mut Self {
        self.feature(extra::BLK_FEAT_ROTATIONAL, on);
        self
    }

    /// Largest discard, in sectors of 512 bytes; 0 for none.
    #[inline]
    pub(crate) fn max_hw_discard_sectors(&mut self, sectors: u32) -> &mut Self {
        self.0.max_hw_discard_sectors = sectors;
        self
    }

    /// Largest write of zeroes, in sectors of 512 bytes; 0 for none.
    #[inline]
    pub(crate) fn max_write_zeroes_sectors(&mut self, sectors: u32) -> &mut Self {
        self.0.max_write_zeroes_sectors = sectors;
        self
    }
}

/// How long a change of limits waits for the limits' lock, and for requests, in milliseconds each.
const PATIENCE_MS: u32 = 2000;

impl<T: Operations> Disk<T> {
    /// Changes the limits of the disk's requests. Sleeps.
    ///
    /// While the disk has a capacity, or a cache that may be being flushed, its queue is frozen for
    /// the change, which waits for the requests in flight: at most two seconds, then this fails
    /// with `EBUSY`, and nothing is changed. The limits' own lock is held while `change` runs. It is
    /// waited for as long: a task that writes to `queue/` in sysfs holds it while it waits for requests.
    pub(crate) fn update_limits(&self, change: impl FnOnce(&mut QueueLimits)) -> Result {
        let queue = self.queue();
        let mut limits = QueueLimits(self.start_update()?);
        let had_cache = limits.0.features & extra::BLK_FEAT_WRITE_CACHE != 0;
        change(&mut limits);
        let frozen = match self.capacity() {
            0 if !had_cache => None,
            _ => match self.freeze_wait_timeout(PATIENCE_MS) {
                Ok(frozen) => Some(frozen),
                Err(error) => {
                    // SAFETY: The update was started above.
                    unsafe { extra::rnbd_helper_queue_limits_cancel_update(queue) };
                    return Err(error);
                }
            },
        };
        // SAFETY: The update was started above.
        let result = unsafe { bindings::queue_limits_commit_update(queue, &mut limits.0) };
        drop(frozen);
        to_result(result)
    }

    /// As `queue_limits_start_update()`, with a bound on the wait for the lock.
    fn start_update(&self) -> Result<bindings::queue_limits> {
        let queue = self.queue();
        let limits = Deadline::after(PATIENCE_MS).poll(|| {
            // SAFETY: The disk has its queue, which the lock is part of; the limits are read with the
            // lock held. The caller gives it back.
            unsafe {
                let locked = bindings::mutex_trylock(&raw mut (*queue).limits_lock) != 0;
                locked.then(|| (*queue).limits)
            }
        });
        limits.ok_or(EBUSY)
    }

    /// Makes the block layer send no more discards. Does not wait. Any context.
    ///
    /// Those that are under way still come, and so do others if [`Disk::update_limits`] runs
    /// meanwhile, or allows them later.
    #[inline]
    pub(crate) fn disable_discard(&self) {
        // SAFETY: The disk has its queue. The function stores a number that is read without a lock.
        unsafe { extra::rnbd_helper_blk_queue_disable_discard(self.queue()) };
    }

    /// The same for write zeroes: the block layer writes zeroed pages instead. Any context.
    #[inline]
    pub(crate) fn disable_write_zeroes(&self) {
        // SAFETY: As in `disable_discard`.
        unsafe { extra::rnbd_helper_blk_queue_disable_write_zeroes(self.queue()) };
    }
}
