// SPDX-License-Identifier: GPL-2.0

//! The trait that a driver implements, and the C function tables made from it.
//!
//! C headers: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bdev::IoctlMode,
    gen_disk::{Disk, Private},
    request::{Pdu, Request},
    unopened::Unopened,
};
use crate::bindings as extra;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_result, VTABLE_DEFAULT_ERROR},
    ffi,
    prelude::*,
};

/// What to do about a request that took too long (`enum blk_eh_timer_return`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timeout {
    /// Wait once more for as long (`BLK_EH_RESET_TIMER`).
    ResetTimer,
    /// It is, or soon will be, given back by what the driver has done (`BLK_EH_DONE`): this function is
    /// not called for it again before.
    Done,
}

/// How the disk or a partition is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenMode {
    /// For writing (`BLK_OPEN_WRITE`).
    pub(crate) writable: bool,
    /// Exclusively (`BLK_OPEN_EXCL`): `O_EXCL`, a mount, or the like.
    pub(crate) exclusive: bool,
}

/// A block driver. All functions may sleep.
#[vtable]
pub(crate) trait Operations: Sized + 'static {
    /// The driver's data of one disk.
    type DiskData: Send + Sync;

    /// What requests are served with, if the disk is attached. See [`Disk::attach`].
    type Attachment: Send + Sync;

    /// The driver's data of one request. Initialised once for each tag, and not reset when the tag
    /// is used again.
    type RequestData: Default + Send + Sync;

    /// Serves a request of the hardware queue numbered `queue`.
    ///
    /// The driver must call [`Request::finish`], now or later. `last` tells that no other request
    /// follows at once (`bd->last`). `attachment` is what [`Disk::attach`] put there, and
    /// stays valid for the call.
    fn queue_rq(
        disk: &Disk<Self>,
        attachment: Option<&Self::Attachment>,
        request: &Request<Self>,
        queue: u32,
        last: bool,
    );

    /// The last of several requests of the hardware queue numbered `queue` was not marked as
    /// `last`, but no other follows at once.
    fn commit_rqs(_disk: &Disk<Self>, _attachment: Option<&Self::Attachment>, _queue: u32) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Requests were given back with
    /// [`Outcome::RequeueDelayed`](super::Outcome::RequeueDelayed), and wait. The driver sees to it that
    /// they come again: [`Disk::delay_kick_requeue_list`]. Any context that `finish` was called in.
    fn requeued(disk: &Disk<Self>, attachment: Option<&Self::Attachment>);

    /// A request was not finished within the queue's time-out.
    fn timeout(
        disk: &Disk<Self>,
        attachment: Option<&Self::Attachment>,
        request: &Request<Self>,
    ) -> Timeout;

    /// The disk or a partition is opened. The disk's open lock is held.
    fn open(_disk: &Disk<Self>, _mode: OpenMode) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The disk or a partition was closed; `unopened` is there if it is not open any more. The disk's
    /// open lock is held.
    fn release(_disk: &Disk<Self>, _unopened: Option<Unopened<'_, Self>>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// An ioctl that the block layer does not know, from a 64-bit or a 32-bit task.
    fn ioctl(_disk: &Disk<Self>, _mode: IoctlMode, _cmd: u32, _arg: usize) -> Result<i32> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// The C functions that call a driver's [`Operations`].
pub(super) struct OperationsVTable<T: Operations>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    /// `blk_mq_ops` for `T`.
    pub(super) const MQ_OPS: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        queue_rqs: Some(Self::queue_rqs),
        commit_rqs: if T::HAS_COMMIT_RQS {
            Some(Self::commit_rqs)
        } else {
            None
        },
        timeout: Some(Self::timeout),
        complete: Some(Self::complete),
        init_request: Some(Self::init_request),
        exit_request: Some(Self::exit_request),
        ..pin_init::zeroed()
    };

    /// `block_device_operations` for `T`, of the module `owner`.
    pub(super) fn fops(owner: &ThisModule) -> bindings::block_device_operations {
        bindings::block_device_operations {
            owner: owner.as_ptr(),
            open: if T::HAS_OPEN { Some(Self::open) } else { None },
            release: if T::HAS_RELEASE {
                Some(Self::release)
            } else {
                None
            },
            ioctl: if T::HAS_IOCTL {
                Some(Self::ioctl)
            } else {
                None
            },
            compat_ioctl: if T::HAS_IOCTL {
                Some(Self::ioctl)
            } else {
                None
            },
            free_disk: Some(Self::free_disk),
            ..pin_init::zeroed()
        }
    }

    /// The private data that a queue leads to.
    ///
    /// # Safety
    ///
    /// `queue` belongs to a disk made by [`super::GenDiskBuilder`] for `T`, valid for `'a`.
    #[inline]
    pub(super) unsafe fn private<'a>(queue: *mut bindings::request_queue) -> &'a Private<T> {
        // SAFETY: By the safety requirement `queuedata` is what the builder put there.
        unsafe { &*(*queue).queuedata.cast::<Private<T>>() }
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`], and for [`Self::queue_rqs`].
    unsafe extern "C" fn queue_rq(
        hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: blk-mq passes a valid context of a queue of `T`, which outlives the call.
        let (queue, number) = unsafe { ((*hctx).queue, (*hctx).queue_num) };
        // SAFETY: As above; a queue that dispatches has its disk.
        let (private, disk) = unsafe { (Self::private(queue), Disk::from_raw((*queue).disk)) };
        // SAFETY: blk-mq hands the request over; it is never given back with an error status.
        let (request, last) = unsafe { (Request::<T>::start((*bd).rq), (*bd).last) };
        // SAFETY: `request` lives to the end of this function, and keeps the queue from freezing.
        let attachment = unsafe { private.attachment.get() };
        T::queue_rq(disk, attachment, &request, number, last);
        // Only now: with this reference the queue may freeze, and `attachment` go.
        drop(request);
        bindings::BLK_STS_OK as bindings::blk_status_t
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`].
    unsafe extern "C" fn queue_rqs(list: *mut bindings::rq_list) {
        loop {
            // SAFETY: blk-mq passes a valid list.
            let rq = unsafe { extra::rnbd_helper_rq_list_pop(list) };
            if rq.is_null() {
                return;
            }
            // SAFETY: The list holds requests of one queue, and each has its context.
            let hctx = unsafe { (*rq).mq_hctx };
            // SAFETY: As above; the list's head is the next of its requests, or null.
            let last = unsafe {
                (*list)
                    .head
                    .as_ref()
                    .is_none_or(|next| next.mq_hctx != hctx)
            };
            let bd = bindings::blk_mq_queue_data { rq, last };
            // SAFETY: blk-mq hands over the requests of the list, of a queue that dispatches. No
            // status but success comes back.
            unsafe { Self::queue_rq(hctx, &bd) };
        }
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`].
    unsafe extern "C" fn commit_rqs(hctx: *mut bindings::blk_mq_hw_ctx) {
        // SAFETY: blk-mq passes a valid context of a queue of `T`, which outlives the call.
        let (queue, number) = unsafe { ((*hctx).queue, (*hctx).queue_num) };
        // SAFETY: As above; a queue that dispatches has its disk.
        let (private, disk) = unsafe { (Self::private(queue), Disk::from_raw((*queue).disk)) };
        // If the queue is frozen all requests have ended: there is nothing to commit.
        if let Some(_not_frozen) = disk.try_enter_queue() {
            // SAFETY: The queue does not freeze before the end of this function.
            T::commit_rqs(disk, unsafe { private.attachment.get() }, number);
        }
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`].
    unsafe extern "C" fn timeout(rq: *mut bindings::request) -> bindings::blk_eh_timer_return {
        // SAFETY: blk-mq keeps the request's memory for the call.
        let Some(request) = (unsafe { Request::<T>::try_get(rq) }) else {
            return bindings::blk_eh_timer_return_BLK_EH_DONE;
        };
        // SAFETY: A request belongs to a queue, and a live one to a queue that has its disk.
        let queue = unsafe { (*rq).q };
        // SAFETY: As above.
        let (private, disk) = unsafe { (Self::private(queue), Disk::from_raw((*queue).disk)) };
        // SAFETY: `request` keeps the queue from freezing until it is released below; after that the
        // attachment is not used.
        let attachment = unsafe { private.attachment.get() };
        let timeout = T::timeout(disk, attachment, &request);
        // With the last reference it goes back: then its timer is the block layer's.
        match (timeout, Request::release(request)) {
            (Timeout::ResetTimer, false) => bindings::blk_eh_timer_return_BLK_EH_RESET_TIMER,
            _ => bindings::blk_eh_timer_return_BLK_EH_DONE,
        }
    }

    /// Puts a request on the requeue list, and has the driver say when it comes again.
    ///
    /// # Safety
    ///
    /// `rq` is a request of a disk made by [`super::GenDiskBuilder`] for `T`, is started, and has no
    /// references.
    pub(super) unsafe fn requeue_delayed(rq: *mut bindings::request) {
        // SAFETY: A request belongs to a queue, and a live one to a queue that has its disk.
        let (private, disk) = unsafe {
            let queue = (*rq).q;
            (Self::private(queue), Disk::from_raw((*queue).disk))
        };
        // Before the request is given up: with it the queue is not frozen, and this keeps it so.
        let not_frozen = disk.try_enter_queue();
        // SAFETY: By the safety requirement.
        unsafe { bindings::blk_mq_requeue_request(rq, false) };
        match not_frozen {
            Some(_not_frozen) => {
                // SAFETY: The queue does not freeze before the end of this block.
                T::requeued(disk, unsafe { private.attachment.get() });
            }
            // It had been given to the driver: its queue cannot be frozen.
            None => disk.kick_requeue_list(),
        }
    }

    /// # Safety
    ///
    /// For blk-mq to call, through [`Self::MQ_OPS`], or for the caller that has dropped the last
    /// reference to a request that was finished with an `Outcome::End`.
    pub(super) unsafe extern "C" fn complete(rq: *mut bindings::request) {
        // SAFETY: Requests are completed by dropping their last reference alone, after they were
        // finished; from here on the block layer has them.
        unsafe { bindings::blk_mq_end_request(rq, Request::<T>::finished_status(rq)) };
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`].
    unsafe extern "C" fn init_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: ffi::c_uint,
        _numa_node: ffi::c_int,
    ) -> ffi::c_int {
        // SAFETY: blk-mq has just allocated the request, with as much private data as the tag set
        // says.
        unsafe { Pdu::<T>::init(rq) };
        0
    }

    /// # Safety
    ///
    /// Only for blk-mq to call, through [`Self::MQ_OPS`].
    unsafe extern "C" fn exit_request(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _hctx_idx: ffi::c_uint,
    ) {
        // SAFETY: blk-mq is about to free the request.
        unsafe { Pdu::<T>::exit(rq) };
    }

    /// # Safety
    ///
    /// Only for the block layer to call, through [`Self::fops`].
    unsafe extern "C" fn open(
        disk: *mut bindings::gendisk,
        mode: bindings::blk_mode_t,
    ) -> ffi::c_int {
        // SAFETY: The block layer passes a live disk of `T`.
        let disk = unsafe { Disk::from_raw(disk) };
        let mode = OpenMode {
            writable: mode & extra::BLK_OPEN_WRITE != 0,
            exclusive: mode & extra::BLK_OPEN_EXCL != 0,
        };
        from_result(|| T::open(disk, mode).map(|()| 0))
    }

    /// # Safety
    ///
    /// Only for the block layer to call, through [`Self::fops`].
    unsafe extern "C" fn release(disk: *mut bindings::gendisk) {
        // SAFETY: The block layer passes a live disk of `T`.
        let disk = unsafe { Disk::from_raw(disk) };
        // SAFETY: The block layer holds the lock for the call.
        T::release(disk, unsafe { Unopened::with_open_mutex(disk) });
    }

    /// # Safety
    ///
    /// Only for the block layer to call, through [`Self::fops`].
    unsafe extern "C" fn ioctl(
        bdev: *mut bindings::block_device,
        mode: bindings::blk_mode_t,
        cmd: ffi::c_uint,
        arg: ffi::c_ulong,
    ) -> ffi::c_int {
        // SAFETY: The block layer passes an open block device of a disk of `T`.
        let (disk, whole) = unsafe {
            let disk = (*bdev).bd_disk;
            (Disk::from_raw(disk), (*disk).part0)
        };
        let mode = IoctlMode {
            // An exclusive opener of a partition leaves the others to others.
            excl: mode & extra::BLK_OPEN_EXCL != 0 && bdev == whole,
        };
        from_result(|| T::ioctl(disk, mode, cmd, arg))
    }

    /// # Safety
    ///
    /// Only for the block layer to call, through [`Self::fops`].
    unsafe extern "C" fn free_disk(disk: *mut bindings::gendisk) {
        // SAFETY: The builder put the box there, and this is the last call for this disk.
        unsafe { Private::<T>::free(disk) };
    }
}
