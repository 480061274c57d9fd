// SPDX-License-Identifier: GPL-2.0

//! Tags, and the requests that have them.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    gen_disk::Disk,
    operations::{Operations, OperationsVTable},
    request::{Pdu, Request},
};
use crate::bindings as extra;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::ARef,
    types::{Opaque, ScopeGuard},
};

/// A `struct blk_mq_tag_set`, initialised, with tags for `T`.
#[pin_data(PinnedDrop)]
pub(super) struct TagSet<T: Operations> {
    #[pin]
    pub(super) inner: Opaque<bindings::blk_mq_tag_set>,
    _driver: PhantomData<T>,
}

impl<T: Operations> TagSet<T> {
    pub(super) fn new(nr_hw_queues: u32, depth: u32, scheduled: bool) -> impl PinInit<Self, Error> {
        let scheduler = match scheduled {
            true => 0,
            false => bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
        };
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |set: *mut bindings::blk_mq_tag_set| {
                // SAFETY: `set` is valid for writes, and is not shared yet.
                unsafe {
                    set.write(bindings::blk_mq_tag_set {
                        ops: &OperationsVTable::<T>::MQ_OPS,
                        nr_hw_queues,
                        nr_maps: 1,
                        queue_depth: depth,
                        numa_node: bindings::NUMA_NO_NODE,
                        cmd_size: size_of::<Pdu<T>>() as u32,
                        // To complete a request may take other devices: a processor that goes
                        // offline does not wait for it.
                        flags: bindings::BLK_MQ_F_BLOCKING
                            | bindings::BLK_MQ_F_STACKING
                            | scheduler,
                        ..pin_init::zeroed()
                    })
                };
                // SAFETY: `set` is filled in, and its memory is pinned.
                to_result(unsafe { bindings::blk_mq_alloc_tag_set(set) })
            }),
            _driver: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `new` has initialised it, and the disk that used it is gone.
        unsafe { bindings::blk_mq_free_tag_set(self.inner.get()) };
    }
}

impl<T: Operations> Disk<T> {
    /// The request that the driver has under a tag from [`Request::unique_tag`]; none, if the tag
    /// names no request, or one that is at the block layer.
    ///
    /// Any context. The tag need not be trusted.
    pub(crate) fn tag_to_rq(&self, unique_tag: u32) -> Option<ARef<Request<T>>> {
        let _tags_stay = self.try_enter_queue()?;
        let _requests_stay = self.tags_srcu_read_lock();
        let hw_queue = (unique_tag >> bindings::BLK_MQ_UNIQUE_TAG_BITS) as usize;
        let tag = unique_tag & bindings::BLK_MQ_UNIQUE_TAG_MASK;
        let set = self.tag_set();
        // SAFETY: The set's queues change only while the queue is frozen.
        if hw_queue >= unsafe { (*set).nr_hw_queues } as usize {
            return None;
        }
        // SAFETY: As above; the index was checked. `blk_mq_tag_to_rq` checks the tag.
        let tags = unsafe { *(*set).tags.add(hw_queue) };
        if tags.is_null() {
            // The block layer had no memory for this queue's tags, and does not use it.
            return None;
        }
        // SAFETY: The tags were just seen to be there.
        let rq = unsafe { extra::rnbd_helper_blk_mq_tag_to_rq(tags, tag) };
        if rq.is_null() {
            return None;
        }
        // SAFETY: The request is of this set, and its memory stays while requests are kept.
        unsafe { Request::try_get(rq) }
    }

    /// Keeps the memory of requests from being freed (`tags_srcu`). That of an I/O scheduler's
    /// requests is freed after the scheduler was changed, when the queue is in use again. Until
    /// then tags may lead there.
    fn tags_srcu_read_lock(&self) -> impl Drop + '_ {
        let set = self.tag_set();
        // SAFETY: The set is initialised, and the disk keeps it.
        let index = unsafe { extra::rnbd_helper_blk_mq_tags_lock(set) };
        ScopeGuard::new(move || {
            // SAFETY: As above; the index is from there.
            unsafe { extra::rnbd_helper_blk_mq_tags_unlock(set, index) };
        })
    }

    /// Takes a reference to `q_usage_counter`, as `blk_try_enter_queue()` does: keeps the queue
    /// from freezing, and so the set's tags from being freed. None, if the queue is frozen: then no
    /// request is in flight.
    pub(super) fn try_enter_queue(&self) -> Option<impl Drop + '_> {
        let counter = |queue: *mut bindings::request_queue| {
            // SAFETY: The counter is part of the queue, which the disk keeps.
            unsafe { &raw mut (*queue).q_usage_counter }
        };
        let queue = self.queue();
        // SAFETY: The counter is initialised. The set's tags are freed only while the queue is
        // frozen.
        if !unsafe { extra::rnbd_helper_percpu_ref_tryget(counter(queue)) } {
            return None;
        }
        Some(ScopeGuard::new(move || {
            // SAFETY: The reference was taken above.
            unsafe { extra::rnbd_helper_percpu_ref_put(counter(queue)) };
        }))
    }

    /// Calls `visit` for each request that the driver has at the moment
    /// (`blk_mq_tagset_busy_iter`). May sleep if `visit` does.
    ///
    /// Requests that come or go meanwhile may be visited or not.
    pub(crate) fn tagset_busy_iter<F: FnMut(&Request<T>)>(&self, mut visit: F) {
        /// # Safety
        ///
        /// Only for `blk_mq_tagset_busy_iter`, with the closure that it was given.
        unsafe extern "C" fn trampoline<T: Operations, F: FnMut(&Request<T>)>(
            rq: *mut bindings::request,
            visit: *mut kernel::ffi::c_void,
        ) -> bool {
            // SAFETY: The iterator keeps the request's memory for the call.
            if let Some(request) = unsafe { Request::<T>::try_get(rq) } {
                // SAFETY: `visit` is the closure below, which is not used elsewhere meanwhile.
                unsafe { (*visit.cast::<F>())(&request) };
            }
            true
        }
        let Some(_tags_stay) = self.try_enter_queue() else {
            return;
        };
        // SAFETY: The set is initialised; `trampoline` fits the closure that goes with it.
        unsafe {
            bindings::blk_mq_tagset_busy_iter(
                self.tag_set(),
                Some(trampoline::<T, F>),
                (&raw mut visit).cast(),
            )
        };
    }
}
