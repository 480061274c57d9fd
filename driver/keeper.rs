// SPDX-License-Identifier: GPL-2.0

//! The keeper of a generation: who brings it up, waits for its end, and drains it.
//!
//! With the ioctl interface that is the task in `NBD_DO_IT`, for all of it. With netlink the task
//! that asked brings it up, and goes; a worker does the rest when the end is asked for. Others only
//! ask ([`super::teardown`]), and bringing up and draining never interleave: a worker is not woken
//! before the generation is up.

use super::{
    attachment::{Attachment, AttachmentRef, End},
    device::{Device, Trouble},
    devices::{Devices, Entry},
    drain, geometry,
    owner::Setup,
    receive::Receiver,
    sender::Sender,
    setup, sysfs, teardown,
};
use crate::{
    abstractions::{
        block::mq::{AttributeFile, Claim, Disk, IoctlMode},
        kthread::Thread,
        module_ref::ModuleRef,
        pid::{self, ProcessRef},
        work::WithWork,
    },
    protocol::{
        flags::TransmissionFlags,
        setup::{Connected, DiskUse, EndReason, Failure, Refusal},
    },
};
use kernel::{prelude::*, sync::Arc};

/// Who waits for a generation's end.
pub(super) enum Keeper {
    /// The task in `NBD_DO_IT`. The generation ends with its last connection.
    Task,
    /// A worker, woken when the end is asked for.
    Worker {
        devices: Arc<Devices>,
        /// Which backend it is, as whoever attached it said.
        backend: Option<KVec<u8>>,
        /// No open file keeps the module: this does.
        _module: ModuleRef,
    },
}

impl Keeper {
    /// Wakes a worker to end `attachment`; a task in `NBD_DO_IT` has been told.
    pub(super) fn wake(&self, attachment: &AttachmentRef) {
        if let Self::Worker { devices, .. } = self {
            WithWork::queue_work(attachment, devices.keepers());
        }
    }

    /// Takes a device out of the table of those there are; it goes when what is returned is dropped.
    pub(super) fn take_out(&self, index: u32) -> Option<Arc<Entry>> {
        match self {
            Self::Worker { devices, .. } => devices.take_out(index),
            Self::Task => None,
        }
    }

    /// Which backend it is.
    pub(super) fn backend(&self) -> Option<&[u8]> {
        match self {
            Self::Worker {
                backend: Some(backend),
                ..
            } => Some(backend),
            _ => None,
        }
    }
}

/// What a generation has in the system while it runs.
#[derive(Default)]
pub(super) struct Presence {
    /// Of each connection's current link.
    pub(super) receivers: KVec<Thread<Receiver>>,
    /// Of each connection.
    senders: KVec<Thread<Sender>>,
    pid: Option<AttributeFile<Device, sysfs::Pid>>,
    backend: Option<AttributeFile<Device, sysfs::Backend>>,
    /// The generation drains: no connection gets another link.
    pub(super) closed: bool,
}

impl Presence {
    /// The generation drains. Hands out what it has in the system.
    pub(super) fn close(&mut self) -> Self {
        let closed = Self {
            closed: true,
            ..Self::default()
        };
        core::mem::replace(self, closed)
    }

    /// Waits for the senders, of connections whose outboxes are closed.
    pub(super) fn join_senders(&mut self) {
        drop(core::mem::take(&mut self.senders));
    }

    /// Waits for the receivers, whose sockets are shut down. The files stay.
    pub(super) fn join_receivers(&mut self) {
        drop(core::mem::take(&mut self.receivers));
    }
}

/// `NBD_DO_IT`: starts the generation that was set up, and returns when it is gone.
///
/// # Errors
///
/// Those of the start: see [`setup::refuse`]. Then: none if the device was disconnected; `EPIPE` if
/// all connections died, which `nbd-client -persist` answers with new ones; `ETIMEDOUT` if a request
/// timed out; `EINTR` if a signal came.
pub(super) fn run(disk: &Disk<Device>, mode: IoctlMode) -> Result {
    let device = disk.data();
    let (attachment, claim) = start(disk, mode)?;
    device.set_pid(pid::current_pid_nr());

    let brought_up = bring_up(disk, &attachment, claim);
    let reason = match &brought_up {
        Ok(()) => wait_for_end(disk, &attachment),
        Err(_) => EndReason::StartFailed,
    };
    teardown::end(disk, reason);
    let reason = drain::run(disk, mode, &attachment).unwrap_or(reason);
    brought_up?;
    match reason {
        EndReason::ConnectionsLost => Err(EPIPE),
        EndReason::TimedOut => Err(ETIMEDOUT),
        EndReason::Interrupted => {
            device.note(Trouble::Interrupted {
                generation: attachment.generation,
            });
            Err(EINTR)
        }
        _ => Ok(()),
    }
}

/// How a generation cannot be started by [`connect`].
pub(super) enum NotConnected {
    /// It is refused.
    Refused(Refusal),
    /// A signal came while the last generation was draining.
    Interrupted,
    /// It failed.
    Failed(Error),
}

/// `NBD_CMD_CONNECT`: starts a generation out of `setup`, and returns when it serves.
pub(super) fn connect(
    disk: &Disk<Device>,
    mut setup: Setup,
    keeper: impl Fn() -> Result<Keeper>,
) -> Result<(), NotConnected> {
    let device = disk.data();
    let (connected, claim) = loop {
        let tried = try_connect(disk, setup, &keeper)?;
        match tried {
            Ok(connected) => break connected,
            // Another one began to drain in between.
            Err((Failure::Refused(Refusal::Draining), same)) => setup = same,
            Err((failure, setup)) => {
                // The sockets are the caller's still: they are not shut down.
                drop(setup);
                return Err(match failure {
                    Failure::Refused(refusal) => NotConnected::Refused(refusal),
                    Failure::Step(error) => NotConnected::Failed(error),
                });
            }
        }
    };
    let Connected {
        attachment,
        replaced,
    } = connected;
    if let Some(orphan) = replaced {
        teardown::dispose(orphan);
    }
    device.set_pid(pid::current_pid_nr());
    let brought_up = bring_up(disk, &attachment, claim);
    if brought_up.is_err() {
        teardown::end(disk, EndReason::StartFailed);
    }
    Attachment::tell_keeper(&attachment, |end| end.armed = true);
    if let Err(error) = brought_up {
        // So that whoever hears of the failure may try again at once.
        let _ = device.when_drained(|_| ());
        return Err(NotConnected::Failed(error));
    }
    Ok(())
}

type Tried<'a> =
    Result<(Connected<super::owner::Nbd>, Option<Claim<'a, Device>>), (Failure<Error>, Setup)>;

fn try_connect<'a>(
    disk: &'a Disk<Device>,
    setup: Setup,
    keeper: impl Fn() -> Result<Keeper>,
) -> Result<Tried<'a>, NotConnected> {
    let device = disk.data();
    device
        .when_drained(|_| ())
        .map_err(|_| NotConnected::Interrupted)?;
    let claim = disk.claim(IoctlMode::NOT_EXCL).ok();
    let disk_use = match claim {
        Some(_) => DiskUse::Shared,
        None => DiskUse::Exclusive,
    };
    let tried = device.change(|life| {
        life.connect(setup, disk_use, |generation, setup| {
            let attachment = Attachment::new(disk, generation, setup, keeper()?)?;
            // Under the setup lock: who closes the disk must not take the last one's use for this one's.
            device.forget_use();
            Ok(attachment)
        })
    });
    Ok(tried.map(|connected| (connected, claim)))
}

/// Starts the generation that was set up. With the claim, nobody uses the disk exclusively; there
/// is none if somebody does under whom the generation may come back.
fn start(
    disk: &Disk<Device>,
    mode: IoctlMode,
) -> Result<(AttachmentRef, Option<Claim<'_, Device>>)> {
    let device = disk.data();
    loop {
        // A generation that drains wants the claim too: it must not wait for ours.
        device.when_drained(|_| ())?;
        let claim = disk.claim(mode).ok();
        let disk_use = match claim {
            Some(_) => DiskUse::Shared,
            None => DiskUse::Exclusive,
        };
        let attach =
            |generation, setup: &mut Setup| Attachment::new(disk, generation, setup, Keeper::Task);
        let started = device.change(|life| life.start(ProcessRef::current(), disk_use, attach));
        match started {
            Ok(attachment) => return Ok((attachment, claim)),
            Err(Failure::Refused(Refusal::Draining)) => {}
            Err(Failure::Refused(refusal)) => {
                drop(claim);
                return Err(setup::refuse(disk, refusal));
            }
            Err(Failure::Step(error)) => {
                dev_err!(disk.device(), "cannot start ({error:?})\n");
                return Err(error);
            }
        }
    }
}

/// Makes a generation serve requests.
fn bring_up(
    disk: &Disk<Device>,
    attachment: &AttachmentRef,
    claim: Option<Claim<'_, Device>>,
) -> Result {
    match claim {
        // Dirty pages of the last export must not come to this one's server.
        Some(ref claim) => claim.force_media_change(),
        None => dev_info!(disk.device(), "attached again under its exclusive user\n"),
    }
    try_bring_up(disk, attachment).inspect_err(|error| {
        disk.data().note(Trouble::Start {
            generation: attachment.generation,
            error: *error,
        });
        dev_err!(disk.device(), "cannot start ({error:?})\n");
    })
}

fn try_bring_up(disk: &Disk<Device>, attachment: &AttachmentRef) -> Result {
    disk.update_nr_hw_queues(u32::try_from(attachment.connections.len())?);
    for connection in &attachment.connections {
        connection.link().socket.set_memalloc();
    }
    geometry::apply_timeout(disk, attachment, attachment.timeout());
    disk.set_read_only(attachment.flags().contains(TransmissionFlags::READ_ONLY));
    {
        let mut presence = attachment.presence.lock();
        presence.pid = Some(AttributeFile::create(disk)?);
        if matches!(attachment.keeper, Keeper::Worker { .. }) {
            presence.backend = Some(AttributeFile::create(disk)?);
        }
        // First: a thread that there is no room for could not be ended, with its connection alive.
        let threads = attachment.connections.len();
        presence.senders.reserve(threads, GFP_KERNEL)?;
        presence.receivers.reserve(threads, GFP_KERNEL)?;
        for connection in &attachment.connections {
            presence
                .senders
                .push(Sender::start(connection)?, GFP_KERNEL)?;
        }
        disk.attach(KBox::new(attachment.clone(), GFP_KERNEL)?)
            .map_err(|_| EBUSY)?;
        for connection in &attachment.connections {
            let receiver = Receiver::start(disk, attachment, connection, connection.link())?;
            presence.receivers.push(receiver, GFP_KERNEL)?;
        }
    }
    geometry::apply(disk, attachment)
}

/// Waits until no connection is left, and tells why.
fn wait_for_end(disk: &Disk<Device>, attachment: &Attachment) -> EndReason {
    let gone = |end: &End| end.receivers == 0;
    let mut end = attachment.end.lock();
    while !gone(&end) && !end.asked {
        if attachment.end_changed.wait_interruptible(&mut end) {
            drop(end);
            teardown::end(disk, EndReason::Interrupted);
            end = attachment.end.lock();
        }
    }
    drop(end);
    drain::let_server_finish(disk, attachment);
    if attachment.timed_out() {
        EndReason::TimedOut
    } else {
        EndReason::ConnectionsLost
    }
}

/// Ends a generation that was attached by netlink; for a worker. The phase says that it drains.
pub(super) fn finish(disk: &Disk<Device>, attachment: &AttachmentRef) {
    drain::let_server_finish(disk, attachment);
    drain::run(disk, IoctlMode::NOT_EXCL, attachment);
}
