// SPDX-License-Identifier: GPL-2.0

//! Multi-queue block devices whose driver may sleep, has data in each request, and attaches to and
//! detaches from a backend while the disk exists.
//!
//! What is here beyond `kernel::block::mq`:
//!
//! * [`Operations`] with blocking queues, time-outs, open, release and ioctl;
//! * [`Request`]s that carry the driver's own data, can be found by their tag, and end when the
//!   last reference is dropped after [`Request::finish`];
//! * an *attachment* a disk: what the driver needs to serve requests, reachable from the request
//!   path without a lock or a reference count, and taken away only while the queue is frozen
//!   (`Frozen`);
//! * the moment in which a disk is not open ([`Unopened`]), and what the block layer then holds of it;
//! * queue limits, capacity, read-only state and sysfs attributes of a [`Disk`].
//!
//! C header: [`include/linux/blk-mq.h`](srctree/include/linux/blk-mq.h)

mod attribute;
mod bdev;
mod completion;
mod corpse;
mod gen_disk;
mod limits;
mod operations;
mod page_cache;
mod queue;
mod request;
mod request_data;
mod tag_set;
mod unopened;

pub(crate) use attribute::{Attribute, AttributeFile, AttributeGroup, DeviceAttribute};
pub(crate) use bdev::IoctlMode;
pub(crate) use completion::end_batch;
pub(crate) use corpse::Corpse;
pub(crate) use gen_disk::{Disk, GenDisk, GenDiskBuilder};
pub(crate) use limits::{max_block_size, QueueLimits};
pub(crate) use operations::{OpenMode, Operations, Timeout};
pub(crate) use request::{Op, Outcome, Request, Status};
pub(crate) use unopened::Unopened;
