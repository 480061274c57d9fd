// SPDX-License-Identifier: GPL-2.0

//! What user space can see of a device: [`sysfs`], [`debugfs`].

pub(crate) mod debugfs;
pub(crate) mod sysfs;
