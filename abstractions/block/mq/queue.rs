// SPDX-License-Identifier: GPL-2.0

//! The request queue of a disk: its attachment, freezing, quiescing, hardware queues.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{Disk, Operations};
use crate::abstractions::memalloc::MemallocNoio;
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full},
    time::msecs_to_jiffies,
};

/// What a disk's requests are served with, or nothing.
///
/// # Invariants
///
/// `ptr` is null, or came from [`KBox::into_raw`] and is taken back while the queue is frozen.
pub(super) struct AttachmentCell<A> {
    ptr: Atomic<*mut A>,
}

impl<A> AttachmentCell<A> {
    #[inline]
    pub(super) const fn new() -> Self {
        Self {
            ptr: Atomic::new(core::ptr::null_mut()),
        }
    }

    /// What is attached.
    ///
    /// # Safety
    ///
    /// For `'a`, the caller must keep the queue from freezing: with a request that is not ended.
    #[inline]
    pub(super) unsafe fn get<'a>(&self) -> Option<&'a A> {
        // SAFETY: By the type invariant; while the queue cannot freeze it is not taken back.
        unsafe { self.ptr.load(Acquire).as_ref() }
    }
}

impl<A> Drop for AttachmentCell<A> {
    #[inline]
    fn drop(&mut self) {
        let ptr = *self.ptr.get_mut();
        if !ptr.is_null() {
            // SAFETY: By the type invariant; the cell is not used any more.
            drop(unsafe { KBox::from_raw(ptr) });
        }
    }
}

/// A frozen queue: no request is in the driver's hands, and none comes, until this is dropped.
///
/// Reclaim must not be waited for meanwhile: allocations are implicitly `GFP_NOIO`.
///
/// # Invariants
///
/// The queue of `disk` is frozen, once on behalf of this value.
pub(crate) struct Frozen<'a, T: Operations> {
    disk: &'a Disk<T>,
    /// Left when the queue is not frozen any more.
    _noio: MemallocNoio,
}

impl<T: Operations> Frozen<'_, T> {
    /// Takes away what the disk is attached to.
    pub(crate) fn detach(&mut self) -> Option<KBox<T::Attachment>> {
        let cell = &self.disk.private().attachment.ptr;
        let ptr = cell.xchg(core::ptr::null_mut(), Full);
        // SAFETY: By the type invariant of the cell. The queue is frozen, so that no request
        // function has it; and the exchange gives it to one caller only.
        (!ptr.is_null()).then(|| unsafe { KBox::from_raw(ptr) })
    }
}

impl<T: Operations> Drop for Frozen<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::blk_mq_unfreeze_queue_nomemrestore(self.disk.queue()) };
    }
}

impl<T: Operations> Disk<T> {
    /// Publishes what the disk's requests are served with. Any context.
    ///
    /// Requests that come from here on see it. If the disk has an attachment already, `attachment`
    /// is returned.
    pub(crate) fn attach(
        &self,
        attachment: KBox<T::Attachment>,
    ) -> Result<(), KBox<T::Attachment>> {
        let ptr = KBox::into_raw(attachment);
        match self
            .private()
            .attachment
            .ptr
            .cmpxchg(core::ptr::null_mut(), ptr, Full)
        {
            Ok(_) => Ok(()),
            // SAFETY: The pointer is from the box above, and was not stored.
            Err(_) => Err(unsafe { KBox::from_raw(ptr) }),
        }
    }

    /// Freezes the queue: waits until no request is in flight, and keeps new ones out. Sleeps.
    ///
    /// The wait takes as long as the slowest request: the caller must make sure that all end.
    pub(crate) fn freeze(&self) -> Frozen<'_, T> {
        let noio = MemallocNoio::save();
        // SAFETY: The disk has its queue.
        unsafe { bindings::blk_mq_freeze_queue_nomemsave(self.queue()) };
        // INVARIANT: The queue was frozen above.
        Frozen {
            disk: self,
            _noio: noio,
        }
    }

    /// Freezes the queue, if the requests in flight end within `patience_ms` milliseconds; `EBUSY`
    /// otherwise. Sleeps.
    pub(crate) fn freeze_wait_timeout(&self, patience_ms: u32) -> Result<Frozen<'_, T>> {
        let noio = MemallocNoio::save();
        // SAFETY: The disk has its queue.
        unsafe { bindings::blk_freeze_queue_start(self.queue()) };
        // INVARIANT: No new request comes since the call above, and the queue counts as frozen
        // until the value is dropped; it is not handed out before no request is left.
        let frozen = Frozen {
            disk: self,
            _noio: noio,
        };
        let patience = msecs_to_jiffies(patience_ms);
        // SAFETY: The disk has its queue, which was begun to be frozen.
        match unsafe { bindings::blk_mq_freeze_queue_wait_timeout(self.queue(), patience) } {
            0 => Err(EBUSY),
            _ => Ok(frozen),
        }
    }

    /// Dispatches the requests that wait after
    /// [`Outcome::RequeueDelayed`](super::Outcome::RequeueDelayed) in so many milliseconds, and not
    /// earlier, whatever was said before. Any context.
    #[inline]
    pub(crate) fn delay_kick_requeue_list(&self, ms: u32) {
        // SAFETY: The disk has its queue.
        unsafe { bindings::blk_mq_delay_kick_requeue_list(self.queue(), ms as usize) };
    }

    /// Dispatches the requests that wait after
    /// [`Outcome::RequeueDelayed`](super::Outcome::RequeueDelayed). Any context.
    #[inline]
    pub(crate) fn kick_requeue_list(&self) {
        // SAFETY: The disk has its queue.
        unsafe { bindings::blk_mq_kick_requeue_list(self.queue()) };
    }

    /// Quiesces the queue and unquiesces it again: waits for each [`Operations::queue_rq`] that has
    /// begun before. Sleeps.
    pub(crate) fn quiesce_once(&self) {
        // SAFETY: The disk has its queue; quiescing waits, and the second call undoes it.
        unsafe {
            bindings::blk_mq_quiesce_queue(self.queue());
            bindings::blk_mq_unquiesce_queue(self.queue());
        }
    }

    /// Changes the number of hardware queues; the block layer caps it at the number of CPUs.
    /// Freezes the queue for a moment; sleeps. No lock that open, release or ioctl take may be
    /// held.
    pub(crate) fn update_nr_hw_queues(&self, count: u32) {
        let set = self.tag_set();
        // SAFETY: The set is initialised. That it is read without its lock makes the check a
        // guess; the function itself checks again.
        if unsafe { (*set).nr_hw_queues } != count {
            // SAFETY: As above.
            unsafe { bindings::blk_mq_update_nr_hw_queues(set, count as i32) };
        }
    }

    /// Sets the time, in seconds, after which [`Operations::timeout`] is called for a request.
    pub(crate) fn set_rq_timeout(&self, seconds: u32) {
        // `bindings::HZ` is what user space takes for it.
        let jiffies = msecs_to_jiffies(seconds.saturating_mul(1000));
        let jiffies = u32::try_from(jiffies).unwrap_or(u32::MAX);
        // SAFETY: The disk has its queue.
        unsafe { bindings::blk_queue_rq_timeout(self.queue(), jiffies) };
    }
}
