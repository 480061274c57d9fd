// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate of the newest supported series has, and older ones lack.
//!
//! All that is different between the series is here, with the C side of it in `bindings/`: the rest
//! of the module is written for the newest one. Things have the paths and the meaning that they have
//! in its `kernel`, and there they are that crate's own. A series that lacks something has a file
//! here, and a `cfg` of its name, which `Kbuild` sets.

#[cfg(before_7_3)]
mod before_7_3;

#[cfg(before_7_3)]
pub(crate) use before_7_3::{bi_offset, bindings, error, module, net};

#[cfg(not(before_7_3))]
pub(crate) use kernel::{bindings, error, module, net};

/// Where in its element a bio's iterator is: 7.3 has renamed the field.
#[cfg(not(before_7_3))]
#[inline]
pub(crate) fn bi_offset(iter: bindings::bvec_iter) -> u32 {
    iter.bi_offset
}
