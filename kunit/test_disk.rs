// SPDX-License-Identifier: GPL-2.0

//! A disk with a driver that does as it is told.

use super::fixture::{Census, Counted, Event};
use crate::abstractions::{
    block::{
        major::Major,
        mq::{
            AttributeGroup, Disk, GenDisk, GenDiskBuilder, Operations, Outcome, QueueLimits,
            Request, Status, Timeout,
        },
    },
    compat::module::this_module,
};
use kernel::{
    bindings,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Full, Relaxed},
        Mutex,
    },
};

/// A major number for local use.
pub(super) const MAJOR: u32 = 240;

/// Sectors that the disk has once it is given any.
pub(super) const SECTORS: u64 = 2048;

/// Requests that its queue takes.
pub(super) const DEPTH: u32 = 4;

/// The driver.
pub(super) enum Driver {}

/// The driver's data of a disk.
#[pin_data]
pub(super) struct Data {
    /// Requests that came, each time they came.
    pub(super) came: Atomic<u32>,
    /// How often the tag that came most often came, as its request's data has it.
    pub(super) most_uses: Atomic<u32>,
    /// How many of the next requests are queued again.
    pub(super) requeue: Atomic<u32>,
    /// Requests are finished, and kept.
    pub(super) hold: Atomic<bool>,
    /// Those that are kept.
    #[pin]
    pub(super) held: Mutex<KVec<ARef<Request<Driver>>>>,
    /// The first one is kept.
    pub(super) holding: Event,
    /// The last one that finished was refused a second outcome.
    pub(super) once: Atomic<bool>,
    _counted: Counted,
}

/// What requests are served with.
pub(super) struct Attachment {
    /// How requests end.
    pub(super) status: Status,
    pub(super) _counted: Counted,
}

/// The driver's data of a request.
#[derive(Default)]
pub(super) struct RequestData {
    /// How often the request with this tag came.
    uses: Uses,
}

struct Uses(Atomic<u32>);

impl Default for Uses {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

#[vtable]
impl Operations for Driver {
    type DiskData = Data;
    type Attachment = Attachment;
    type RequestData = RequestData;

    fn queue_rq(
        disk: &Disk<Self>,
        attachment: Option<&Attachment>,
        request: &Request<Self>,
        _queue: u32,
        _last: bool,
    ) {
        let data = disk.data();
        data.came.fetch_add(1, Full);
        let uses = request.data().uses.0.fetch_add(1, Full) + 1;
        if uses > data.most_uses.load(Relaxed) {
            data.most_uses.store(uses, Relaxed);
        }
        if data.requeue.load(Relaxed) > 0 {
            data.requeue.fetch_sub(1, Full);
            let _ = request.finish(Outcome::Requeue);
            return;
        }
        let status = attachment.map_or(Status::IoError, |attachment| attachment.status);
        if data.hold.load(Relaxed) {
            let kept = data.held.lock().push_within_capacity(request.into());
            if kept.is_ok() {
                data.holding.happen();
            }
        }
        let _ = request.finish(Outcome::End(status));
        let again = request.finish(Outcome::End(Status::Ok));
        data.once.store(again.is_err(), Relaxed);
    }

    fn requeued(disk: &Disk<Self>, _: Option<&Attachment>) {
        disk.kick_requeue_list();
    }

    fn timeout(_: &Disk<Self>, _: Option<&Attachment>, _: &Request<Self>) -> Timeout {
        Timeout::ResetTimer
    }
}

const GROUP: AttributeGroup<Driver> = AttributeGroup {
    name: c"kunit",
    attributes: &[],
};

/// A disk in the system, with its major number.
pub(super) struct TestDisk {
    pub(super) disk: GenDisk<Driver>,
    pub(super) major: Major,
    /// The disk's data.
    pub(super) data: Census,
    /// What it was attached to.
    pub(super) attachments: Census,
}

/// Builds a disk with data that is counted in `census`, and with `limits`.
pub(super) fn build(census: &Census, limits: QueueLimits) -> Result<GenDisk<Driver>> {
    let counted = census.make();
    let holding = Event::new()?;
    let held = KVec::with_capacity(DEPTH as usize, GFP_KERNEL)?;
    let data = try_pin_init!(Data {
        came: Atomic::new(0),
        most_uses: Atomic::new(0),
        requeue: Atomic::new(0),
        hold: Atomic::new(false),
        held <- new_mutex!(held),
        holding: holding,
        once: Atomic::new(false),
        _counted: counted,
    }? Error);
    GenDiskBuilder {
        major: MAJOR,
        first_minor: 0,
        minors: 1,
        nr_hw_queues: 1,
        queue_depth: DEPTH,
        scheduled: true,
        limits,
    }
    .build(
        this_module::<crate::LocalModule>(),
        fmt!("rnbd-kunit"),
        &GROUP,
        data,
    )
}

impl TestDisk {
    /// An empty disk.
    pub(super) fn new() -> Result<Self> {
        let major = Major::register(MAJOR, c"rnbd-kunit")?;
        let data = Census::new()?;
        Ok(Self {
            disk: build(&data, QueueLimits::new())?,
            major,
            data,
            attachments: Census::new()?,
        })
    }

    /// A disk with sectors, on which all requests end with `status`.
    pub(super) fn attached(status: Status) -> Result<Self> {
        let this = Self::new()?;
        this.attach(status)?;
        this.disk.set_capacity_and_notify(SECTORS);
        Ok(this)
    }

    pub(super) fn attach(&self, status: Status) -> Result {
        let attachment = Attachment {
            status,
            _counted: self.attachments.make(),
        };
        let attachment = KBox::new(attachment, GFP_KERNEL)?;
        self.disk.attach(attachment).map_err(|_| EBUSY)
    }
}

/// The disk, as the C side knows it.
pub(super) fn raw(disk: &Disk<Driver>) -> *mut bindings::gendisk {
    core::ptr::from_ref(disk).cast_mut().cast()
}

/// Reads a block, and waits for it.
pub(super) fn read(disk: &Disk<Driver>, sector: u64) -> Result {
    transfer(disk, sector, bindings::req_op_REQ_OP_READ)
}

/// Writes a block, and waits for it.
pub(super) fn write(disk: &Disk<Driver>, sector: u64) -> Result {
    transfer(disk, sector, bindings::req_op_REQ_OP_WRITE)
}

fn transfer(disk: &Disk<Driver>, sector: u64, op: bindings::req_op) -> Result {
    let mut block = KVec::from_elem(0_u8, 4096, GFP_KERNEL)?;
    // SAFETY: A disk has its block device; the memory is the kernel's own, and stays for the call.
    to_result(unsafe {
        bindings::bdev_rw_virt(
            (*raw(disk)).part0,
            sector,
            block.as_mut_ptr().cast(),
            block.len(),
            op,
        )
    })
}
