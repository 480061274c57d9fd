// SPDX-License-Identifier: GPL-2.0

//! The block devices of a disk: its own and those of its partitions.
//!
//! C header: [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use super::{Disk, Operations};
use crate::bindings as extra;
use core::ptr::NonNull;
use kernel::{bindings, fmt, sync::rcu};

/// A reference to a `struct block_device`, which keeps its memory and its page cache.
///
/// # Invariants
///
/// `0` is valid, and a reference to its device is this value's.
pub(super) struct Bdev(NonNull<bindings::block_device>);

impl Bdev {
    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::block_device {
        self.0.as_ptr()
    }
}

impl Bdev {
    /// Sets its size, in units of 512 bytes, as the block layer does with a partition's. Any context.
    pub(super) fn set_nr_sectors(&self, sectors: u64) {
        // SAFETY: The block device is valid.
        unsafe { extra::rnbd_helper_bdev_set_nr_sectors(self.as_raw(), sectors) };
    }

    /// Drops all pages of the page cache, written or not; but none of an exclusive holder's, which may
    /// have hold of buffers. Whether there were any. Sleeps, and waits for write-back that is under way.
    pub(super) fn drop_pages(&self) -> bool {
        let bdev = self.as_raw();
        // SAFETY: The block device is valid, and so is its page cache. The holder is read as a number.
        unsafe {
            let mapping = (*bdev).bd_mapping;
            let held = !(&raw const (*bdev).bd_holder).read_volatile().is_null();
            let any = !held && (&raw const (*mapping).nrpages).read_volatile() != 0;
            if any {
                bindings::truncate_inode_pages(mapping, 0);
            }
            any
        }
    }
}

// SAFETY: A block device may be referred to and released anywhere.
unsafe impl Send for Bdev {}

// SAFETY: As above; what shared references allow is atomic, or under locks of the block device.
unsafe impl Sync for Bdev {}

impl Clone for Bdev {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant.
        unsafe { bindings::get_device(&raw mut (*self.as_raw()).bd_device) };
        // INVARIANT: The reference was taken above.
        Self(self.0)
    }
}

impl Drop for Bdev {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::put_device(&raw mut (*self.as_raw()).bd_device) };
    }
}

impl<T: Operations> Disk<T> {
    /// Calls `visit` for the disk's block device, then for those of its partitions that are there.
    /// May sleep. Takes no lock of the disk: partitions may come and go meanwhile.
    pub(super) fn for_each_bdev(&self, mut visit: impl FnMut(&Bdev)) {
        let mut index = 0;
        let mut next = self.bdev_from(&mut index, false);
        while let Some(bdev) = next {
            visit(&bdev);
            next = self.bdev_from(&mut index, true);
        }
    }

    /// The first block device at `index` or, if so wanted, `after` it, and that one's index.
    fn bdev_from(&self, index: &mut kernel::ffi::c_ulong, after: bool) -> Option<Bdev> {
        let max = kernel::ffi::c_ulong::MAX;
        // SAFETY: The table is part of the disk.
        let table = unsafe { &raw mut (*self.as_raw()).part_tbl };
        let mut after = after;
        loop {
            let _guard = rcu::read_lock();
            // SAFETY: The table is initialised; any entry counts.
            let entry = unsafe {
                match after {
                    false => bindings::xa_find(table, index, max, bindings::XA_PRESENT),
                    true => bindings::xa_find_after(table, index, max, bindings::XA_PRESENT),
                }
            };
            let bdev = NonNull::new(entry.cast::<bindings::block_device>())?;
            // SAFETY: Block devices are freed by RCU, and the read lock has been held since this one
            // was found in the table.
            let kobj = unsafe {
                bindings::kobject_get_unless_zero(&raw mut (*bdev.as_ptr()).bd_device.kobj)
            };
            if !kobj.is_null() {
                // INVARIANT: The reference was taken above.
                return Some(Bdev(bdev));
            }
            after = true;
        }
    }

    /// The disk's exclusive holder. Waits for no lock. It may have changed when this returns.
    pub(crate) fn bd_holder(&self) -> Option<BdHolder> {
        let mut found = None;
        self.for_each_bdev(|bdev| {
            let bdev = bdev.as_raw();
            // SAFETY: The block device is valid. The fields may change meanwhile: they are read as
            // numbers, and not followed.
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

    /// Whether the caller itself is the exclusive holder of the disk.
    #[inline]
    pub(crate) fn is_excl(self) -> bool {
        self.excl
    }
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
