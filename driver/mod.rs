// SPDX-License-Identifier: GPL-2.0

//! What nbd is.
//!
//! * [`module`]: loading and unloading. [`devices`]: the devices there are. [`params`]: module
//!   parameters.
//! * [`device`]: one `/dev/nbdN`: its setup lock and what the block layer asks of it.
//! * [`ioctl`]: the ioctl interface. [`setup`]: SET_SOCK and its like. [`owner`]: whose setup it is.
//! * [`netlink`]: the generic netlink interface.
//! * [`attachment`]: a generation that serves requests. [`keeper`]: who brings it up and waits for
//!   its end. [`teardown`]: how it is ended. [`drain`]: how it is taken out of the system.
//!   [`geometry`]: sizes and limits of its disk.
//! * [`connection`]: a place in it. [`link`]: the socket there. [`replace`]: putting another socket
//!   there. [`transmit`], [`receive`], [`timeout`]: requests on the wire. [`outbox`], [`sender`], [`batch`]: those
//!   that wait to be sent, and those that are sent at once. [`inbox`]: what came and is not used yet.
//! * [`sysfs`], [`debugfs`]: what state it is in.

mod attachment;
mod batch;
mod connection;
mod debugfs;
mod device;
mod devices;
mod drain;
mod geometry;
mod inbox;
mod ioctl;
mod keeper;
mod link;
mod module;
mod netlink;
mod outbox;
mod owner;
mod params;
mod receive;
mod replace;
mod sender;
mod setup;
mod sysfs;
mod teardown;
mod timeout;
mod transmit;

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use device::RequestWord;
pub(crate) use module::Module;
