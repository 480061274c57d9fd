// SPDX-License-Identifier: GPL-2.0

//! Capabilities.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use kernel::bindings;

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// To administer the system (`CAP_SYS_ADMIN`).
    SysAdmin,
}

impl Capability {
    /// Its number; a valid one.
    #[inline]
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::SysAdmin => bindings::CAP_SYS_ADMIN as i32,
        }
    }

    /// Whether the current task has it in the initial user namespace (`capable`).
    #[inline]
    pub(crate) fn capable(self) -> bool {
        // SAFETY: Always allowed in process context; the number is valid.
        unsafe { bindings::capable(self.number()) }
    }
}
