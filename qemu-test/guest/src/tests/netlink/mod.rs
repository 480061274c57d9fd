// SPDX-License-Identifier: GPL-2.0
//! The generic netlink family. What nbd.ko answers is what is asked for.

mod attach;
pub mod attached;
mod backend;
mod bounded;
mod client;
mod close;
mod concurrent;
pub mod destroy;
mod family;
mod handover;
mod input;
mod input_change;
pub mod load;
mod mixed;
mod parked;
mod processes;
mod replace;
mod resize;
mod status;
mod timeout;

use anyhow::{Context as _, Result, anyhow, bail};
use netlink_packet_core::DefaultNla;

use super::Test;
use crate::netlink::{
    Answer, Client, Family, Message, Status, attr, attr_nested, attr_u8, attr_u32, command, to_bytes,
};

pub const TESTS: [&[Test]; 18] = [
    family::TESTS,
    status::TESTS,
    attach::TESTS,
    input::TESTS,
    input_change::TESTS,
    backend::TESTS,
    replace::TESTS,
    parked::TESTS,
    handover::TESTS,
    processes::TESTS,
    timeout::TESTS,
    resize::TESTS,
    close::TESTS,
    destroy::TESTS,
    client::TESTS,
    mixed::TESTS,
    bounded::TESTS,
    concurrent::TESTS,
];

fn ok<T>(answer: Answer<T>) -> Result<T> {
    answer.map_err(|refusal| anyhow!("refused: {refusal:?}"))
}

fn found() -> Result<Family> {
    Family::find()?.context("there is no family nbd")
}

/// The reply to STATUS of devices that are all free, as bytes.
fn reply_of_free(devices: impl IntoIterator<Item = u32>) -> Message {
    let item = |index| {
        let fields = [attr_u32(attr::DEVICE_INDEX, index), attr_u8(attr::DEVICE_CONNECTED, 0)];
        attr_nested(attr::DEVICE_ITEM, &fields)
    };
    let items: Vec<DefaultNla> = devices.into_iter().map(item).collect();
    Message { command: command::STATUS, payload: to_bytes(&[attr_nested(attr::DEVICE_LIST, &items)]) }
}

fn connected(client: &Client, index: u32) -> Result<bool> {
    match ok(client.status(Some(index))?)?[..] {
        [Status { index: told, connected }] if told == index => Ok(connected != 0),
        ref other => bail!("STATUS of device {index} told {other:?}"),
    }
}
