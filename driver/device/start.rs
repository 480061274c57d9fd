// SPDX-License-Identifier: GPL-2.0

//! How a generation is started and brought up: by `NBD_DO_IT` ([`start`]) or `NBD_CMD_CONNECT`
//! ([`connect`]).
//!
//! The caller brings it up. The keeper does the rest: others only ask for the end
//! ([`super::end`]). Bringing up and draining never interleave, since a keeper is not told of the
//! end before the generation is up.

use super::{
    disk::{Fitted, Unfit},
    end,
    files::Files,
    geometry::{self, NotApplied},
    maker::DiskNeeds,
    owner::{Lifecycle, Setup},
    refusal::refuse,
    slot::{Patience, Slot},
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
        end::End,
        flags::TransmissionFlags,
        setup::{Connected, DiskPlan, EndReason, Failure, Refusal},
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

impl<'a> Started<'a> {
    fn new(attachment: AttachmentRef, fitted: Fitted<'a>) -> Self {
        Self {
            attachment,
            plan: fitted.plan,
            _slot: fitted.slot,
        }
    }
}

/// `NBD_CMD_CONNECT`: starts a generation out of `setup`, and returns when it serves.
pub(crate) fn connect(
    device: &Arc<Device>,
    mut setup: Setup,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<(), NotConnected> {
    let mut patience = Patience::new();
    let started = loop {
        match try_connect(device, setup, &mut patience, &keeper) {
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
    Attachment::tell_keeper(&attachment, End::leave);
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
            Failure::Step(error) => Self::Not(NotConnected::Failed(error)),
        }
    }
}

impl From<Unfit> for Why {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Again => Self::Again,
            Unfit::Refused(refusal) => Self::Not(NotConnected::Refused(refusal)),
            Unfit::Failed(ERESTARTSYS) => Self::Not(NotConnected::Interrupted),
            Unfit::Failed(error) => Self::Not(NotConnected::Failed(error)),
        }
    }
}

fn try_connect<'a>(
    device: &'a Arc<Device>,
    setup: Setup,
    patience: &mut Patience,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<Started<'a>, (Why, Setup)> {
    if device.when_drained(|_| ()).is_err() {
        return Err((Why::Not(NotConnected::Interrupted), setup));
    }
    // Refused before the disk is touched: a refusal changes nothing.
    let fitted = Device::fit_disk(device, IoctlMode::NOT_EXCL, patience, |life, disk_use| {
        Ok((life.plan_connect(&setup, disk_use)?, DiskNeeds::of(&setup)))
    });
    let fitted = match fitted {
        Ok(fitted) => fitted,
        Err(unfit) => return Err((unfit.into(), setup)),
    };
    let connected = device.change(|life| {
        life.connect(setup, fitted.disk_use, |generation, setup| {
            let attachment = attach(device, &fitted.disk, generation, setup, keeper()?)?;
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
            Ok(Started::new(attachment, fitted))
        }
        Err((failure, setup)) => Err((failure.into(), setup)),
    }
}

/// Starts the generation that was set up.
pub(super) fn start(
    device: &Arc<Device>,
    mode: IoctlMode,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<Started<'_>> {
    let mut patience = Patience::new();
    loop {
        device.when_drained(|_| ())?;
        // Refused before the disk is touched: a refusal changes nothing.
        let fitted = Device::fit_disk(device, mode, &mut patience, |life, disk_use| {
            let (plan, setup) = life.plan_start(&ProcessRef::current(), disk_use)?;
            Ok((plan, DiskNeeds::of(setup)))
        });
        let fitted = match fitted {
            Ok(fitted) => fitted,
            Err(Unfit::Again) => continue,
            Err(Unfit::Refused(refusal)) => return Err(refuse(device, refusal)),
            Err(Unfit::Failed(error)) => return Err(error),
        };
        let started = device.change(|life: &mut Lifecycle| {
            life.start(
                ProcessRef::current(),
                fitted.disk_use,
                |generation, setup| attach(device, &fitted.disk, generation, setup, keeper()?),
            )
        });
        match started {
            Ok(attachment) => return Ok(Started::new(attachment, fitted)),
            Err(Failure::Refused(Refusal::Draining | Refusal::NeedsDisk)) => {}
            Err(Failure::Refused(refusal)) => {
                drop(fitted);
                return Err(refuse(device, refusal));
            }
            Err(Failure::Step(error)) => {
                dev_err!(fitted.disk.device(), "cannot start ({error:?})\n");
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
        DiskPlan::Continue => dev_info!(disk.device(), "attached again, with all that uses it\n"),
        // To user space there is another medium in it, also if it is kept.
        DiskPlan::Keep | DiskPlan::Replace => disk.next_diskseq(),
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
    geometry::apply(device, attachment).map_err(NotApplied::errno)
}
