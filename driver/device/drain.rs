// SPDX-License-Identifier: GPL-2.0

//! The drain: how a generation that has ended is taken out of the system. Its keeper does this.

use super::{
    end::{end, send_disconnect},
    geometry,
    owner::Lifecycle,
    Device,
};
use crate::{
    abstractions::{
        block::mq::{Disk, Outcome, Status},
        deadline::Deadline,
        task,
    },
    driver::{
        attachment::{Attachment, AttachmentRef},
        nbd::{answer, Nbd},
        wire::{overseer::Overseer, send::send_queued},
    },
    protocol::setup::{EndReason, Phase},
};
use kernel::{prelude::*, sync::CondVarTimeoutResult, time::msecs_to_jiffies};

/// How long a server has, after it was told that nothing more will come, to answer what it was
/// asked: so long in all, and so long from one sign of life to the next.
const DISCONNECT_GRACE_MS: u32 = 5000;
const DISCONNECT_QUIET_MS: u32 = 500;

/// How often it is looked whether the server has done so.
const DISCONNECT_TICK_MS: u32 = 50;

/// A signal has interrupted the wait, or what counts as one: see [`task::must_leave`].
pub(super) struct Interrupted;

/// Waits until no receiver is left. If the generation was disconnected, the server may answer what
/// it was asked before: it has a while for that, as long as something comes; then, or with a signal,
/// the connections are killed.
fn let_server_finish(attachment: &Attachment) -> Result<(), Interrupted> {
    if attachment.is_draining() {
        wait_for_answers(attachment)?;
    }
    wait_for_receivers(attachment);
    Ok(())
}

/// Sees a generation to its end that was asked for, or whose connections have died. Tells why it ended,
/// unless there was a reason before.
pub(super) fn conclude(
    device: &Device,
    attachment: &AttachmentRef,
) -> Result<EndReason, Interrupted> {
    let_server_finish(attachment)?;
    let reason = match attachment.timed_out() {
        true => EndReason::TimedOut,
        false => EndReason::ConnectionsLost,
    };
    end(device, reason);
    Ok(reason)
}

/// Waits until no receiver is left. All sockets are shut down: they are on their way.
fn wait_for_receivers(attachment: &Attachment) {
    let mut end = attachment.end.lock();
    while !end.is_deserted() {
        attachment.end_changed.wait(&mut end);
    }
}

fn wait_for_answers(attachment: &Attachment) -> Result<(), Interrupted> {
    let grace = Deadline::after(DISCONNECT_GRACE_MS);
    let quiet = || Deadline::after(DISCONNECT_QUIET_MS);
    let (mut patience, mut seen) = (quiet(), attachment.progress());
    while !grace.is_over() && !patience.is_over() {
        // A server that could not be told at first is told once the sender is done.
        let told = send_disconnect(attachment);
        let awaited = Awaited::of(attachment.disk());
        if told && awaited == Awaited::Nothing {
            break;
        }
        let mut end = attachment.end.lock();
        if end.is_deserted() {
            return Ok(());
        }
        let tick = msecs_to_jiffies(DISCONNECT_TICK_MS);
        let waited = attachment
            .end_changed
            .wait_interruptible_timeout(&mut end, tick);
        drop(end);
        if matches!(waited, CondVarTimeoutResult::Signal { .. }) {
            if task::must_leave() {
                return Err(Interrupted);
            }
            break;
        }
        let now = attachment.progress();
        // How far a reply's data have come is not to be seen.
        if now != seen || awaited == Awaited::Data {
            (patience, seen) = (quiet(), now);
        }
    }
    attachment.kill_all();
    Ok(())
}

/// What of a server's answers is still to come.
#[derive(PartialEq, Eq)]
enum Awaited {
    Nothing,
    /// Answers; and of one of them, what follows its header.
    Data,
    Answers,
}

impl Awaited {
    fn of(disk: &Disk<Nbd>) -> Self {
        let mut awaited = Self::Nothing;
        disk.tagset_busy_iter(|request| {
            let word = &request.data().word;
            if word.is_receiving() {
                awaited = Self::Data;
            } else if word.route().is_some() && awaited == Self::Nothing {
                awaited = Self::Answers;
            }
        });
        awaited
    }
}

/// All that is left to do for a generation whose end was asked for: for a worker.
pub(crate) fn finish<R>(
    device: &Device,
    attachment: &AttachmentRef,
    take_out: impl FnOnce() -> Option<R>,
) {
    // A worker gets no signals.
    let _ = let_server_finish(attachment);
    run(device, attachment, Lifecycle::drained, take_out);
}

/// Ends all that a generation still has going, and the generation, by `settle`. Tells why it ended:
/// the first reason stands. Bounded: nothing here waits for a server.
///
/// If the device goes with the generation, `take_out` is called before that is to be seen; what it
/// returns is dropped after it.
pub(super) fn run<R>(
    device: &Device,
    attachment: &AttachmentRef,
    settle: impl FnOnce(&mut Lifecycle) -> Option<EndReason>,
    take_out: impl FnOnce() -> Option<R>,
) -> Option<EndReason> {
    let disk = attachment.disk();
    debug_assert!(matches!(
        device.lock_setup().phase(),
        Phase::Draining { .. }
    ));
    let mut presence = attachment.presence.lock().close();
    // The sockets are shut down: receivers leave, and with them the requests that they await.
    presence.join_receivers();
    // And those of links that had just been replaced: they are others' to join.
    wait_for_receivers(attachment);
    // What was sending has met the dead socket when this returns.
    disk.quiesce_once();
    // So have the senders, then; and what one left that had not begun yet is given back.
    for connection in &attachment.connections {
        connection.outbox.close();
    }
    presence.join_senders();
    for connection in &attachment.connections {
        send_queued(&**attachment, connection);
    }
    disk.tagset_busy_iter(|request| {
        if let Some(claim) = request.data().word.claim() {
            answer(request, claim, Outcome::End(Status::IoError));
        }
    });
    // Those that wait for a connection come back, and end.
    attachment.kick_parked();
    let detached = disk.freeze().detach();
    drop(detached);
    drop(presence);
    geometry::clear(disk);
    device.change(|life| life.disk.detached());
    // If it is open, that is done with the last close; or the next generation gets another disk.
    if let Some(unopened) = disk.try_unopened() {
        device.tidy_disk(disk, &unopened);
    }

    device.set_pid(0);
    // Before the device is gone: what then finds it so waits for its number to be free.
    let entry = is_last(device).then(take_out).flatten();
    let reason = device.change(settle);
    drop(entry);
    reason
}

/// Whether the device goes with the generation that drains.
fn is_last(device: &Device) -> bool {
    matches!(
        device.lock_setup().phase(),
        Phase::Draining { config, .. } if config.destroy_on_disconnect
    )
}
