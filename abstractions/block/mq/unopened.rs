// SPDX-License-Identifier: GPL-2.0

//! A disk that is not open: the moment in which the block layer holds nothing of its medium.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{Disk, Operations};
use crate::{abstractions::deadline::Deadline, bindings as extra};
use kernel::{bindings, prelude::*, types::NotThreadSafe};

/// Proof that a disk is not open, neither itself nor a partition, and is not opened meanwhile.
///
/// The last close has written back or dropped what the page cache held, and waited for it.
///
/// # Invariants
///
/// The disk's `open_mutex` is held for as long as this lives, and its count of openers is zero.
pub(crate) struct Unopened<'a, T: Operations> {
    disk: &'a Disk<T>,
    /// The mutex, if it is this value's to give back.
    _locked: Option<OpenLocked<'a, T>>,
    /// Its owner alone may give a mutex back.
    _not_send: NotThreadSafe,
}

/// The disk's `open_mutex`, held: nobody opens or closes it, or a partition, and nobody becomes its
/// exclusive user.
pub(crate) struct OpenLocked<'a, T: Operations>(&'a Disk<T>, NotThreadSafe);

impl<T: Operations> OpenLocked<'_, T> {
    #[inline]
    pub(super) fn disk(&self) -> &Disk<T> {
        self.0
    }
}

impl<T: Operations> Drop for OpenLocked<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: It was taken by `try_lock_open`, in this task.
        unsafe { bindings::mutex_unlock(&raw mut (*self.0.as_raw()).open_mutex) };
    }
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
            _locked: None,
            _not_send: NotThreadSafe,
        })
    }

    /// Forgets the disk's medium: errors of earlier write-back count as seen, so that the next opener
    /// is not told of them, and what an opener has set read-only (`BLKROSET`) is so no more. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the disk has a capacity, or partitions.
    pub(crate) fn forget_medium(&self) -> Result {
        if self.disk.capacity() != 0 || self.disk.has_partitions() {
            return Err(EBUSY);
        }
        let mut since = 0;
        // SAFETY: The disk has its block device, with its page cache. The error and the flags are
        // atomic words.
        unsafe {
            let bdev = (*self.disk.as_raw()).part0;
            bindings::errseq_check_and_advance(&raw mut (*(*bdev).bd_mapping).wb_err, &mut since);
            extra::rnbd_helper_bdev_clear_read_only(bdev);
        }
        Ok(())
    }
}

impl<T: Operations> Disk<T> {
    /// Whether the disk has partitions. Any context.
    pub(crate) fn has_partitions(&self) -> bool {
        let mut index = 0;
        // SAFETY: The table is part of the disk. What is found is not looked at.
        let entry = unsafe {
            bindings::xa_find_after(
                &raw mut (*self.as_raw()).part_tbl,
                &mut index,
                kernel::ffi::c_ulong::MAX,
                bindings::XA_PRESENT,
            )
        };
        !entry.is_null()
    }

    /// The proof that the disk is not open, if it is not, and if no other task holds its open lock: to
    /// open or close it, or for `sync`. Does not wait for such a task.
    pub(crate) fn try_unopened(&self) -> Option<Unopened<'_, T>> {
        let locked = self.try_lock_open()?;
        // INVARIANT: The lock was taken above, and goes with the value.
        (self.openers() == 0).then_some(Unopened {
            disk: self,
            _locked: Some(locked),
            _not_send: NotThreadSafe,
        })
    }

    /// The disk's open lock, if no other task holds it.
    pub(super) fn try_lock_open(&self) -> Option<OpenLocked<'_, T>> {
        // SAFETY: The lock is part of the disk.
        let locked = unsafe { bindings::mutex_trylock(&raw mut (*self.as_raw()).open_mutex) } != 0;
        locked.then(|| OpenLocked(self, NotThreadSafe))
    }

    /// The same, after so many milliseconds at most. Sleeps.
    pub(crate) fn lock_open_timeout(&self, ms: u32) -> Option<OpenLocked<'_, T>> {
        Deadline::after(ms).poll(|| self.try_lock_open())
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
