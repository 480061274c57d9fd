// SPDX-License-Identifier: GPL-2.0

//! A disk that is not open: the moment in which the block layer holds nothing of its medium.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{Disk, Operations};
use crate::bindings as extra;
use kernel::{bindings, prelude::*};

/// Proof that a disk is not open, neither itself nor a partition, and is not opened meanwhile.
///
/// The last close has written back or dropped what the page cache held, and waited for it.
///
/// # Invariants
///
/// The disk's `open_mutex` is held for as long as this lives, and its count of openers is zero. If
/// `unlock` is set the mutex is this value's to give back.
pub(crate) struct Unopened<'a, T: Operations> {
    disk: &'a Disk<T>,
    unlock: bool,
}

impl<'a, T: Operations> Unopened<'a, T> {
    /// The proof, if the disk is not open.
    ///
    /// # Safety
    ///
    /// The caller holds the disk's `open_mutex` for `'a`.
    pub(super) unsafe fn with_open_mutex(disk: &'a Disk<T>) -> Option<Self> {
        // INVARIANT: By the safety requirement, and as was just seen.
        (disk.openers() == 0).then_some(Self {
            disk,
            unlock: false,
        })
    }

    /// Forgets the disk's medium: drops the partitions, and has errors of earlier write-back count as
    /// seen, so that the next opener is not told of them. Sleeps, but for no I/O.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the disk has a capacity; `ENXIO` if it was taken out of the system.
    pub(crate) fn forget_medium(&self) -> Result {
        let disk = self.disk.as_raw();
        if self.disk.capacity() != 0 {
            return Err(EBUSY);
        }
        // SAFETY: By the type invariant the lock is held that this wants. Without a capacity no
        // partition table is read.
        kernel::error::to_result(unsafe { bindings::bdev_disk_changed(disk, false) })?;
        let mut since = 0;
        // SAFETY: The disk has its block device, with its page cache. The error is an atomic word.
        unsafe {
            bindings::errseq_check_and_advance(
                &raw mut (*(*(*disk).part0).bd_mapping).wb_err,
                &mut since,
            )
        };
        Ok(())
    }
}

impl<T: Operations> Drop for Unopened<'_, T> {
    fn drop(&mut self) {
        if self.unlock {
            // SAFETY: By the type invariant.
            unsafe { bindings::mutex_unlock(&raw mut (*self.disk.as_raw()).open_mutex) };
        }
    }
}

impl<T: Operations> Disk<T> {
    /// The proof that the disk is not open, if it is not, and if no task is just opening or closing
    /// it. Waits for none.
    pub(crate) fn try_unopened(&self) -> Option<Unopened<'_, T>> {
        // SAFETY: The lock is part of the disk.
        if unsafe { bindings::mutex_trylock(&raw mut (*self.as_raw()).open_mutex) } == 0 {
            return None;
        }
        // INVARIANT: The lock was taken above, and `drop` gives it back; if the disk is open, at once.
        let locked = Unopened {
            disk: self,
            unlock: true,
        };
        (self.openers() == 0).then_some(locked)
    }

    /// Gives the disk the next sequence number, by which user space tells that another medium is in
    /// it. Clean pages are dropped. May sleep.
    pub(crate) fn next_diskseq(&self) {
        let disk = self.as_raw();
        // SAFETY: By the type invariant of a disk. The function sends a uevent of its own, before the
        // medium is there; that is held back.
        unsafe {
            let device = extra::rnbd_helper_disk_to_dev(disk);
            extra::rnbd_helper_dev_set_uevent_suppress(device, true);
            bindings::disk_force_media_change(disk);
            extra::rnbd_helper_dev_set_uevent_suppress(device, false);
        }
    }
}
