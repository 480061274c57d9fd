// SPDX-License-Identifier: GPL-2.0

//! What attributes hold, as nbd.ko has it.

use crate::{
    abstractions::net::genetlink::{Policies, Policy},
    protocol::netlink::{attribute, socket},
};

/// Of the attributes at the top.
pub(super) static ATTRIBUTES: Policies<{ attribute::MAX as usize + 1 }> = Policies::new()
    .with(attribute::INDEX, Policy::U32)
    .with(attribute::SIZE_BYTES, Policy::U64)
    .with(attribute::BLOCK_SIZE_BYTES, Policy::U64)
    .with(attribute::TIMEOUT, Policy::U64)
    .with(attribute::SERVER_FLAGS, Policy::U64)
    .with(attribute::CLIENT_FLAGS, Policy::U64)
    .with(attribute::SOCKETS, Policy::NESTED)
    .with(attribute::DEAD_CONN_TIMEOUT, Policy::U64)
    .with(attribute::DEVICE_LIST, Policy::NESTED)
    .with(attribute::BACKEND_IDENTIFIER, Policy::string(0))
    .with(attribute::HANDOVER, Policy::FLAG)
    .with(attribute::SOCKETS_TAKEN, Policy::U32)
    .with(attribute::SOCKETS_LEFT, Policy::U32);

/// Of the attributes in an item of the list of sockets.
pub(super) static SOCKET: Policies<{ socket::MAX as usize + 1 }> =
    Policies::new().with(socket::FD, Policy::U32);
