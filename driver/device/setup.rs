// SPDX-License-Identifier: GPL-2.0

//! Setting a device up: `NBD_SET_SOCK` and its like.

use super::{
    geometry,
    refusal::{refuse, Bad, NotTaken, MAX_TIMEOUT},
    slot::disk_use,
    Device,
};
use crate::{
    abstractions::{
        block::mq::{max_block_size, IoctlMode},
        net::socket::Socket,
        pid::ProcessRef,
    },
    driver::attachment::{Attachment, AttachmentRef},
    protocol::{
        flags::TransmissionFlags,
        geometry::{BadGeometry, BlockSize, ExportSize},
        setup::{Config, Configured, DiskUse, Failure, Phase},
    },
};
use core::cell::Cell;
use kernel::prelude::*;

/// `NBD_SET_SOCK`: adds a socket to the caller's setup.
pub(crate) fn add_socket(device: &Device, mode: IoctlMode, fd: usize) -> Result {
    let Ok(fd) = i32::try_from(fd) else {
        device_err!(device, "{fd} is no file descriptor\n");
        return Err(EINVAL);
    };
    let caller = ProcessRef::current();
    // First the refusals that are not the socket's fault, as nbd.ko does.
    device.when_drained(|_| ())?;
    let disk_use = match device.disk() {
        Some(disk) => disk_use(&disk, mode),
        None => DiskUse::Shared,
    };
    device
        .when_drained(|life| life.may_add(&caller, disk_use))?
        .map_err(|refusal| refuse(device, refusal))?;
    let socket = Socket::from_fd(fd).map_err(|why| {
        let not_taken = NotTaken { fd, why };
        device_err!(device, "{not_taken}\n");
        not_taken.errno()
    })?;
    let (replaced, added) = device.when_drained(move |life| {
        life.add(caller, disk_use, |_, connections| {
            connections.push(&device.journal, socket)
        })
    })?;
    if let Some(orphan) = replaced {
        orphan.dispose();
    }
    added.map_err(|failure| match failure {
        Failure::Refused(refusal) => refuse(device, refusal),
        Failure::Step(error) => {
            device_err!(device, "cannot take the socket ({error:?})\n");
            error
        }
    })
}

/// Changes what is known of the export, and hands a running generation to `live` with it.
fn configure(
    device: &Device,
    change: impl FnOnce(&mut Config) -> Result<(), BadGeometry>,
    live: impl FnOnce(&AttachmentRef) -> Result,
) -> Result {
    let configured = device
        .when_drained(|life| life.configure(ProcessRef::current(), change))?
        .map_err(|failure| match failure {
            Failure::Refused(refusal) => refuse(device, refusal),
            Failure::Step(bad) => refuse_geometry(device, bad),
        })?;
    match configured {
        Configured::Setup(None) => Ok(()),
        Configured::Setup(Some(orphan)) => {
            orphan.dispose();
            Ok(())
        }
        Configured::Live(attachment) => live(&attachment),
    }
}

fn refuse_geometry(device: &Device, bad: BadGeometry) -> Error {
    device_err!(device, "{}\n", Bad(bad));
    EINVAL
}

/// `NBD_SET_BLKSIZE`.
///
/// # Errors
///
/// `EBUSY` if the device is attached, and requests are under way that are not answered: then the
/// block size stays. Else as all of its like.
pub(crate) fn set_block_size(device: &Device, bytes: usize) -> Result {
    let before = Cell::new(BlockSize::DEFAULT);
    configure(
        device,
        |config| {
            let after = BlockSize::new(bytes as u64, max_block_size())?;
            before.set(core::mem::replace(&mut config.block_size, after));
            Ok(())
        },
        |attachment| {
            geometry::apply(device, attachment).map_err(|why| {
                keep_block_size(device, attachment, before.get());
                device_err!(device, "block size not changed: {why}\n");
                why.errno()
            })
        },
    )
}

/// The disk of a running generation still has this block size, whatever was said since.
fn keep_block_size(device: &Device, attachment: &Attachment, block_size: BlockSize) {
    device.change(|life| {
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
pub(crate) fn set_size(device: &Device, bytes: usize) -> Result {
    configure(
        device,
        |config| {
            config.size = ExportSize::from_bytes(bytes as u64)?;
            Ok(())
        },
        |attachment| resize(device, attachment),
    )
}

/// `NBD_SET_SIZE_BLOCKS`.
pub(crate) fn set_size_blocks(device: &Device, blocks: usize) -> Result {
    configure(
        device,
        |config| {
            config.size = ExportSize::from_blocks(blocks as u64, config.block_size)?;
            Ok(())
        },
        |attachment| resize(device, attachment),
    )
}

fn resize(device: &Device, attachment: &Attachment) -> Result {
    geometry::apply_size(device, attachment);
    Ok(())
}

/// `NBD_SET_FLAGS`.
pub(crate) fn set_flags(device: &Device, flags: usize) -> Result {
    // The rest of the argument means nothing, and nbd.ko ignores it too.
    let flags = TransmissionFlags::from_bits(flags as u32);
    configure(
        device,
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
pub(crate) fn set_timeout(device: &Device, seconds: usize) -> Result {
    let Some(seconds) = u32::try_from(seconds).ok().filter(|&s| s <= MAX_TIMEOUT) else {
        device_err!(
            device,
            "time-out of {seconds} s: must be at most {MAX_TIMEOUT}\n"
        );
        return Err(EINVAL);
    };
    configure(
        device,
        |config| {
            config.timeout = seconds;
            Ok(())
        },
        |attachment| {
            geometry::apply_timeout(device, attachment);
            Ok(())
        },
    )
}
