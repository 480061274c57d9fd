// SPDX-License-Identifier: GPL-2.0

//! Setting a device up: `NBD_SET_SOCK` and its like.

use super::{
    attachment::{Attachment, AttachmentRef},
    connection::Connection,
    device::Device,
    geometry, teardown,
};
use crate::{
    abstractions::{
        block::mq::{max_block_size, Disk, IoctlMode},
        net::socket::{Socket, Unusable},
        pid::ProcessRef,
    },
    protocol::{
        flags::TransmissionFlags,
        geometry::{BadGeometry, BlockSize, ExportSize},
        request::Route,
        setup::{Config, Configured, DiskUse, Failure, Phase, Refusal},
    },
};
use core::cell::Cell;
use kernel::{fmt, prelude::*, str::CString};

/// Longest time-out that can be set, in seconds: what the block layer can count, in milliseconds.
pub(super) const MAX_TIMEOUT: u32 = u32::MAX / 1000;

/// Says in the log why a change of the setup is refused, unless it says so all the time, and gives
/// its errno.
///
/// Takes the setup lock for the owner's name, and the disk's open lock for its exclusive user's.
pub(super) fn refuse(disk: &Disk<Device>, refusal: Refusal) -> Error {
    if disk.data().said.ratelimit().is_some() {
        let why = Explained::new(disk, refusal);
        dev_err!(disk.device(), "{why}\n");
    }
    errno(refusal)
}

/// The errno of a refusal.
pub(super) fn errno(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Owned | Refusal::Running | Refusal::Draining | Refusal::Held => EBUSY,
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
pub(super) struct Explained {
    refusal: Refusal,
    /// Who is in the way, if that is known.
    who: Option<CString>,
}

impl Explained {
    /// Takes the setup lock for the owner's name, and the disk's open lock for its exclusive user's.
    pub(super) fn new(disk: &Disk<Device>, refusal: Refusal) -> Self {
        let who = match refusal {
            Refusal::Owned | Refusal::Running | Refusal::Netlink => {
                let life = disk.data().lock_setup();
                life.owner()
                    .map(|owner| CString::try_from_fmt(fmt!("{owner}")))
            }
            Refusal::Held => {
                let user = disk.bd_holder();
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
impl From<Refusal> for Explained {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, who: None }
    }
}

impl fmt::Display for Explained {
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

/// `NBD_SET_SOCK`: adds a socket to the caller's setup.
pub(super) fn add_socket(disk: &Disk<Device>, mode: IoctlMode, fd: usize) -> Result {
    let Ok(fd) = i32::try_from(fd) else {
        dev_err!(disk.device(), "{fd} is no file descriptor\n");
        return Err(EINVAL);
    };
    let caller = ProcessRef::current();
    // First the refusals that are not the socket's fault, as nbd.ko does.
    disk.data().when_drained(|_| ())?;
    let disk_use = match disk.claim(mode) {
        Ok(_) => DiskUse::Shared,
        Err(_) => DiskUse::Exclusive,
    };
    disk.data()
        .when_drained(|life| life.may_add(&caller, disk_use))?
        .map_err(|refusal| refuse(disk, refusal))?;
    let socket = Socket::from_fd(fd).map_err(|why| {
        let not_taken = NotTaken { fd, why };
        dev_err!(disk.device(), "{not_taken}\n");
        not_taken.errno()
    })?;
    let (replaced, added) = disk.data().when_drained(move |life| {
        life.add(caller, disk_use, |_, connections| {
            let index = u16::try_from(connections.0.len())?;
            let connection = Connection::new(disk, index, socket)?;
            connections.0.push(connection, GFP_KERNEL)?;
            Ok(())
        })
    })?;
    if let Some(orphan) = replaced {
        teardown::dispose(orphan);
    }
    added.map_err(|failure| match failure {
        Failure::Refused(refusal) => refuse(disk, refusal),
        Failure::Step(error) => {
            dev_err!(disk.device(), "cannot take the socket ({error:?})\n");
            error
        }
    })
}

/// Why a file descriptor is not taken.
pub(super) struct NotTaken {
    pub(super) fd: i32,
    pub(super) why: Unusable,
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
    pub(super) fn errno(&self) -> Error {
        match self.why {
            Unusable::NotSocket(error) => error,
            Unusable::NotStream | Unusable::NoShutdown => EINVAL,
        }
    }
}

/// Changes what is known of the export, and hands a running generation to `live` with it.
fn configure(
    disk: &Disk<Device>,
    change: impl FnOnce(&mut Config) -> Result<(), BadGeometry>,
    live: impl FnOnce(&AttachmentRef) -> Result,
) -> Result {
    let configured = disk
        .data()
        .when_drained(|life| life.configure(ProcessRef::current(), change))?
        .map_err(|failure| match failure {
            Failure::Refused(refusal) => refuse(disk, refusal),
            Failure::Step(bad) => refuse_geometry(disk, bad),
        })?;
    match configured {
        Configured::Setup(None) => Ok(()),
        Configured::Setup(Some(orphan)) => {
            teardown::dispose(orphan);
            Ok(())
        }
        Configured::Live(attachment) => live(&attachment),
    }
}

fn refuse_geometry(disk: &Disk<Device>, bad: BadGeometry) -> Error {
    dev_err!(disk.device(), "{}\n", Bad(bad));
    EINVAL
}

/// What is wrong with an export's size or block size.
pub(super) struct Bad(pub(super) BadGeometry);

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

/// `NBD_SET_BLKSIZE`.
///
/// # Errors
///
/// `EBUSY` if the device is attached, and requests are under way that are not answered: then the
/// block size stays. Else as all of its like.
pub(super) fn set_block_size(disk: &Disk<Device>, bytes: usize) -> Result {
    let before = Cell::new(BlockSize::DEFAULT);
    configure(
        disk,
        |config| {
            let after = BlockSize::new(bytes as u64, max_block_size())?;
            before.set(core::mem::replace(&mut config.block_size, after));
            Ok(())
        },
        |attachment| {
            geometry::apply(disk, attachment).inspect_err(|error| {
                keep_block_size(disk, attachment, before.get());
                dev_err!(
                    disk.device(),
                    "block size not changed ({error:?}): requests under way are not answered, try again\n"
                );
            })
        },
    )
}

/// The disk of a running generation still has this block size, whatever was said since.
fn keep_block_size(disk: &Disk<Device>, attachment: &Attachment, block_size: BlockSize) {
    disk.data().change(|life| {
        // If it has ended meanwhile there is nothing to keep, and nothing is to be set up by this.
        let runs = matches!(life.phase(), Phase::Running { .. });
        if !runs || life.generation() != attachment.generation {
            return;
        }
        let _ = life.configure(ProcessRef::current(), |config| {
            config.block_size = block_size;
            Ok::<(), Error>(())
        });
    });
}

/// `NBD_SET_SIZE`.
pub(super) fn set_size(disk: &Disk<Device>, bytes: usize) -> Result {
    configure(
        disk,
        |config| {
            config.size = ExportSize::from_bytes(bytes as u64)?;
            Ok(())
        },
        |attachment| resize(disk, attachment),
    )
}

/// `NBD_SET_SIZE_BLOCKS`.
pub(super) fn set_size_blocks(disk: &Disk<Device>, blocks: usize) -> Result {
    configure(
        disk,
        |config| {
            config.size = ExportSize::from_blocks(blocks as u64, config.block_size)?;
            Ok(())
        },
        |attachment| resize(disk, attachment),
    )
}

fn resize(disk: &Disk<Device>, attachment: &Attachment) -> Result {
    geometry::apply_size(disk, attachment);
    Ok(())
}

/// `NBD_SET_FLAGS`.
pub(super) fn set_flags(disk: &Disk<Device>, flags: usize) -> Result {
    // The rest of the argument means nothing, and nbd.ko ignores it too.
    let flags = TransmissionFlags::from_bits(flags as u32);
    configure(
        disk,
        |config| {
            config.flags = flags;
            Ok(())
        },
        |attachment| {
            attachment.set_flags(flags);
            Ok(())
        },
    )
}

/// `NBD_SET_TIMEOUT`.
pub(super) fn set_timeout(disk: &Disk<Device>, seconds: usize) -> Result {
    let Some(seconds) = u32::try_from(seconds).ok().filter(|&s| s <= MAX_TIMEOUT) else {
        dev_err!(
            disk.device(),
            "time-out of {seconds} s: must be at most {MAX_TIMEOUT}\n"
        );
        return Err(EINVAL);
    };
    configure(
        disk,
        |config| {
            config.timeout = seconds;
            Ok(())
        },
        |attachment| {
            geometry::apply_timeout(disk, attachment, seconds);
            Ok(())
        },
    )
}
