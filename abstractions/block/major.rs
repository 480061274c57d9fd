// SPDX-License-Identifier: GPL-2.0

//! Block device major numbers.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use kernel::{bindings, error::to_result, prelude::*};

/// A registered block major number. Dropping it gives the number back.
///
/// # Invariants
///
/// `number` is registered under `name`, by this value alone.
pub(crate) struct Major {
    number: u32,
    name: &'static CStr,
}

impl Major {
    /// Registers `number` under `name`. May sleep.
    ///
    /// An open of a device that is not there does not look for a module to load: it is loaded.
    ///
    /// Fails with `EBUSY` if the number is taken.
    pub(crate) fn register(number: u32, name: &'static CStr) -> Result<Self> {
        // SAFETY: `name` is a NUL-terminated string that lives for ever.
        to_result(unsafe { bindings::__register_blkdev(number, name.as_char_ptr(), Some(probe)) })?;
        // INVARIANT: The call above registered it.
        Ok(Self { number, name })
    }
}

impl Drop for Major {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant this pair is registered, and only this value unregisters
        // it.
        unsafe { bindings::unregister_blkdev(self.number, self.name.as_char_ptr()) };
    }
}

/// # Safety
///
/// Only for the block layer to call.
unsafe extern "C" fn probe(_: bindings::dev_t) {}
