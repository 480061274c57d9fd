// SPDX-License-Identifier: GPL-2.0

//! Bottom halves.
//!
//! C header: [`include/linux/bottom_half.h`](srctree/include/linux/bottom_half.h)

use crate::bindings as extra;
use kernel::types::ScopeGuard;

/// Calls `work` between `local_bh_disable()` and `local_bh_enable()`.
///
/// Softirqs and preemption are held off until it returns, so what it wakes finds all of it done. It
/// must not sleep. Task context.
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
