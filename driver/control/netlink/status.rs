// SPDX-License-Identifier: GPL-2.0

//! STATUS: which devices are there, and in use.
//!
//! Takes each device's setup lock for a moment; nothing waits for a server under it (invariant G6).

use super::request::wait_loaded;
use crate::{
    abstractions::net::genetlink::{
        nla_total_size, Info, Message, Nest, Operation, PutAttributes, Validation,
    },
    driver::{device::Device, devices::Devices},
    protocol::{
        netlink::{attribute, command, device},
        setup::Phase,
    },
};
use kernel::{prelude::*, sync::Arc};

/// Bytes of a device's item.
const ITEM: usize = nla_total_size(
    nla_total_size(size_of::<u32>()).saturating_add(nla_total_size(size_of::<u8>())),
);

/// The number that means all devices, as a `u32`: -1.
const ALL: u32 = u32::MAX;

/// `NBD_CMD_STATUS`. Anybody may ask, as with nbd.ko.
pub(super) struct Status;

impl Operation<Arc<Devices>> for Status {
    const COMMAND: u8 = command::STATUS;
    const VALIDATION: Validation = Validation::Liberal;

    /// Replies with a list of the device that was asked for, of none if there is no such device,
    /// or of all.
    fn doit(info: &Info<'_, Arc<Devices>>) -> Result {
        let index = match info.get(attribute::INDEX) {
            Some(index) => index.u32()?,
            None => ALL,
        };
        wait_loaded(info)?;
        let devices = info.data();
        let count = match index {
            ALL => devices.count(),
            _ => 1,
        };
        // Some may be added meanwhile.
        let room = nla_total_size(ITEM.saturating_mul(count.saturating_add(8)));
        let mut reply = info.new_reply(room)?;
        fill(&mut reply, devices, index).inspect_err(|_| {
            info.ext_ack().set_msg(fmt!(
                "{count} devices are too many for one reply: ask by index"
            ));
        })?;
        info.reply(reply)
    }
}

/// Fails if there is no room.
fn fill(reply: &mut Message, devices: &Devices, index: u32) -> Result {
    let mut list = reply.nest_noflag(attribute::DEVICE_LIST)?;
    if index == ALL {
        devices.try_for_each(|device| put(&mut list, device))?;
    } else if let Some(entry) = devices.find(index) {
        put(&mut list, entry.device())?;
    }
    list.end()
}

fn put(list: &mut Nest<'_>, nbd: &Device) -> Result {
    // nbd.ko also counts a device as connected that is open and nothing else.
    let connected = !matches!(nbd.lock_setup().phase(), Phase::Idle);
    let mut item = list.nest_noflag(device::ITEM)?;
    item.put_u32(device::INDEX, nbd.index())?;
    item.put_u8(device::CONNECTED, connected.into())?;
    item.end()
}
