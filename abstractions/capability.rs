// SPDX-License-Identifier: GPL-2.0

//! Capabilities of the current task.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use kernel::bindings;

/// Whether the current task may administer the system (`CAP_SYS_ADMIN`), in the initial user
/// namespace.
pub(crate) fn current_is_sys_admin() -> bool {
    // SAFETY: Always allowed in process context.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) }
}
