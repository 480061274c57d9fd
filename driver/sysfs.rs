// SPDX-License-Identifier: GPL-2.0

//! Files in `/sys/block/nbdN/`.

use super::device::Device;
use crate::abstractions::block::mq::{Attribute, Disk};
use kernel::{fmt::Write as _, prelude::*, str::Formatter};

/// `pid`: the task that attached the device. There while the device is attached: clients tell by
/// it whether a device is free.
pub(super) struct Pid;

impl Attribute<Device> for Pid {
    const NAME: &'static CStr = c"pid";

    fn show(disk: &Disk<Device>, to: &mut Formatter<'_>) -> Result {
        write!(to, "{}", disk.data().pid()).map_err(|_| EOVERFLOW)
    }
}
