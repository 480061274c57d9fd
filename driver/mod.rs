// SPDX-License-Identifier: GPL-2.0

//! What nbd is.
//!
//! * [`module`]: loading and unloading; the devices there are. [`params`]: module parameters.
//! * [`device`]: one `/dev/nbdN`: its setup lock and what the block layer asks of it.
//! * [`ioctl`]: the ioctl interface. [`setup`]: SET_SOCK and its like. [`owner`]: whose setup it is.
//! * [`netlink`]: the generic netlink interface.
//! * [`attachment`]: a generation that serves requests. [`keeper`]: who brings it up and drains it.
//!   [`teardown`]: how it is ended. [`geometry`]: sizes and limits of its disk.
//! * [`connection`]: one socket of it. [`transmit`], [`receive`], [`timeout`]: requests on the
//!   wire.
//! * [`sysfs`], [`debugfs`]: what state it is in.

mod attachment;
mod connection;
mod debugfs;
mod device;
mod geometry;
mod ioctl;
mod keeper;
mod module;
mod netlink;
mod owner;
mod params;
mod receive;
mod setup;
mod sysfs;
mod teardown;
mod timeout;
mod transmit;

pub(crate) use module::Module;
