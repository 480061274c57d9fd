// SPDX-License-Identifier: GPL-2.0

//! Exclusive holders of a disk, and changing what is behind a disk that has none.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{Disk, Operations};
use core::ptr::NonNull;
use kernel::{bindings, error::to_result, fmt, prelude::*, types::ScopeGuard};

/// The block layer's exclusive claim on a disk, held for a moment by its driver.
///
/// No exclusive holder (a filesystem, device-mapper, swap, an `O_EXCL` opener) has the disk or one
/// of its partitions. One that wants it waits until this is dropped.
///
/// # Invariants
///
/// If it is `prepared`, that was with the disk itself as the holder. Else the caller of the driver
/// has the disk open exclusively, for as long as this lives.
pub(crate) struct Claim<'a, T: Operations> {
    disk: &'a Disk<T>,
    prepared: bool,
}

/// How the caller of an ioctl has the disk open (`blk_mode_t`). The block layer says so, and a
/// driver cannot make one up.
#[derive(Clone, Copy)]
pub(crate) struct IoctlMode {
    /// The whole disk exclusively (`BLK_OPEN_EXCL`).
    pub(super) excl: bool,
}

impl IoctlMode {
    /// Not at all, or not exclusively.
    pub(crate) const NOT_EXCL: Self = Self { excl: false };
}

/// The exclusive holder of a disk, as far as the kernel knows it.
pub(crate) struct BdHolder {
    partition: Option<u8>,
    filesystem: bool,
}

impl fmt::Display for BdHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.filesystem {
            write!(f, "a mounted filesystem")?;
        } else {
            write!(f, "device-mapper, RAID, swap or an exclusive opener")?;
        }
        match self.partition {
            Some(number) => write!(f, " on partition {number}"),
            None => Ok(()),
        }
    }
}

impl<T: Operations> Disk<T> {
    /// Claims the disk for its driver (`bd_prepare_to_claim`). Sleeps while another task is just
    /// claiming it; takes no other lock.
    ///
    /// Fails with `EBUSY` if the disk, or one of its partitions, has an exclusive holder. The
    /// caller of an ioctl, which has it open with `mode`, may be that holder.
    pub(crate) fn claim(&self, mode: IoctlMode) -> Result<Claim<'_, T>> {
        if mode.excl {
            return Ok(Claim {
                disk: self,
                prepared: false,
            });
        }
        // SAFETY: The disk has its block device; any pointer that no other holder uses will do.
        to_result(unsafe {
            bindings::bd_prepare_to_claim(
                (*self.as_raw()).part0,
                self.as_raw().cast(),
                core::ptr::null(),
            )
        })?;
        // INVARIANT: It was prepared above.
        Ok(Claim {
            disk: self,
            prepared: true,
        })
    }

    /// The disk's exclusive holder. Takes the disk's open lock. For a message only: it may have
    /// changed when this returns.
    pub(crate) fn bd_holder(&self) -> Option<BdHolder> {
        let mut found = None;
        self.for_each_bdev(|bdev| {
            // SAFETY: `for_each_bdev` passes a valid block device. The fields may change
            // meanwhile: they are read as numbers, and not followed.
            let (holder, ops, number) = unsafe {
                (
                    (&raw const (*bdev).bd_holder).read_volatile(),
                    (&raw const (*bdev).bd_holder_ops).read_volatile(),
                    (*bdev).__bd_flags.counter as u8,
                )
            };
            // A partition tells more than the disk, which is marked as well when one is in use.
            if !holder.is_null() {
                found = Some(BdHolder {
                    partition: (number != 0).then_some(number),
                    filesystem: !ops.is_null(),
                });
            }
        });
        found
    }

    /// Calls `visit` for the disk's block device and those of its partitions, under the disk's
    /// open lock.
    fn for_each_bdev(&self, mut visit: impl FnMut(*mut bindings::block_device)) {
        let disk = self.as_raw();
        // SAFETY: The lock is part of the disk. While it is held partitions neither come nor go.
        unsafe { bindings::mutex_lock(&raw mut (*disk).open_mutex) };
        let _unlock = ScopeGuard::new(move || {
            // SAFETY: It was taken above.
            unsafe { bindings::mutex_unlock(&raw mut (*disk).open_mutex) };
        });
        // SAFETY: The table is part of the disk, and holds valid block devices.
        let table = unsafe { &raw mut (*disk).part_tbl };
        let mut index = 0;
        // SAFETY: As above; any entry counts.
        let mut entry = unsafe {
            bindings::xa_find(
                table,
                &mut index,
                kernel::ffi::c_ulong::MAX,
                bindings::XA_PRESENT,
            )
        };
        while let Some(bdev) = NonNull::new(entry.cast::<bindings::block_device>()) {
            visit(bdev.as_ptr());
            // SAFETY: As above.
            entry = unsafe {
                bindings::xa_find_after(
                    table,
                    &mut index,
                    kernel::ffi::c_ulong::MAX,
                    bindings::XA_PRESENT,
                )
            };
        }
    }
}

impl<T: Operations> Claim<'_, T> {
    /// Tells the block layer that the medium has changed: the page cache of the disk and its
    /// partitions is dropped, dirty or not, mapped or not, and the disk's sequence number is
    /// incremented (`disk_force_media_change`). That write-back to the old one failed is reported
    /// to present openers alone. Takes the disk's open lock; sleeps, but for no I/O of dirty data.
    pub(crate) fn force_media_change(&self) {
        self.disk.for_each_bdev(|bdev| {
            let mut since = 0;
            // SAFETY: `for_each_bdev` passes a valid block device, with its page cache. With the
            // claim, no filesystem's buffers are among the pages that go. The error is an atomic
            // word of the page cache; a later opener takes one that was seen for an old one.
            unsafe {
                bindings::invalidate_bdev(bdev);
                bindings::truncate_inode_pages((*bdev).bd_mapping, 0);
                bindings::errseq_check_and_advance(
                    &raw mut (*(*bdev).bd_mapping).wb_err,
                    &mut since,
                );
            }
        });
        // SAFETY: The disk is valid; there is no holder to be told that it died.
        unsafe { bindings::disk_force_media_change(self.disk.as_raw()) };
    }
}

impl<T: Operations> Drop for Claim<'_, T> {
    fn drop(&mut self) {
        if !self.prepared {
            return;
        }
        // SAFETY: By the type invariant.
        unsafe {
            bindings::bd_abort_claiming((*self.disk.as_raw()).part0, self.disk.as_raw().cast())
        };
    }
}
