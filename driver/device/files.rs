// SPDX-License-Identifier: GPL-2.0

//! What `/sys/block/nbdN/` has while the device is attached: `pid` and `backend`, as with nbd.ko.
//!
//! Reading takes the setup lock for a moment; nothing waits for a server under it.

use super::owner::Lifecycle;
use crate::{
    abstractions::block::mq::{Attribute, AttributeFile, Disk},
    driver::{attachment::Attachment, nbd::Nbd},
    protocol::setup::{Interface, Phase},
};
use kernel::{
    fmt::{self, Write as _},
    prelude::*,
    str::{BStr, Formatter},
};

/// The files of an attachment, in sysfs until this is dropped.
pub(crate) struct Files {
    _pid: AttributeFile<Nbd, Pid>,
    _backend: Option<AttributeFile<Nbd, Backend>>,
}

impl Files {
    /// Creates them for a disk that is attached by `interface`. Sleeps.
    pub(crate) fn create(disk: &Disk<Nbd>, interface: Interface) -> Result<Self> {
        Ok(Self {
            _pid: AttributeFile::create(disk)?,
            _backend: match interface {
                Interface::Netlink => Some(AttributeFile::create(disk)?),
                Interface::Ioctl => None,
            },
        })
    }
}

/// `pid`: the task that attached the device. There while the device is attached: clients tell by
/// it whether a device is free.
struct Pid;

impl Attribute<Nbd> for Pid {
    const NAME: &'static CStr = c"pid";

    fn show(disk: &Disk<Nbd>, to: &mut Formatter<'_>) -> Result {
        put(to, fmt!("{}", disk.data().device.pid()))
    }
}

/// `backend`: which backend a device is attached to, as was said when it was attached by netlink;
/// empty if that was not.
struct Backend;

impl Attribute<Nbd> for Backend {
    const NAME: &'static CStr = c"backend";

    fn show(disk: &Disk<Nbd>, to: &mut Formatter<'_>) -> Result {
        let life = disk.data().device.lock_setup();
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

/// Writes a value.
pub(crate) fn put(to: &mut Formatter<'_>, value: fmt::Arguments<'_>) -> Result {
    to.write_fmt(value).map_err(|_| EOVERFLOW)
}

/// What serves, while it does.
pub(crate) fn attachment(life: &Lifecycle) -> Option<&Attachment> {
    match life.phase() {
        Phase::Running { attachment, .. } | Phase::Draining { attachment, .. } => Some(attachment),
        Phase::Idle | Phase::Setup(_) | Phase::Gone => None,
    }
}
