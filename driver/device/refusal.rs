// SPDX-License-Identifier: GPL-2.0

//! Why a change of a device's setup is refused: messages and errno.

use super::Device;
use crate::{
    abstractions::{block::mq::max_block_size, net::socket::Unusable},
    protocol::{geometry::BadGeometry, request::Route, setup::Refusal},
};
use kernel::{fmt, prelude::*, str::CString};

/// Longest time-out that can be set, in seconds: what the block layer can count, in milliseconds.
pub(crate) const MAX_TIMEOUT: u32 = u32::MAX / 1000;

/// Says in the log why a change of the setup is refused, unless it says so all the time, and gives
/// its errno.
///
/// Takes the setup lock for the owner's name, and looks at the disk's exclusive user.
pub(crate) fn refuse(device: &Device, refusal: Refusal) -> Error {
    if device.journal.log_limit.ratelimit().is_some() {
        let why = RefusalMessage::new(device, refusal);
        device_err!(device, "{why}\n");
    }
    errno(refusal)
}

/// The errno of a refusal.
pub(crate) fn errno(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Owned
        | Refusal::Running
        | Refusal::Draining
        | Refusal::Held
        | Refusal::NeedsDisk => EBUSY,
        Refusal::NoConnection
        | Refusal::NotMultiConn
        | Refusal::Netlink
        | Refusal::NotNetlink
        | Refusal::Gone => EINVAL,
        Refusal::TooManyConnections => ENOSPC,
    }
}

/// Why a change of a disk's setup is refused, and what to do about it.
///
/// It is found out beforehand: what is shown in the log is written with interrupts off.
pub(crate) struct RefusalMessage {
    refusal: Refusal,
    /// Who is in the way, if that is known.
    who: Option<CString>,
}

impl RefusalMessage {
    /// Takes the setup lock for the owner's name, and looks at the disk's exclusive user.
    pub(crate) fn new(device: &Device, refusal: Refusal) -> Self {
        let who = match refusal {
            Refusal::Owned | Refusal::Running | Refusal::Netlink => {
                let life = device.lock_setup();
                life.owner()
                    .map(|owner| CString::try_from_fmt(fmt!("{owner}")))
            }
            Refusal::Held => {
                let disk = device.disk();
                let user = disk.and_then(|disk| disk.bd_holder());
                user.map(|user| CString::try_from_fmt(fmt!("{user}")))
            }
            _ => None,
        };
        Self {
            refusal,
            who: who.and_then(Result::ok),
        }
    }
}

/// What is the same for every disk.
impl From<Refusal> for RefusalMessage {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, who: None }
    }
}

impl fmt::Display for RefusalMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.refusal, self.who.as_deref()) {
            (Refusal::Owned, Some(owner)) => {
                f.write_fmt(fmt!("being set up by {owner}: wait, or NBD_CLEAR_SOCK"))
            }
            (Refusal::Owned, None) => {
                write!(
                    f,
                    "being set up by another process: wait, or NBD_CLEAR_SOCK"
                )
            }
            (Refusal::Running | Refusal::Netlink, Some(owner)) => {
                f.write_fmt(fmt!("in use, attached by {owner}: disconnect it first"))
            }
            (Refusal::Running | Refusal::Netlink, None) => {
                write!(f, "in use: disconnect it first")
            }
            (Refusal::Held, Some(user)) => {
                f.write_fmt(fmt!("still used by {user}: unmount or release it first"))
            }
            (Refusal::Held, None) => write!(f, "still used exclusively: release it first"),
            (Refusal::Draining, _) => {
                write!(f, "the last attachment is not gone yet: try again")
            }
            (Refusal::NeedsDisk, _) => {
                write!(
                    f,
                    "the disk of the last attachment is not gone yet: try again"
                )
            }
            (Refusal::NoConnection, _) => {
                write!(f, "no socket was set: it comes before the start")
            }
            (Refusal::NotMultiConn, _) => write!(
                f,
                "several sockets, but the flags lack NBD_FLAG_CAN_MULTI_CONN: set it, or take one"
            ),
            (Refusal::TooManyConnections, _) => {
                write!(f, "too many sockets: at most {}", Route::MAX_CONNECTIONS)
            }
            (Refusal::NotNetlink, _) => write!(f, "not attached by netlink: connect it first"),
            (Refusal::Gone, _) => write!(f, "the device is being removed: open it anew"),
        }
    }
}

/// Why a file descriptor is not taken.
pub(crate) struct NotTaken {
    pub(crate) fd: i32,
    pub(crate) why: Unusable,
}

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fd = self.fd;
        match self.why {
            Unusable::NotSocket(error) => {
                write!(f, "file descriptor {fd} is no socket ({error:?})")
            }
            Unusable::NotStream => {
                write!(
                    f,
                    "file descriptor {fd}: unsupported socket, should be TCP or a UNIX stream"
                )
            }
            Unusable::NoShutdown => write!(
                f,
                "file descriptor {fd}: unsupported socket, it cannot be shut down"
            ),
        }
    }
}

impl NotTaken {
    pub(crate) fn errno(&self) -> Error {
        match self.why {
            Unusable::NotSocket(error) => error,
            Unusable::NotStream | Unusable::NoShutdown => EINVAL,
        }
    }
}

/// What is wrong with an export's size or block size.
pub(crate) struct Bad(pub(crate) BadGeometry);

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            BadGeometry::BlockSize(bytes) => write!(
                f,
                "block size {bytes}: must be a power of two from 512 to {}",
                max_block_size()
            ),
            BadGeometry::Size { count, unit } => write!(
                f,
                "size of {count} times {unit} bytes: larger than a block device can be"
            ),
        }
    }
}
