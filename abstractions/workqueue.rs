// SPDX-License-Identifier: GPL-2.0

//! Workqueues of a driver's own.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::{ops::Deref, ptr::NonNull};
use kernel::{bindings, prelude::*, workqueue::Queue};

/// An unbound workqueue (`WQ_UNBOUND`).
///
/// Dropping it waits for all its work items, so none of them may drop it.
///
/// # Invariants
///
/// `0` is a workqueue that this value destroys.
pub(crate) struct Workqueue(NonNull<bindings::workqueue_struct>);

impl Workqueue {
    /// Makes a workqueue with a rescuer (`WQ_MEM_RECLAIM`): its work items make headway without memory,
    /// and so none may wait for long. Sleeps.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        Self::alloc(name, bindings::wq_flags_WQ_MEM_RECLAIM, 0)
    }

    /// Makes one whose work items may wait for long: as many at a time as there may be
    /// (`WQ_MAX_ACTIVE`). Sleeps.
    pub(crate) fn without_rescuer(name: &CStr) -> Result<Self> {
        Self::alloc(name, 0, bindings::wq_consts_WQ_MAX_ACTIVE as i32)
    }

    fn alloc(name: &CStr, flags: bindings::wq_flags, max_active: i32) -> Result<Self> {
        // SAFETY: The format takes one string.
        let raw = unsafe {
            bindings::alloc_workqueue_noprof(
                c"%s".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | flags,
                max_active,
                name.as_char_ptr(),
            )
        };
        // INVARIANT: It was made above.
        Ok(Self(NonNull::new(raw).ok_or(ENOMEM)?))
    }

    /// Waits until no work is left that was queued before. Sleeps.
    #[inline]
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }
}

impl Deref for Workqueue {
    type Target = Queue;

    #[inline]
    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant it lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for Workqueue {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

// SAFETY: Workqueues have locks of their own.
unsafe impl Send for Workqueue {}

// SAFETY: As above.
unsafe impl Sync for Workqueue {}
