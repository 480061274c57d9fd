// SPDX-License-Identifier: GPL-2.0

//! Keeping the module loaded.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::bindings as extra;
use kernel::prelude::*;

/// Keeps a module from being unloaded.
///
/// The code that drops this must be kept by something else until it has returned, such as a
/// workqueue that the module's exit waits for.
///
/// # Invariants
///
/// This value has a reference to the module.
pub(crate) struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Takes a reference (`try_module_get`); none, if the module is about to be unloaded.
    #[inline]
    pub(crate) fn try_get(module: &'static ThisModule) -> Option<Self> {
        // SAFETY: The module is there.
        let kept = unsafe { extra::rnbd_helper_try_module_get(module.as_ptr()) };
        // INVARIANT: The reference was taken above.
        // Only then: what is made here puts the reference when it is dropped.
        kept.then(|| Self(module))
    }
}

impl Drop for ModuleRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_module_put(self.0.as_ptr()) };
    }
}
