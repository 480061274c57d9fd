// SPDX-License-Identifier: GPL-2.0

//! How a generation is ended: by whom, and what is done at once. What takes time is the keeper's.

use super::{
    attachment::{Attachment, AttachmentRef},
    connection::Connection,
    device::Device,
    link::Link,
    owner::{ConnectionArray, Nbd},
};
use crate::{
    abstractions::{
        block::mq::Disk,
        iov::Kvec,
        net::socket::{More, Wait},
        pid::ProcessRef,
    },
    protocol::{
        setup::{EndReason, Phase, Retired},
        wire,
    },
};
use kernel::prelude::*;

/// Disposes of the connections of a setup that will not be started: their sockets are shut down
/// and released. Sleeps.
pub(super) fn dispose(connections: ConnectionArray) {
    for connection in &connections.0 {
        connection.discard();
    }
}

/// `NBD_DISCONNECT`: tells the server, and ends the generation. Does not wait for its end.
///
/// The server is given a while to answer what it was asked; see the keeper.
pub(super) fn disconnect(disk: &Disk<Device>) {
    let retired = disk
        .data()
        .change(|life| life.retire(EndReason::Disconnected));
    tell_server(disk, retired);
}

/// Tells the server of what was ended that it is, and wakes its keeper. Does not wait.
fn tell_server(disk: &Disk<Device>, retired: Retired<Nbd>) {
    match retired {
        Retired::Nothing | Retired::AlreadyDraining(_) => {}
        Retired::Setup(connections) => {
            for connection in &connections.0 {
                send_disconnect(connection);
            }
            dispose(connections);
        }
        Retired::Stopped(attachment) => {
            dev_info!(disk.device(), "disconnected by request\n");
            attachment.stop_sending();
            say_goodbye(&attachment);
            Attachment::tell_keeper(&attachment, |end| end.asked = true);
        }
    }
}

/// Tells the server, on each connection, that nothing more will come. False if some could not be
/// told at once: who sends there waits for the server, and so would we. Does not wait.
pub(super) fn say_goodbye(attachment: &Attachment) -> bool {
    let mut all = true;
    for connection in &attachment.connections {
        all &= connection.is_dead() || send_disconnect(connection);
    }
    all
}

/// Tells the server that nothing more will come, if that can be done at once or was done.
fn send_disconnect(connection: &Connection) -> bool {
    let Some(mut tx) = connection.tx.try_lock() else {
        return false;
    };
    if tx.disconnected {
        return true;
    }
    if tx.partial.is_some() {
        return false;
    }
    let (sent, result) = send_goodbye(&tx.link);
    // A part of the message is as good as none, and cannot be taken back: the end follows it.
    tx.disconnected = sent > 0;
    tx.disconnected || result.is_err_and(|error| error != EAGAIN)
}

/// Sends the message that nothing more will come, on a link that nobody else sends on. Does not
/// wait. Returns how many bytes went, and what stopped the rest.
pub(super) fn send_goodbye(link: &Link) -> (usize, Result) {
    let message = wire::Request::DISCONNECT.encode();
    link.socket
        .send(&mut Kvec::source(&message), More::Ends, Wait::Never)
}

/// `NBD_CLEAR_SOCK`: ends the generation at once, and waits until it is gone. Sleeps.
///
/// # Errors
///
/// `EINTR` if a signal stopped the wait. The call is not begun again: what it would end then may be
/// the next generation.
pub(super) fn clear(disk: &Disk<Device>) -> Result {
    let retired = disk
        .data()
        .change(|life| life.clear(&ProcessRef::current()));
    if stop(retired) {
        disk.data().when_drained(|_| ()).map_err(|_| EINTR)?;
    }
    Ok(())
}

/// Ends the generation at once. True if it drains, for its keeper to finish.
pub(super) fn end(disk: &Disk<Device>, reason: EndReason) -> bool {
    let retired = disk.data().change(|life| life.retire(reason));
    stop(retired)
}

/// Does at once what ended with a generation. True if it drains, for its keeper to finish.
fn stop(retired: Retired<Nbd>) -> bool {
    match retired {
        Retired::Nothing => false,
        Retired::Setup(connections) => {
            dispose(connections);
            false
        }
        Retired::Stopped(attachment) | Retired::AlreadyDraining(attachment) => {
            kill(&attachment);
            true
        }
    }
}

/// Kills a generation's connections and wakes its keeper.
pub(super) fn kill(attachment: &AttachmentRef) {
    attachment.kill_all();
    Attachment::tell_keeper(attachment, |end| end.asked = true);
}

/// The disk or a partition was closed. A setup ends with the last close, or when its owner closes
/// the disk by dying: no other process shares that open file then, so none can finish the setup. A
/// generation ends with the last close if it is to, and somebody has used the disk.
///
/// Called with the disk's open lock held: that the generation drains is not waited for.
pub(super) fn closed(disk: &Disk<Device>, last: bool, exiting: bool) {
    let device = disk.data();
    // In one step: the generation that is ended must be the one that was looked at.
    let retired = device.change(|life| {
        let dying_owner = exiting
            && matches!(
                life.phase(),
                Phase::Setup(setup)
                    if setup.owner == ProcessRef::current() && !setup.owner.is_alive()
            );
        let ends_with_use = matches!(
            life.phase(),
            Phase::Running { config, .. } if config.disconnect_on_close
        );
        if last && ends_with_use && device.was_used() {
            life.retire(EndReason::Disconnected)
        } else if last || dying_owner {
            life.abandon_setup()
                .map_or(Retired::Nothing, Retired::Setup)
        } else {
            Retired::Nothing
        }
    });
    match retired {
        Retired::Setup(connections) => dispose(connections),
        retired => tell_server(disk, retired),
    }
}
