// SPDX-License-Identifier: GPL-2.0

//! Softirqs.
//!
//! C header: [`include/linux/bottom_half.h`](srctree/include/linux/bottom_half.h)

use crate::bindings as extra;
use kernel::types::ScopeGuard;

/// Calls `work` with softirqs, and preemption, put off until it returns: whom it wakes finds all of
/// it done. It must not sleep. Task context.
#[inline]
pub(crate) fn local_bh_disabled<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: The guard undoes it, in this task.
    unsafe { extra::rnbd_helper_local_bh_disable() };
    let _enable = ScopeGuard::new(|| {
        // SAFETY: It was disabled above.
        unsafe { extra::rnbd_helper_local_bh_enable() }
    });
    work()
}
