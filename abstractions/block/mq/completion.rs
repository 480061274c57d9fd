// SPDX-License-Identifier: GPL-2.0

//! Ending requests together.
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

use super::{
    operations::{Operations, OperationsVTable},
    Request,
};
use crate::bindings as extra;
use kernel::{bindings, prelude::*, sync::aref::ARef};

/// Drops references to requests that were [finished](Request::finish), and ends those that have no
/// others in one batch (`blk_mq_end_request_batch`). A request that failed, that has a scheduler,
/// or that the block layer wants to complete on another CPU, ends by itself.
///
/// Task context. Callers disable bottom halves, or the waiter for the first request is woken before
/// the last has ended.
pub(crate) fn end_batch<T: Operations>(requests: &mut KVec<ARef<Request<T>>>) {
    let mut batch = bindings::io_comp_batch::default();
    for request in requests.drain_all() {
        // SAFETY: The reference was the `ARef`'s.
        unsafe { Request::put(ARef::into_raw(request), |rq| end::<T>(rq, &mut batch)) };
    }
    if !batch.req_list.head.is_null() {
        // SAFETY: The list holds requests that `end` put there.
        unsafe { bindings::blk_mq_end_request_batch(&mut batch) };
    }
}

/// Ends a request, or puts it into the batch of those that are about to end.
///
/// # Safety
///
/// The request is finished, with an [`super::Outcome::End`], and its last reference was dropped: it
/// goes back to the block layer here.
unsafe fn end<T: Operations>(rq: *mut bindings::request, batch: &mut bindings::io_comp_batch) {
    // SAFETY: By the safety requirement. Where it ends elsewhere, it does so by
    // `OperationsVTable::complete`.
    if unsafe { bindings::blk_mq_complete_request_remote(rq) } {
        return;
    }
    // SAFETY: The request was not ended by the call above.
    let failed = unsafe { Request::<T>::finished_status(rq) } != 0;
    let complete: unsafe extern "C" fn(*mut bindings::io_comp_batch) =
        bindings::blk_mq_end_request_batch;
    // SAFETY: As above; the batch outlives the request's place in it.
    let taken =
        unsafe { extra::rnbd_helper_blk_mq_add_to_batch(rq, batch, failed, Some(complete)) };
    if !taken {
        // SAFETY: As above.
        unsafe { OperationsVTable::<T>::complete(rq) };
    }
}
