// SPDX-License-Identifier: GPL-2.0

//! Block devices.

pub(crate) mod major;
pub(crate) mod mq;
