// SPDX-License-Identifier: GPL-2.0

//! Sizes and limits of a generation's disk.

use super::Device;
use crate::{
    abstractions::block::mq::{Disk, IoctlMode, QueueLimits},
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
use kernel::prelude::*;

/// Largest range that one request can name, in sectors: its length has 32 bits, in bytes.
const MAX_RANGE_SECTORS: u32 = u32::MAX >> 9;

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
fn current_config(device: &Device, attachment: &Attachment) -> Option<Config> {
    match device.lock_setup().phase() {
        Phase::Running {
            config,
            attachment: current,
            ..
        } if current.generation == attachment.generation => Some(*config),
        _ => None,
    }
}

/// Tells the disk what is known of its export now. Sleeps; no lock may be held.
///
/// A generation that has ended meanwhile is left alone: its disk stays empty.
pub(crate) fn apply(device: &Device, attachment: &Attachment) -> Result {
    attachment.disk().update_limits(|limits| {
        // Read under the limits' lock: whoever comes last sees what was said last.
        if let Some(config) = current_config(device, attachment) {
            // Without what the server has turned out not to support.
            set_limits(limits, config.flags.both(attachment.flags()));
            limits.block_size(config.block_size.bytes() as u32);
        }
    })?;
    apply_size(device, attachment);
    Ok(())
}

/// Tells the disk the export's size alone, for which no request needs to be waited for. Sleeps.
pub(crate) fn apply_size(device: &Device, attachment: &Attachment) {
    let life = device.lock_setup();
    let Phase::Running {
        config,
        attachment: current,
        ..
    } = life.phase()
    else {
        return;
    };
    if current.generation != attachment.generation {
        return;
    }
    let disk = attachment.disk();
    // Before the capacity, for who hears of that opens the disk at once; and after it, for who
    // opened it in between saw it empty.
    need_partition_scan(disk);
    disk.set_capacity_and_notify(config.size.sectors());
    need_partition_scan(disk);
}

/// Bounds requests and sends by the configured time-out. Any context.
pub(crate) fn apply_timeout(attachment: &Attachment, seconds: u32) {
    attachment.set_timeout(seconds);
    attachment.disk().set_rq_timeout(match seconds {
        0 => timeout::UNBOUNDED_INTERVAL,
        seconds => seconds,
    });
}

/// Empties the disk of a generation that has ended. Sleeps; no lock may be held.
pub(crate) fn clear(disk: &Disk<Nbd>, mode: IoctlMode) {
    // As above: whoever opens it takes the partitions away.
    need_partition_scan(disk);
    disk.set_capacity_and_notify(0);
    match disk.claim(mode) {
        Ok(claim) => claim.force_media_change(),
        // Its user keeps what he has cached. What he writes fails, and the device goes to no other
        // export before he lets go.
        Err(_) => match disk.bd_holder() {
            Some(user) => dev_warn!(disk.device(), "detached under {user}\n"),
            None => dev_warn!(disk.device(), "detached under an exclusive user\n"),
        },
    }
    if let Err(error) = disk.update_limits(|limits| {
        set_limits(limits, TransmissionFlags::default());
    }) {
        // They are set anew with the next generation.
        dev_warn!(disk.device(), "queue limits not reset ({error:?})\n");
    }
    need_partition_scan(disk);
}

fn need_partition_scan(disk: &Disk<Nbd>) {
    if params::partitions_allowed() {
        disk.need_part_scan();
    }
}
