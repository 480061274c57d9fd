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
    Device,
};
use crate::{
    abstractions::{
        block::mq::{Claim, Disk, IoctlMode},
        pid::{self, ProcessRef},
    },
    driver::{
        attachment::{keeper::Keeper, Attachment, AttachmentRef},
        nbd::Nbd,
        wire::{journal::LastError, overseer::Overseer, receive::Receiver, sender::Sender},
    },
    protocol::{
        flags::TransmissionFlags,
        setup::{Connected, DiskUse, EndReason, Failure, Refusal},
    },
};
use kernel::prelude::*;

/// How a generation cannot be started by [`connect`].
pub(crate) enum NotConnected {
    /// It is refused.
    Refused(Refusal),
    /// A signal came while the last generation was draining.
    Interrupted,
    /// It failed.
    Failed(Error),
}

/// `NBD_CMD_CONNECT`: starts a generation out of `setup`, and returns when it serves.
pub(crate) fn connect(
    device: &Device,
    mut setup: Setup,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<(), NotConnected> {
    let disk = device.disk().ok_or(NotConnected::Failed(ENODEV))?;
    let (connected, claim) = loop {
        let tried = try_connect(device, &disk, setup, &keeper)?;
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
        orphan.dispose();
    }
    device.set_pid(pid::current_pid_nr());
    let brought_up = bring_up(device, &attachment, claim);
    if brought_up.is_err() {
        end::end(device, EndReason::StartFailed);
    }
    Attachment::tell_keeper(&attachment, |end| end.armed = true);
    if let Err(error) = brought_up {
        // So that whoever hears of the failure may try again at once.
        let _ = device.when_drained(|_| ());
        return Err(NotConnected::Failed(error));
    }
    Ok(())
}

type Tried<'a> = Result<(Connected<Nbd>, Option<Claim<'a, Nbd>>), (Failure<Error>, Setup)>;

fn try_connect<'a>(
    device: &Device,
    disk: &'a Disk<Nbd>,
    setup: Setup,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<Tried<'a>, NotConnected> {
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
            let attachment = attach(device, disk, generation, setup, keeper()?)?;
            // Under the setup lock: who closes the disk must not take the last one's use for this one's.
            device.forget_use();
            Ok(attachment)
        })
    });
    Ok(tried.map(|connected| (connected, claim)))
}

/// Starts the generation that was set up. With the claim, nobody uses the disk exclusively; there
/// is none if somebody does under whom the generation may come back.
pub(crate) fn start<'a>(
    device: &Device,
    disk: &'a Disk<Nbd>,
    mode: IoctlMode,
    keeper: impl Fn() -> Result<KBox<dyn Keeper<Attachment>>>,
) -> Result<(AttachmentRef, Option<Claim<'a, Nbd>>)> {
    loop {
        // A generation that drains wants the claim too: it must not wait for ours.
        device.when_drained(|_| ())?;
        let claim = disk.claim(mode).ok();
        let disk_use = match claim {
            Some(_) => DiskUse::Shared,
            None => DiskUse::Exclusive,
        };
        let started = device.change(|life: &mut Lifecycle| {
            life.start(ProcessRef::current(), disk_use, |generation, setup| {
                attach(device, disk, generation, setup, keeper()?)
            })
        });
        match started {
            Ok(attachment) => return Ok((attachment, claim)),
            Err(Failure::Refused(Refusal::Draining)) => {}
            Err(Failure::Refused(refusal)) => {
                drop(claim);
                return Err(refuse(device, refusal));
            }
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
pub(crate) fn bring_up(
    device: &Device,
    attachment: &AttachmentRef,
    claim: Option<Claim<'_, Nbd>>,
) -> Result {
    let disk = attachment.disk();
    match claim {
        // Dirty pages of the last export must not come to this one's server.
        Some(ref claim) => claim.force_media_change(),
        None => dev_info!(disk.device(), "attached again under its exclusive user\n"),
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
    geometry::apply_timeout(attachment, attachment.timeout());
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
