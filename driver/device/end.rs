// SPDX-License-Identifier: GPL-2.0

//! How a generation is ended: by whom, and what is done at once. What takes time is the keeper's.

use super::Device;
use crate::{
    abstractions::{
        block::mq::{Disk, Unopened},
        pid::ProcessRef,
    },
    driver::{
        attachment::{Attachment, AttachmentRef},
        nbd::Nbd,
        wire::overseer::Overseer,
    },
    protocol::{
        end::End,
        setup::{EndReason, Interface, Phase, Retired},
    },
};
use kernel::prelude::*;

/// `NBD_DISCONNECT`: tells the server, and ends the generation. Does not wait for its end.
///
/// The server is given a while to answer what it was asked; see the keeper.
pub(crate) fn disconnect(device: &Device) {
    stop_and_disconnect(device.change(|life| life.retire(EndReason::Disconnected)));
}

/// Tells the server of what was ended that it is, and wakes its keeper. Does not wait.
fn stop_and_disconnect(retired: Retired<Nbd>) {
    match retired {
        Retired::Nothing | Retired::AlreadyDraining(_) => {}
        Retired::Setup(connections) => {
            for connection in &connections.0 {
                connection.send_disconnect();
            }
            connections.dispose();
        }
        Retired::Stopped(attachment) => {
            dev_info!(attachment.disk().device(), "disconnected by request\n");
            attachment.stop_sending();
            send_disconnect(&attachment);
            Attachment::tell_keeper(&attachment, End::ask);
        }
    }
}

/// Tells the server, on each connection, that nothing more will come. False if some could not be
/// told at once: what is being sent there waits for the server. Does not wait.
pub(crate) fn send_disconnect(attachment: &Attachment) -> bool {
    let mut all = true;
    for connection in &attachment.connections {
        all &= connection.is_dead() || connection.send_disconnect();
    }
    all
}

/// `NBD_CLEAR_SOCK`: ends the generation at once, and waits until it is gone. Sleeps.
///
/// # Errors
///
/// `EINTR` if a signal stopped the wait. The call is not begun again: what it would end then may be
/// the next generation.
pub(crate) fn clear(device: &Device) -> Result {
    if stop(device.change(|life| life.clear(&ProcessRef::current()))) {
        device.when_drained(|_| ()).map_err(|_| EINTR)?;
    }
    Ok(())
}

/// Ends the generation at once. True if it drains, for its keeper to finish.
pub(crate) fn end(device: &Device, reason: EndReason) -> bool {
    stop(device.change(|life| life.retire(reason)))
}

/// Does at once what ended with a generation. True if it drains, for its keeper to finish.
fn stop(retired: Retired<Nbd>) -> bool {
    match retired {
        Retired::Nothing => false,
        Retired::Setup(connections) => {
            connections.dispose();
            false
        }
        Retired::Stopped(attachment) | Retired::AlreadyDraining(attachment) => {
            kill(&attachment);
            true
        }
    }
}

/// Kills a generation's connections and wakes its keeper.
fn kill(attachment: &AttachmentRef) {
    attachment.kill_all();
    Attachment::tell_keeper(attachment, End::ask);
}

/// The disk or a partition was closed. A setup ends with the last close, or when its owner closes
/// the disk by dying: no other process shares that open file then, so none can finish the setup. A
/// generation ends with the last close if it is to, and the disk was used; or when its owner dies while
/// it is away from `NBD_DO_IT`.
///
/// Called with the disk's open lock held: that the generation drains is not waited for.
pub(crate) fn closed(disk: &Disk<Nbd>, unopened: Option<Unopened<'_, Nbd>>, exiting: bool) {
    let device = &disk.data().device;
    enum Ended {
        /// The server may answer what it was asked.
        Gently(Retired<Nbd>),
        AtOnce(Retired<Nbd>),
    }

    // In one step: the generation that is ended must be the one that was looked at.
    let ended = device.change(|life| {
        life.disk.closed();
        // Of the disk that is attached, and of all that the device has and had.
        let unused = unopened.is_some() && life.disk.is_current(disk.data().serial());
        let last = life.disk.opens() == 0;
        if last {
            life.forget_drafts();
        }
        let dying_owner = exiting
            && matches!(
                life.phase(),
                Phase::Setup(setup)
                    if setup.owner == ProcessRef::current() && !setup.owner.is_alive()
            );
        // Its task was away, and does not come back.
        let dying_keeper = exiting
            && matches!(
                life.phase(),
                Phase::Running {
                    owner,
                    interface: Interface::Ioctl,
                    attachment,
                    ..
                } if *owner == ProcessRef::current()
                    && !owner.is_alive()
                    && attachment.end.lock().is_away()
            );
        let ends_with_use = matches!(
            life.phase(),
            Phase::Running { config, .. } if config.disconnect_on_close
        );
        if unused && ends_with_use && device.was_used() {
            Ended::Gently(life.retire(EndReason::Disconnected))
        } else if dying_keeper {
            Ended::AtOnce(life.retire(EndReason::Interrupted))
        } else if last || dying_owner {
            let abandoned = life.abandon_setup();
            Ended::AtOnce(abandoned.map_or(Retired::Nothing, Retired::Setup))
        } else {
            Ended::AtOnce(Retired::Nothing)
        }
    });
    match ended {
        Ended::Gently(retired) => stop_and_disconnect(retired),
        Ended::AtOnce(retired) => {
            stop(retired);
        }
    }
    if let Some(unopened) = unopened {
        device.tidy_disk(disk, &unopened);
    }
}
