// SPDX-License-Identifier: GPL-2.0

//! Files in `/sys/block/nbdN/`: `pid` and `backend`, as nbd.ko has them, and what state the device is in, one
//! value each, in `nbd/`.
//!
//! Reading takes the setup lock for a moment; nobody waits for a server under it.

use super::{attachment::Attachment, device::Device, owner::Lifecycle};
use crate::{
    abstractions::block::mq::{Attribute, AttributeGroup, DeviceAttribute, Disk},
    protocol::setup::{Connections, Phase},
};
use kernel::{
    fmt::{self, Write as _},
    prelude::*,
    str::{BStr, Formatter},
};

/// `pid`: the task that attached the device. There while the device is attached: clients tell by
/// it whether a device is free.
pub(super) struct Pid;

impl Attribute<Device> for Pid {
    const NAME: &'static CStr = c"pid";

    fn show(disk: &Disk<Device>, to: &mut Formatter<'_>) -> Result {
        put(to, fmt!("{}", disk.data().pid()))
    }
}

/// `backend`: which backend a device is attached to, as whoever attached it by netlink said; empty
/// if he did not.
pub(super) struct Backend;

impl Attribute<Device> for Backend {
    const NAME: &'static CStr = c"backend";

    fn show(disk: &Disk<Device>, to: &mut Formatter<'_>) -> Result {
        let life = disk.data().lock_setup();
        let backend = attachment(&life).and_then(|running| running.keeper.backend());
        match core::str::from_utf8(backend.unwrap_or_default()) {
            Ok(text) => put(to, fmt!("{text}")),
            Err(_) => put(
                to,
                fmt!("{}", BStr::from_bytes(backend.unwrap_or_default())),
            ),
        }
    }
}

/// The directory `nbd`, there as long as the device is.
pub(super) const GROUP: AttributeGroup<Device> = AttributeGroup {
    name: c"nbd",
    attributes: &ATTRIBUTES,
};

static ATTRIBUTES: [DeviceAttribute<Device>; 7] = [
    DeviceAttribute::of::<State>(),
    DeviceAttribute::of::<Generation>(),
    DeviceAttribute::of::<OwnerPid>(),
    DeviceAttribute::of::<OwnerComm>(),
    DeviceAttribute::of::<ConnectionCount>(),
    DeviceAttribute::of::<LiveConnections>(),
    DeviceAttribute::of::<LastError>(),
];

fn put(to: &mut Formatter<'_>, value: fmt::Arguments<'_>) -> Result {
    to.write_fmt(value).map_err(|_| EOVERFLOW)
}

/// Declares an attribute that is read off the device's life.
macro_rules! attributes {
    ($($(#[$meta:meta])* $name:ident($file:literal) = |$life:ident, $to:ident| $show:expr;)*) => {$(
        $(#[$meta])*
        struct $name;

        impl Attribute<Device> for $name {
            const NAME: &'static CStr = $file;

            fn show(disk: &Disk<Device>, $to: &mut Formatter<'_>) -> Result {
                let $life = &*disk.data().lock_setup();
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

impl Attribute<Device> for LastError {
    const NAME: &'static CStr = c"last_error";

    fn show(disk: &Disk<Device>, to: &mut Formatter<'_>) -> Result {
        match disk.data().trouble() {
            Some(trouble) => put(to, fmt!("{trouble}")),
            None => put(to, fmt!("none")),
        }
    }
}

fn attachment(life: &Lifecycle) -> Option<&Attachment> {
    match life.phase() {
        Phase::Running { attachment, .. } | Phase::Draining { attachment, .. } => Some(attachment),
        Phase::Idle | Phase::Setup(_) | Phase::Gone => None,
    }
}

fn connections(life: &Lifecycle) -> usize {
    match life.phase() {
        Phase::Setup(setup) => setup.connections.count(),
        _ => attachment(life).map_or(0, |running| running.connections.len()),
    }
}
