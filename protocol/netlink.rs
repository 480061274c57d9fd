// SPDX-License-Identifier: GPL-2.0

//! Names and numbers of the generic netlink family `nbd`
//! (`include/uapi/linux/nbd-netlink.h`).

use core::ffi::CStr;

/// The family's name.
pub const FAMILY_NAME: &CStr = c"nbd";

/// The family's version.
pub const FAMILY_VERSION: u8 = 1;

/// The multicast group that is told of dead connections.
pub const MULTICAST_GROUP: &CStr = c"nbd_mc_group";

/// Commands (`NBD_CMD_*`).
pub mod command {
    /// Sets a device up and attaches it.
    pub const CONNECT: u8 = 1;
    /// Detaches a device.
    pub const DISCONNECT: u8 = 2;
    /// Changes an attached device, and replaces its dead connections.
    pub const RECONFIGURE: u8 = 3;
    /// A notification: a device's connection is dead.
    pub const LINK_DEAD: u8 = 4;
    /// Which devices are there, and attached.
    pub const STATUS: u8 = 5;
}

/// Attributes at the top (`NBD_ATTR_*`).
pub mod attribute {
    /// `u32`: the device's number; -1 is none in particular.
    pub const INDEX: u16 = 1;
    /// `u64`: size of the export, in bytes.
    pub const SIZE_BYTES: u16 = 2;
    /// `u64`: logical block size, in bytes.
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    /// `u64`: longest that a request may take, in seconds.
    pub const TIMEOUT: u16 = 4;
    /// `u64`: transmission flags of the export.
    pub const SERVER_FLAGS: u16 = 5;
    /// `u64`: what the driver is to do by itself, [`ClientFlags`](super::ClientFlags).
    pub const CLIENT_FLAGS: u16 = 6;
    /// Nested: the sockets, each an [`ITEM`](super::socket::ITEM).
    pub const SOCKETS: u16 = 7;
    /// `u64`: how long to wait for a connection when all are dead, in seconds.
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    /// Nested: the devices, each an [`ITEM`](super::device::ITEM).
    pub const DEVICE_LIST: u16 = 9;
    /// String: which backend it is, for the next one to be compared with.
    pub const BACKEND_IDENTIFIER: u16 = 10;

    // rnbd's own, far above those that nbd.ko has, which ignores them.

    /// Flag, in a [`RECONFIGURE`](super::command::RECONFIGURE): sockets are not for dead connections
    /// alone. When these have got theirs, live ones get the rest.
    pub const HANDOVER: u16 = 64;
    /// `u32`, in the reply to that: how many of the offered sockets were taken.
    pub const SOCKETS_TAKEN: u16 = 65;
    /// `u32`, in the reply to that: how many were not, for want of a connection to put them.
    pub const SOCKETS_LEFT: u16 = 66;
    /// The highest of all.
    pub const MAX: u16 = 66;
}

/// Attributes in [`SOCKETS`](attribute::SOCKETS) (`NBD_SOCK_*`).
pub mod socket {
    /// Nested, in the list: one socket.
    pub const ITEM: u16 = 1;
    /// `u32`, in an item: its file descriptor.
    pub const FD: u16 = 1;
    /// The highest one in an item.
    pub const MAX: u16 = 1;
}

/// Attributes in [`DEVICE_LIST`](attribute::DEVICE_LIST) (`NBD_DEVICE_*`).
pub mod device {
    /// Nested, in the list: one device.
    pub const ITEM: u16 = 1;
    /// `u32`, in an item: its number.
    pub const INDEX: u16 = 1;
    /// `u8`, in an item: 1 if it is in use, else 0.
    pub const CONNECTED: u16 = 2;
    /// The highest one in an item.
    pub const MAX: u16 = 2;
}

/// What the driver is to do by itself (`NBD_CFLAG_*` in `include/uapi/linux/nbd.h`).
///
/// Bits outside the known ones are ignored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientFlags(u64);

impl ClientFlags {
    /// Remove the device when it is disconnected.
    pub const DESTROY_ON_DISCONNECT: Self = Self(1 << 0);
    /// Disconnect the device when it is closed for the last time.
    pub const DISCONNECT_ON_CLOSE: Self = Self(1 << 1);

    /// Flags with these bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other`'s bits are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
