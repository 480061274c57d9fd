// SPDX-License-Identifier: GPL-2.0

//! How a generation is started and brought up: by `NBD_DO_IT` ([`start`]) or `NBD_CMD_CONNECT`
//! ([`connect`]).
//!
//! The caller brings it up. The keeper does the rest: others only ask for the end
//! ([`super::end`]). Bringing up and draining never interleave, since a keeper is not told of the
//! end before the generation is up.

use super::{
    end,
    files::Files,
    geometry,
    owner::{Lifecycle, Setup},
    refusal::refuse,
    slot::Slot,
    Device,
};
use crate::{
    abstractions::{
        block::mq::{Disk, IoctlMode},
        pid::{self, ProcessRef},
    },
    driver::{
        attachment::{keeper::Keeper, Attachment, AttachmentRef},
        nbd::Nbd,
        wire::{journal::LastError, overseer::Overseer, receive::Receiver, sender::Sender},
    },
    protocol::{
        flags::TransmissionFlags,
        setup::{Connected, Connections, DiskPlan, EndReason, Failure, Refusal},
    },
};
use kernel::{
    prelude::*,
    sync::{Arc, MutexGuard},
};

/// How a generation cannot be started by [`connect`].
pub(crate) enum NotConnected {
    /// It is refused.
    Refused(Refusal),
    /// A signal came while the last generation was draining.
    Interrupted,
    /// It failed.
    Failed(Error),
}

/// A generation that is started, and to be brought up with the device's slot held.
pub(super) struct Started<'a> {
    pub(super) attachment: AttachmentRef,
    plan: DiskPlan,
    _slot: MutexGuard<'a, Slot>,
}

/// `NBD_CMD_CONNECT`: starts a generation out of `setup`, and returns when it serves.
pub(crate) fn connect(
    device: &Arc<Device>,
    mut setup: Setup,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<(), NotConnected> {
    let started = loop {
        match try_connect(device, setup, &keeper) {
            Ok(started) => break started,
            // The phase or the disk has changed in between.
            Err((Why::Again, same)) => setup = same,
            Err((Why::Not(why), setup)) => {
                // The sockets are the caller's still: they are not shut down.
                drop(setup);
                return Err(why);
            }
        }
    };
    device.set_pid(pid::current_pid_nr());
    let brought_up = bring_up(device, &started);
    let attachment = started.attachment.clone();
    drop(started);
    if brought_up.is_err() {
        end::end(device, EndReason::StartFailed);
    }
    Attachment::tell_keeper(&attachment, |end| end.armed = true);
    if let Err(error) = brought_up {
        // So that the caller, which hears of the failure, may try again at once.
        let _ = device.when_drained(|_| ());
        return Err(NotConnected::Failed(error));
    }
    Ok(())
}

/// Why a setup could not be connected at this try.
enum Why {
    /// Something has changed meanwhile: it may be tried again.
    Again,
    /// It cannot be.
    Not(NotConnected),
}

impl From<Failure<Error>> for Why {
    fn from(failure: Failure<Error>) -> Self {
        match failure {
            Failure::Refused(Refusal::Draining | Refusal::NeedsDisk) => Self::Again,
            Failure::Refused(refusal) => Self::Not(NotConnected::Refused(refusal)),
            // A signal, while the last disk was awaited.
            Failure::Step(ERESTARTSYS) => Self::Not(NotConnected::Interrupted),
            Failure::Step(error) => Self::Not(NotConnected::Failed(error)),
        }
    }
}

fn try_connect<'a>(
    device: &'a Arc<Device>,
    setup: Setup,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<Started<'a>, (Why, Setup)> {
    if device.when_drained(|_| ()).is_err() {
        return Err((Why::Not(NotConnected::Interrupted), setup));
    }
    let mut slot = device.in_system.lock();
    let disk_use = slot.disk_use(IoctlMode::NOT_EXCL);
    // Refused before the disk is touched: a refusal changes nothing.
    let plan = match device.change(|life| life.plan_connect(&setup, disk_use)) {
        Ok(plan) => plan,
        Err(refusal) => return Err((Failure::from(refusal).into(), setup)),
    };
    let disk = match Device::fit_disk(device, &mut slot, plan, queues(setup.connections.count())) {
        Ok(disk) => disk,
        Err(error) => return Err((Failure::Step(error).into(), setup)),
    };
    let connected = device.change(|life| {
        life.connect(setup, disk_use, |generation, setup| {
            let attachment = attach(device, &disk, generation, setup, keeper()?)?;
            // Under the setup lock: a close must not take the last one's use for this one's.
            device.forget_use();
            Ok(attachment)
        })
    });
    match connected {
        Ok(Connected {
            attachment,
            replaced,
        }) => {
            if let Some(orphan) = replaced {
                orphan.dispose();
            }
            Ok(Started {
                attachment,
                plan,
                _slot: slot,
            })
        }
        Err((failure, setup)) => Err((failure.into(), setup)),
    }
}

/// How many hardware queues so many connections get.
fn queues(connections: usize) -> u32 {
    u32::try_from(connections).unwrap_or(u32::MAX)
}

/// Starts the generation that was set up.
pub(super) fn start(
    device: &Arc<Device>,
    mode: IoctlMode,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<Started<'_>> {
    loop {
        device.when_drained(|_| ())?;
        let mut slot = device.in_system.lock();
        let disk_use = slot.disk_use(mode);
        // Refused before the disk is touched: a refusal changes nothing.
        let (plan, connections) =
            match device.change(|life| life.plan_start(&ProcessRef::current(), disk_use)) {
                Ok(planned) => planned,
                Err(Refusal::Draining) => continue,
                Err(refusal) => return Err(refuse(device, refusal)),
            };
        let disk = Device::fit_disk(device, &mut slot, plan, queues(connections))?;
        let started = device.change(|life: &mut Lifecycle| {
            life.start(ProcessRef::current(), disk_use, |generation, setup| {
                attach(device, &disk, generation, setup, keeper()?)
            })
        });
        match started {
            Ok(attachment) => {
                return Ok(Started {
                    attachment,
                    plan,
                    _slot: slot,
                })
            }
            Err(Failure::Refused(Refusal::Draining | Refusal::NeedsDisk)) => {}
            Err(Failure::Refused(refusal)) => return Err(refuse(device, refusal)),
            Err(Failure::Step(error)) => {
                dev_err!(disk.device(), "cannot start ({error:?})\n");
                return Err(error);
            }
        }
    }
}

/// Makes the attachment of a generation out of its setup.
fn attach(
    device: &Device,
    disk: &Disk<Nbd>,
    generation: u64,
    setup: &mut Setup,
    keeper: KBox<dyn Keeper<Attachment>>,
) -> Result<AttachmentRef> {
    let (config, connections) = (&setup.config, &mut setup.connections);
    Attachment::new(
        disk,
        &device.journal,
        generation,
        config,
        connections,
        keeper,
    )
}

/// Makes a generation serve requests.
pub(super) fn bring_up(device: &Device, started: &Started<'_>) -> Result {
    let attachment = &started.attachment;
    let disk = attachment.disk();
    match started.plan {
        // To user space it is another disk, though it is kept.
        DiskPlan::Keep => disk.next_diskseq(),
        DiskPlan::Replace => {}
        DiskPlan::Continue => dev_info!(disk.device(), "attached again, with all that uses it\n"),
    }
    try_bring_up(device, attachment).inspect_err(|error| {
        device.journal.note(LastError::Start {
            generation: attachment.generation,
            error: *error,
        });
        dev_err!(disk.device(), "cannot start ({error:?})\n");
    })
}

fn try_bring_up(device: &Device, attachment: &AttachmentRef) -> Result {
    let disk = attachment.disk();
    disk.update_nr_hw_queues(u32::try_from(attachment.connections.len())?);
    for connection in &attachment.connections {
        connection.link().socket.set_memalloc();
    }
    geometry::apply_timeout(device, attachment);
    disk.set_read_only(attachment.flags().contains(TransmissionFlags::READ_ONLY));
    {
        let mut presence = attachment.presence.lock();
        let files = Files::create(disk, attachment.keeper.interface())?;
        presence.files = Some(KBox::new(files, GFP_KERNEL)?);
        // First: a thread that there is no room for could not be ended, with its connection alive.
        let threads = attachment.connections.len();
        presence.senders.reserve(threads, GFP_KERNEL)?;
        presence.receivers.reserve(threads, GFP_KERNEL)?;
        for connection in &attachment.connections {
            presence
                .senders
                .push(Sender::start(attachment, connection)?, GFP_KERNEL)?;
        }
        disk.attach(KBox::new(attachment.clone(), GFP_KERNEL)?)
            .map_err(|_| EBUSY)?;
        for connection in &attachment.connections {
            let receiver = Receiver::start(attachment, connection, connection.link())?;
            presence.receivers.push(receiver, GFP_KERNEL)?;
        }
    }
    geometry::apply(device, attachment)
}
