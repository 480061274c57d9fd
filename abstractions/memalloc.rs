// SPDX-License-Identifier: GPL-2.0

//! Scopes that bound what an allocation may wait for.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::bindings as extra;
use kernel::types::NotThreadSafe;

/// While this lives, allocations of the task are implicitly `GFP_NOIO`.
///
/// # Invariants
///
/// `0` is what the task had before; the scope is left, in the same task, by this value.
pub(crate) struct MemallocNoio(u32, NotThreadSafe);

impl MemallocNoio {
    /// Enters the scope (`memalloc_noio_save`). Scopes nest; they must be left in the opposite
    /// order.
    #[inline]
    pub(crate) fn save() -> Self {
        // SAFETY: Changes the task's own flags alone.
        let before = unsafe { extra::rnbd_helper_memalloc_noio_save() };
        // INVARIANT: The scope was entered above.
        Self(before, NotThreadSafe)
    }
}

impl Drop for MemallocNoio {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the value cannot have changed tasks.
        unsafe { extra::rnbd_helper_memalloc_noio_restore(self.0) };
    }
}
