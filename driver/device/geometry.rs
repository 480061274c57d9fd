// SPDX-License-Identifier: GPL-2.0

//! Sizes and limits of a generation's disk.

use super::{owner::Lifecycle, Device};
use crate::{
    abstractions::block::mq::{Disk, QueueLimits},
    driver::{
        attachment::{timeout, Attachment},
        nbd::Nbd,
        params,
        wire::overseer::Overseer,
    },
    protocol::{
        flags::TransmissionFlags,
        setup::{Config, Phase},
    },
};
use kernel::{fmt, prelude::*};

/// Largest range that one request can name, in sectors: its length has 32 bits, in bytes.
const MAX_RANGE_SECTORS: u32 = u32::MAX >> 9;

/// How long the disk's open lock is waited for, in milliseconds.
const OPEN_PATIENCE_MS: u32 = 2000;

/// Why a disk's geometry cannot be changed now.
#[derive(Clone, Copy)]
pub(crate) enum NotApplied {
    /// The disk is open, and its page cache has smaller blocks.
    PageCache,
    /// Somebody uses the disk exclusively, and may just be setting the block size of its page cache.
    Held,
    /// Requests under way are not answered, or sysfs is being written to, or somebody opens or closes the
    /// disk and waits.
    Limits(Error),
}

impl NotApplied {
    pub(crate) fn errno(self) -> Error {
        match self {
            Self::PageCache | Self::Held => EBUSY,
            Self::Limits(error) => error,
        }
    }
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PageCache => write!(
                f,
                "the device is open, and cached in smaller blocks: close it, or attach anew"
            ),
            Self::Held => write!(
                f,
                "the device is used exclusively, and its blocks would become larger: unmount or release it first"
            ),
            Self::Limits(error) => write!(
                f,
                "requests under way are not answered ({error:?}): try again"
            ),
        }
    }
}

fn set_limits(limits: &mut QueueLimits, flags: TransmissionFlags) {
    let if_flag = |flag, sectors| if flags.contains(flag) { sectors } else { 0 };
    limits
        .write_cache(flags.write_cache())
        .fua(flags.fua())
        .rotational(flags.contains(TransmissionFlags::ROTATIONAL))
        .max_hw_discard_sectors(if_flag(TransmissionFlags::SEND_TRIM, MAX_RANGE_SECTORS))
        .max_write_zeroes_sectors(if_flag(
            TransmissionFlags::SEND_WRITE_ZEROES,
            MAX_RANGE_SECTORS,
        ));
}

/// The running generation's configuration, if it still is `attachment`'s.
fn running_config(life: &Lifecycle, attachment: &Attachment) -> Option<Config> {
    match life.phase() {
        Phase::Running {
            config,
            attachment: current,
            ..
        } if current.generation == attachment.generation => Some(*config),
        _ => None,
    }
}

fn current_config(device: &Device, attachment: &Attachment) -> Option<Config> {
    running_config(&device.lock_setup(), attachment)
}

/// Tells the disk what is known of its export now. Sleeps; no lock may be held.
///
/// A generation that has ended meanwhile is left alone: its disk stays empty.
///
/// # Errors
///
/// Then neither the size nor the limits are changed.
pub(crate) fn apply(device: &Device, attachment: &Attachment) -> Result<(), NotApplied> {
    let disk = attachment.disk();
    let Some(config) = current_config(device, attachment) else {
        return Ok(());
    };
    let block_size = config.block_size.bytes() as u32;
    // Blocks of the page cache may be larger than the disk's, and not smaller. With the lock none is
    // opened meanwhile.
    let _locked = match disk.logical_block_size() == block_size {
        true => None,
        false => {
            let locked = disk
                .lock_open_timeout(OPEN_PATIENCE_MS)
                .ok_or(NotApplied::Limits(EBUSY))?;
            if !locked.page_cache_fits(block_size) {
                return Err(NotApplied::PageCache);
            }
            // To set it takes an exclusive user a while, and the limit is looked at before.
            if block_size > disk.logical_block_size() && disk.bd_holder().is_some() {
                return Err(NotApplied::Held);
            }
            Some(locked)
        }
    };
    disk.update_limits(|limits| {
        // Read under the limits' lock: the last one to come sees what was said last.
        if let Some(config) = current_config(device, attachment) {
            // Without what the server has turned out not to support.
            set_limits(limits, config.flags.both(attachment.flags()));
            limits.block_size(config.block_size.bytes() as u32);
        }
    })
    .map_err(NotApplied::Limits)?;
    apply_size(device, attachment);
    Ok(())
}

/// Tells the disk the export's size alone, for which no request needs to be waited for. Sleeps.
pub(crate) fn apply_size(device: &Device, attachment: &Attachment) {
    let life = device.lock_setup();
    let Some(config) = running_config(&life, attachment) else {
        return;
    };
    let disk = attachment.disk();
    // Before the capacity, since listeners open the disk at once; and after it, since what
    // opened it in between saw it empty.
    need_partition_scan(disk);
    disk.set_capacity_and_notify(config.size.sectors());
    need_partition_scan(disk);
}

/// Bounds requests and sends by the configured time-out, if the generation still is `attachment`'s.
/// May sleep.
pub(crate) fn apply_timeout(device: &Device, attachment: &Attachment) {
    // Under the lock: a kept disk may be the next generation's.
    let life = device.lock_setup();
    let Some(config) = running_config(&life, attachment) else {
        return;
    };
    attachment.set_timeout(config.timeout);
    attachment.disk().set_rq_timeout(match config.timeout {
        0 => timeout::UNBOUNDED_INTERVAL,
        seconds => seconds,
    });
}

/// Empties the disk of a generation that has ended. Sleeps; no lock may be held.
pub(crate) fn clear(disk: &Disk<Nbd>) {
    // An open must not look for partitions as long as the disk is open elsewhere: it would wait for all
    // that is being written, which may be held back.
    disk.clear_need_part_scan();
    match disk.bd_holder() {
        // It is not told that its disk is dead: it may be attached again.
        Some(holder) => dev_warn!(disk.device(), "detached under {holder}\n"),
        None => disk.next_diskseq(),
    }
    disk.set_capacity_and_notify(0);
    if let Err(error) = disk.update_limits(|limits| {
        set_limits(limits, TransmissionFlags::default());
    }) {
        // They are set anew with the next generation.
        dev_warn!(disk.device(), "queue limits not reset ({error:?})\n");
    }
}

fn need_partition_scan(disk: &Disk<Nbd>) {
    if params::partitions_allowed() {
        disk.need_part_scan();
    }
}
