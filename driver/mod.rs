// SPDX-License-Identifier: GPL-2.0

//! What nbd is.
//!
//! The rooms, from the bottom to the top: each imports only from itself and from those before it in
//! this list, and no files import each other in a circle. `make check` sees to that, by this list.
//!
//! ```text
//! params      module parameters
//! nbd         the driver's name for the block layer, and its data in a request
//! wire        requests and replies on the wire: links, connections, what sends and receives
//! attachment  a generation that serves requests
//! device      a device, its disk, its setup; how a generation is started and ended
//! show        what user space can see: sysfs, debugfs
//! devices     the devices there are
//! control     what user space can ask: ioctls, netlink
//! block       what the block layer asks
//! module      loading and unloading
//! ```

mod attachment;
mod block;
mod control;
mod device;
mod devices;
mod module;
mod nbd;
mod params;
mod show;
mod wire;

pub(crate) use module::Module;
#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use nbd::RequestWord;
