// SPDX-License-Identifier: GPL-2.0

//! What the block layer asks of the driver.
//!
//! C headers: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h),
//! [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    attachment::{submit, timeout, AttachmentRef},
    control::ioctl,
    device::{
        disk::{note_partitions, DiskData},
        end,
    },
    nbd::{Nbd, RequestData},
};
use crate::abstractions::{
    block::mq::{Disk, IoctlMode, OpenMode, Operations, Request, Timeout, Unopened},
    pid,
};
use kernel::prelude::*;

#[vtable]
impl Operations for Nbd {
    type DiskData = DiskData;
    type Attachment = AttachmentRef;
    type RequestData = RequestData;

    fn queue_rq(
        _: &Disk<Self>,
        attachment: Option<&AttachmentRef>,
        request: &Request<Self>,
        queue: u32,
        last: bool,
    ) {
        submit::submit(
            attachment.map(|attachment| &**attachment),
            request,
            queue,
            last,
        );
    }

    fn commit_rqs(_: &Disk<Self>, attachment: Option<&AttachmentRef>, _: u32) {
        if let Some(attachment) = attachment {
            attachment
                .connections
                .iter()
                .for_each(|connection| connection.outbox.commit());
        }
    }

    fn requeued(disk: &Disk<Self>, attachment: Option<&AttachmentRef>) {
        match attachment {
            Some(attachment) => attachment.kick_parked(),
            None => disk.kick_requeue_list(),
        }
    }

    fn timeout(
        _: &Disk<Self>,
        attachment: Option<&AttachmentRef>,
        request: &Request<Self>,
    ) -> Timeout {
        timeout::handle(attachment.map(|attachment| &**attachment), request)
    }

    fn open(disk: &Disk<Self>, mode: OpenMode) -> Result {
        note_partitions(disk);
        disk.data().device.lock_setup().disk.opened();
        // An open for reading may be udev's; but from a read-only disk no more than that can be wanted.
        if mode.writable || mode.exclusive || disk.is_read_only() {
            disk.data().device.note_use();
        }
        Ok(())
    }

    fn release(disk: &Disk<Self>, unopened: Option<Unopened<'_, Self>>) {
        note_partitions(disk);
        end::closed(disk, unopened, pid::current_is_exiting());
    }

    fn ioctl(disk: &Disk<Self>, mode: IoctlMode, cmd: u32, arg: usize) -> Result<i32> {
        let mode = match disk.data().is_current() {
            true => mode,
            // To have a disk that is gone for oneself says nothing of the one that is there.
            false => IoctlMode::NOT_EXCL,
        };
        ioctl::handle(&disk.data().device, mode, cmd, arg)
    }
}
