// SPDX-License-Identifier: GPL-2.0

//! Files in `/sys/block/nbdN/nbd/`: what state the device is in, one value each.
//!
//! Reading takes the setup lock for a moment; nothing waits for a server under it.

use crate::{
    abstractions::block::mq::{Attribute, AttributeGroup, DeviceAttribute, Disk},
    driver::{
        device::{
            files::{attachment, put},
            owner::Lifecycle,
        },
        nbd::Nbd,
    },
    protocol::setup::{Connections, Phase},
};
use kernel::{prelude::*, str::Formatter};

/// The directory `nbd`, there as long as the device is.
pub(crate) static GROUP: AttributeGroup<Nbd> = AttributeGroup {
    name: c"nbd",
    attributes: &ATTRIBUTES,
};

static ATTRIBUTES: [DeviceAttribute<Nbd>; 7] = [
    DeviceAttribute::of::<State>(),
    DeviceAttribute::of::<Generation>(),
    DeviceAttribute::of::<OwnerPid>(),
    DeviceAttribute::of::<OwnerComm>(),
    DeviceAttribute::of::<ConnectionCount>(),
    DeviceAttribute::of::<LiveConnections>(),
    DeviceAttribute::of::<LastError>(),
];

/// Declares an attribute that is read off the device's life.
macro_rules! attributes {
    ($($(#[$meta:meta])* $name:ident($file:literal) = |$life:ident, $to:ident| $show:expr;)*) => {$(
        $(#[$meta])*
        struct $name;

        impl Attribute<Nbd> for $name {
            const NAME: &'static CStr = $file;

            fn show(disk: &Disk<Nbd>, $to: &mut Formatter<'_>) -> Result {
                let $life = &*disk.data().device.lock_setup();
                $show
            }
        }
    )*};
}

attributes! {
    /// `state`: the phase of the newest generation: idle, setup, running, draining, gone.
    State(c"state") = |life, to| put(to, fmt!("{}", life.phase().name()));
    /// `generation`: its number; 0 before the first.
    Generation(c"generation") = |life, to| put(to, fmt!("{}", life.generation()));
    /// `owner_pid`: the process that sets up or has attached the device; 0 for none.
    OwnerPid(c"owner_pid") = |life, to| {
        put(to, fmt!("{}", life.owner().map_or(0, |owner| owner.number())))
    };
    /// `owner_comm`: the name of that process, also after it died; empty for none.
    OwnerComm(c"owner_comm") = |life, to| {
        put(to, fmt!("{}", life.owner().map_or("", |owner| owner.name())))
    };
    /// `connections`: how many sockets the generation has.
    ConnectionCount(c"connections") = |life, to| put(to, fmt!("{}", connections(life)));
    /// `live_connections`: how many of them are not dead.
    LiveConnections(c"live_connections") = |life, to| {
        // Until it is started a generation does not notice that a peer closes.
        let live = attachment(life).map_or(connections(life), |running| running.live() as usize);
        put(to, fmt!("{live}"))
    };
}

/// `last_error`: the last thing that went wrong, with the generation that it went wrong in.
struct LastError;

impl Attribute<Nbd> for LastError {
    const NAME: &'static CStr = c"last_error";

    fn show(disk: &Disk<Nbd>, to: &mut Formatter<'_>) -> Result {
        match disk.data().device.journal.last_error() {
            Some(error) => put(to, fmt!("{error}")),
            None => put(to, fmt!("none")),
        }
    }
}

fn connections(life: &Lifecycle) -> usize {
    match life.phase() {
        Phase::Setup(setup) => setup.connections.count(),
        _ => attachment(life).map_or(0, |running| running.connections.len()),
    }
}
