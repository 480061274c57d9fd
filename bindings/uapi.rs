// SPDX-License-Identifier: GPL-2.0

//! Checks that `protocol/` has the numbers of nbd's uapi headers.
//!
//! `protocol/` is also built without a kernel, so it has constants of its own. If one of them is not
//! the kernel's, the build fails here. On the host a test compares them with the installed headers.
//!
//! C headers: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h),
//! [`include/uapi/linux/nbd-netlink.h`](srctree/include/uapi/linux/nbd-netlink.h)

use crate::{
    bindings as extra,
    protocol::{
        flags::TransmissionFlags,
        netlink::{self, attribute, command, device, socket, ClientFlags},
        wire::{self, Command, CommandFlags},
    },
};

macro_rules! assert_uapi {
    ($($name:ident == $ours:expr;)*) => {$(
        const _: () = assert!(
            extra::$name as u64 == $ours as u64,
            concat!("protocol/ has another ", stringify!($name))
        );
    )*};
}

assert_uapi! {
    NBD_REQUEST_MAGIC == wire::REQUEST_MAGIC;
    NBD_REPLY_MAGIC == wire::REPLY_MAGIC;

    NBD_CMD_READ == Command::Read.number();
    NBD_CMD_WRITE == Command::Write.number();
    NBD_CMD_DISC == Command::Disconnect.number();
    NBD_CMD_FLUSH == Command::Flush.number();
    NBD_CMD_TRIM == Command::Trim.number();
    NBD_CMD_WRITE_ZEROES == Command::WriteZeroes.number();

    NBD_FLAG_HAS_FLAGS == TransmissionFlags::HAS_FLAGS.bits();
    NBD_FLAG_READ_ONLY == TransmissionFlags::READ_ONLY.bits();
    NBD_FLAG_SEND_FLUSH == TransmissionFlags::SEND_FLUSH.bits();
    NBD_FLAG_SEND_FUA == TransmissionFlags::SEND_FUA.bits();
    NBD_FLAG_ROTATIONAL == TransmissionFlags::ROTATIONAL.bits();
    NBD_FLAG_SEND_TRIM == TransmissionFlags::SEND_TRIM.bits();
    NBD_FLAG_SEND_WRITE_ZEROES == TransmissionFlags::SEND_WRITE_ZEROES.bits();
    NBD_FLAG_CAN_MULTI_CONN == TransmissionFlags::CAN_MULTI_CONN.bits();

    NBD_CFLAG_DESTROY_ON_DISCONNECT == ClientFlags::DESTROY_ON_DISCONNECT.bits();
    NBD_CFLAG_DISCONNECT_ON_CLOSE == ClientFlags::DISCONNECT_ON_CLOSE.bits();

    // The headers have these in the upper half of a 32-bit type, of which the lower is the command.
    NBD_CMD_FLAG_FUA == (CommandFlags::FUA as u32) << 16;
    NBD_CMD_FLAG_NO_HOLE == (CommandFlags::NO_HOLE as u32) << 16;

    NBD_GENL_VERSION == netlink::FAMILY_VERSION;

    NBD_CMD_CONNECT == command::CONNECT;
    NBD_CMD_DISCONNECT == command::DISCONNECT;
    NBD_CMD_RECONFIGURE == command::RECONFIGURE;
    NBD_CMD_LINK_DEAD == command::LINK_DEAD;
    NBD_CMD_STATUS == command::STATUS;

    NBD_ATTR_INDEX == attribute::INDEX;
    NBD_ATTR_SIZE_BYTES == attribute::SIZE_BYTES;
    NBD_ATTR_BLOCK_SIZE_BYTES == attribute::BLOCK_SIZE_BYTES;
    NBD_ATTR_TIMEOUT == attribute::TIMEOUT;
    NBD_ATTR_SERVER_FLAGS == attribute::SERVER_FLAGS;
    NBD_ATTR_CLIENT_FLAGS == attribute::CLIENT_FLAGS;
    NBD_ATTR_SOCKETS == attribute::SOCKETS;
    NBD_ATTR_DEAD_CONN_TIMEOUT == attribute::DEAD_CONN_TIMEOUT;
    NBD_ATTR_DEVICE_LIST == attribute::DEVICE_LIST;
    NBD_ATTR_BACKEND_IDENTIFIER == attribute::BACKEND_IDENTIFIER;

    NBD_SOCK_ITEM == socket::ITEM;
    NBD_SOCK_FD == socket::FD;
    NBD_DEVICE_ITEM == device::ITEM;
    NBD_DEVICE_INDEX == device::INDEX;
    NBD_DEVICE_CONNECTED == device::CONNECTED;
}

// rnbd's own attributes do not mean something else to nbd.ko.
const _: () = assert!(extra::__NBD_ATTR_MAX <= attribute::HANDOVER as u32);

const _: () = assert!(size_of::<extra::nbd_request>() == wire::REQUEST_SIZE);

const _: () = assert!(same(
    extra::NBD_GENL_FAMILY_NAME,
    netlink::FAMILY_NAME.to_bytes_with_nul()
));
const _: () = assert!(same(
    extra::NBD_GENL_MCAST_GROUP_NAME,
    netlink::MULTICAST_GROUP.to_bytes_with_nul()
));

/// Whether two strings are equal. For constants.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}
