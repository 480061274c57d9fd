// SPDX-License-Identifier: GPL-2.0

//! Disks.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    attribute::{AttributeGroup, RawGroups},
    operations::{Operations, OperationsVTable},
    queue::AttachmentCell,
    tag_set::TagSet,
    QueueLimits,
};
use crate::{abstractions::deadline::Deadline, bindings as extra};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings, device,
    error::{from_err_ptr, to_result},
    fmt::{self, Write as _},
    prelude::*,
    static_lock_class,
    str::Formatter,
    sync::{
        aref::{ARef, AlwaysRefCounted},
        atomic::{Acquire, Atomic, Relaxed, Release},
    },
    types::{Opaque, ScopeGuard},
};

/// How many disks of this module were added, and are not freed.
static DISKS: Atomic<u32> = Atomic::new(0);

/// How long the module's exit waits for disks to be freed, in milliseconds.
const FREED_MS: u32 = 5000;

/// The `private_data` of a disk and `queuedata` of its queue.
#[pin_data]
pub(super) struct Private<T: Operations> {
    #[pin]
    tag_set: TagSet<T>,
    pub(super) attachment: AttachmentCell<T::Attachment>,
    fops: bindings::block_device_operations,
    groups: RawGroups,
    #[pin]
    data: T::DiskData,
}

impl<T: Operations> Private<T> {
    /// Drops the box of a disk that is being freed.
    ///
    /// # Safety
    ///
    /// `disk` was made by [`GenDiskBuilder`] for `T`; its private data must not be used after this.
    pub(super) unsafe fn free(disk: *mut bindings::gendisk) {
        // SAFETY: The builder put a pinned box there, by the safety requirement for the last time.
        drop(unsafe { Pin::new_unchecked(KBox::<Self>::from_raw((*disk).private_data.cast())) });
        DISKS.fetch_sub(1, Release);
    }
}

/// A disk, as its driver's functions get it.
///
/// # Invariants
///
/// `self.0` is a valid `struct gendisk` made by [`GenDiskBuilder`] for `T`.
#[repr(transparent)]
pub(crate) struct Disk<T: Operations>(Opaque<bindings::gendisk>, PhantomData<T>);

impl<T: Operations> Disk<T> {
    /// Waits until all disks are freed that were taken out; for the module's exit. The block layer lets
    /// go of a disk's module before it lets go of the disk: the last close may be about to free one,
    /// by code of this module. Sleeps, for five seconds at most.
    pub(crate) fn wait_for_all_freed() {
        let freed = || (DISKS.load(Acquire) == 0).then_some(());
        if Deadline::after(FREED_MS).poll(freed).is_none() {
            pr_warn!("something holds on to a disk that is gone\n");
        }
    }

    /// A disk from a pointer.
    ///
    /// # Safety
    ///
    /// `disk` must have been made by [`GenDiskBuilder`] for `T`, and stay valid for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(disk: *mut bindings::gendisk) -> &'a Self {
        // SAFETY: By the safety requirement; `Self` is transparent.
        unsafe { &*disk.cast::<Self>() }
    }

    #[inline]
    pub(super) fn as_raw(&self) -> *mut bindings::gendisk {
        self.0.get()
    }

    #[inline]
    pub(super) fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type invariant; a disk keeps its queue.
        unsafe { (*self.as_raw()).queue }
    }

    #[inline]
    pub(super) fn private(&self) -> &Private<T> {
        // SAFETY: By the type invariant; the box lives as long as the disk.
        unsafe { &*(*self.as_raw()).private_data.cast::<Private<T>>() }
    }

    #[inline]
    pub(super) fn tag_set(&self) -> *mut bindings::blk_mq_tag_set {
        self.private().tag_set.inner.get()
    }

    /// The driver's data of this disk.
    #[inline]
    pub(crate) fn data(&self) -> &T::DiskData {
        &self.private().data
    }

    /// The disk's device, for log lines.
    #[inline]
    pub(crate) fn device(&self) -> &device::Device {
        // SAFETY: By the type invariant; the device is part of the disk.
        unsafe { device::Device::from_raw(extra::rnbd_helper_disk_to_dev(self.as_raw())) }
    }

    /// A reference to the disk. It keeps the disk's memory, but does not keep the disk added.
    #[inline]
    pub(crate) fn get(&self) -> ARef<Self> {
        self.into()
    }

    /// The number of openers of the disk and its partitions. Stable only under the open lock.
    #[inline]
    pub(crate) fn openers(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_disk_openers(self.as_raw()) }
    }

    /// The capacity in sectors of 512 bytes.
    #[inline]
    pub(crate) fn capacity(&self) -> u64 {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_get_capacity(self.as_raw()) }
    }

    /// Sets the capacity in sectors, and sends a change event. May sleep.
    ///
    /// The block layer itself sends an event only for a change from one size to another, not for
    /// one from or to zero.
    pub(crate) fn set_capacity_and_notify(&self, sectors: u64) {
        // SAFETY: By the type invariant.
        if !unsafe { bindings::set_capacity_and_notify(self.as_raw(), sectors) } {
            self.uevent_change();
        }
    }

    /// Sends user space a change event of this disk. May sleep.
    #[inline]
    pub(crate) fn uevent_change(&self) {
        // SAFETY: By the type invariant; the device's kobject is initialised.
        unsafe {
            bindings::kobject_uevent(
                &raw mut (*extra::rnbd_helper_disk_to_dev(self.as_raw())).kobj,
                bindings::kobject_action_KOBJ_CHANGE,
            )
        };
    }

    /// Has partitions scanned when the disk is opened next (`GD_NEED_PART_SCAN`).
    #[inline]
    pub(crate) fn need_part_scan(&self) {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_disk_need_part_scan(self.as_raw()) };
    }

    /// Has the partition table not read when the disk is opened next.
    #[inline]
    pub(crate) fn clear_need_part_scan(&self) {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_disk_clear_need_part_scan(self.as_raw()) };
    }

    /// Whether the disk is read-only.
    #[inline]
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_get_disk_ro(self.as_raw()) }
    }

    /// Makes the disk read-only, or writable. May sleep.
    #[inline]
    pub(crate) fn set_read_only(&self, read_only: bool) {
        // SAFETY: By the type invariant.
        unsafe { bindings::set_disk_ro(self.as_raw(), read_only) };
    }
}

// SAFETY: A disk may be used from any thread: what its functions change, they lock.
unsafe impl<T: Operations> Send for Disk<T> {}

// SAFETY: As above.
unsafe impl<T: Operations> Sync for Disk<T> {}

// SAFETY: The reference is one to the disk's device, whose release frees the disk.
unsafe impl<T: Operations> AlwaysRefCounted for Disk<T> {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::get_device(extra::rnbd_helper_disk_to_dev(self.as_raw())) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: By the safety requirement the caller owns a reference.
        unsafe { bindings::put_disk(obj.as_ptr().cast()) };
    }
}

/// A disk to be made.
pub(crate) struct GenDiskBuilder {
    /// Major number, registered by the driver.
    pub(crate) major: u32,
    /// First minor number.
    pub(crate) first_minor: u32,
    /// How many minor numbers the disk and its partitions have.
    pub(crate) minors: u32,
    /// Number of hardware queues at first; the block layer caps it at the number of CPUs.
    pub(crate) nr_hw_queues: u32,
    /// Number of requests of each hardware queue.
    pub(crate) queue_depth: u32,
    /// Whether it starts with the block layer's default I/O scheduler, or without one
    /// (`BLK_MQ_F_NO_SCHED_BY_DEFAULT`). User space can choose another at any time.
    pub(crate) scheduled: bool,
    /// Limits of its requests.
    pub(crate) limits: QueueLimits,
}

impl GenDiskBuilder {
    /// Allocates the disk, with capacity 0, and adds it (`device_add_disk`). May sleep.
    pub(crate) fn build<T: Operations>(
        self,
        owner: &'static ThisModule,
        name: fmt::Arguments<'_>,
        attributes: &AttributeGroup<T>,
        data: impl PinInit<T::DiskData, Error>,
    ) -> Result<GenDisk<T>> {
        let private = KBox::pin_init(
            try_pin_init!(Private::<T> {
                tag_set <- TagSet::new(self.nr_hw_queues, self.queue_depth, self.scheduled),
                attachment: AttachmentCell::new(),
                fops: OperationsVTable::<T>::fops(owner),
                groups: RawGroups::new(attributes)?,
                data <- data,
            }),
            GFP_KERNEL,
        )?;
        let mut limits = self.limits.into_raw();
        // SAFETY: The box is unpinned only to be pinned again, by `from_disk` or by the guard.
        let private = KBox::into_raw(unsafe { Pin::into_inner_unchecked(private) });
        let free_private = ScopeGuard::new(|| {
            // SAFETY: No disk has taken the box over on this path.
            drop(unsafe { Pin::new_unchecked(KBox::from_raw(private)) });
        });
        // SAFETY: The tag set is initialised, and outlives the disk, for `free_disk` drops it.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                (*private).tag_set.inner.get(),
                &mut limits,
                private.cast(),
                static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: The disk is not added yet: `put_disk` frees it, without `free_disk`.
        let free_disk = ScopeGuard::new(move || unsafe { bindings::put_disk(disk) });

        // SAFETY: The disk is valid, and is not shared yet.
        let raw = unsafe { &mut *disk };
        raw.major = self.major as i32;
        raw.first_minor = self.first_minor as i32;
        raw.minors = self.minors as i32;
        raw.private_data = private.cast();
        // SAFETY: The box is valid, and lives as long as the disk.
        raw.fops = unsafe { &raw const (*private).fops };
        // The name stays NUL-terminated: the array was zeroed, and its last byte is not offered.
        let (_, room) = raw.disk_name.split_last_mut().ok_or(EINVAL)?;
        Formatter::new(room).write_fmt(name).map_err(|_| EINVAL)?;

        // SAFETY: The disk is filled in.
        to_result(unsafe {
            bindings::device_add_disk(core::ptr::null_mut(), disk, (*private).groups.as_ptr())
        })?;

        free_disk.dismiss();
        free_private.dismiss();
        DISKS.add(1, Relaxed);
        // SAFETY: `alloc_disk` gave one reference, which goes to the `ARef`; the pointer is not
        // null, for it was dereferenced above.
        let disk = unsafe { ARef::from_raw(NonNull::new_unchecked(disk.cast::<Disk<T>>())) };
        Ok(GenDisk { disk })
    }
}

/// A disk that was added. Dropping this deletes it (`del_gendisk`); its memory stays while there
/// are references.
///
/// # Invariants
///
/// The disk was added, and is deleted by this value alone.
pub(crate) struct GenDisk<T: Operations> {
    disk: ARef<Disk<T>>,
}

impl<T: Operations> core::ops::Deref for GenDisk<T> {
    type Target = Disk<T>;

    #[inline]
    fn deref(&self) -> &Disk<T> {
        &self.disk
    }
}

impl<T: Operations> Drop for GenDisk<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::del_gendisk(self.disk.as_raw()) };
    }
}
