// SPDX-License-Identifier: GPL-2.0

//! What user space can ask of devices: [`ioctl`], [`netlink`].

pub(crate) mod ioctl;
pub(crate) mod netlink;
