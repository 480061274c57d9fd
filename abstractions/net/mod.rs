// SPDX-License-Identifier: GPL-2.0

//! Networking.

pub(crate) mod genetlink;
pub(crate) mod sockaddr;
pub(crate) mod socket;
pub(crate) mod staging;
