// SPDX-License-Identifier: GPL-2.0

//! The keeper of a generation: the one task that brings it up, waits for its end, and drains it.
//!
//! With the ioctl interface that is the task in `NBD_DO_IT`. That one task does both is what keeps
//! bringing up and draining from ever interleaving; others only ask for the end
//! ([`super::teardown`]).

use super::{
    attachment::{answer, Attachment, End},
    device::{Device, Trouble},
    geometry,
    receive::Receiver,
    setup, sysfs, teardown,
};
use crate::{
    abstractions::{
        block::mq::{AttributeFile, Claim, Disk, Opened, Outcome, Status},
        kthread::Thread,
        pid::{self, ProcessRef},
    },
    protocol::{
        flags::TransmissionFlags,
        setup::{DiskUse, EndReason, Failure, Phase, Refusal},
    },
};
use kernel::{
    prelude::*,
    sync::{Arc, CondVarTimeoutResult},
    time::msecs_to_jiffies,
};

/// How long a server has, after `NBD_DISCONNECT`, to answer what it was asked and to close.
const DISCONNECT_GRACE_MS: u32 = 5000;

/// How often it is looked whether the server has done so.
const DISCONNECT_TICK_MS: u32 = 50;

/// What a generation has in the system while it runs.
struct Presence {
    _receivers: KVec<Thread<Receiver>>,
    _pid: Option<AttributeFile<Device, sysfs::Pid>>,
}

/// `NBD_DO_IT`: starts the generation that was set up, and returns when it is gone.
///
/// # Errors
///
/// Those of the start: see [`setup::refuse`]. Then: none if the device was disconnected; `EPIPE` if
/// all connections died, which `nbd-client -persist` answers with new ones; `ETIMEDOUT` if a request
/// timed out; `EINTR` if a signal came.
pub(super) fn run(disk: &Disk<Device>, opened: Opened) -> Result {
    let device = disk.data();
    let (attachment, claim) = start(disk, opened)?;
    device.set_pid(pid::current_task_number());

    let (presence, brought_up) = bring_up(disk, &attachment, claim);
    let reason = match &brought_up {
        Ok(()) => wait_for_end(disk, &attachment),
        Err(_) => EndReason::StartFailed,
    };
    teardown::end(disk, reason);
    drain(disk, opened, &attachment, presence);

    // Whoever was first to end it has said why.
    device.set_pid(0);
    let reason = device.change(|life| life.drained()).unwrap_or(reason);
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

/// Starts the generation that was set up. With the claim, nobody uses the disk exclusively; there
/// is none if somebody does under whom the generation may come back.
fn start(
    disk: &Disk<Device>,
    opened: Opened,
) -> Result<(Arc<Attachment>, Option<Claim<'_, Device>>)> {
    let device = disk.data();
    loop {
        // A generation that drains wants the claim too: it must not wait for ours.
        device.when_drained(|_| ())?;
        let claim = disk.claim(opened).ok();
        let disk_use = match claim {
            Some(_) => DiskUse::Shared,
            None => DiskUse::Exclusive,
        };
        let started =
            device.change(|life| life.start(ProcessRef::current(), disk_use, Attachment::new));
        match started {
            Ok(attachment) => return Ok((attachment, claim)),
            Err(Failure::Refused(Refusal::Draining)) => {}
            Err(Failure::Refused(refusal)) => {
                drop(claim);
                return Err(setup::refuse(disk, refusal));
            }
            Err(Failure::Step(error)) => return Err(error),
        }
    }
}

/// Makes a generation serve requests. What it has come to is returned also if it fails.
fn bring_up(
    disk: &Disk<Device>,
    attachment: &Arc<Attachment>,
    claim: Option<Claim<'_, Device>>,
) -> (Presence, Result) {
    match claim {
        // Dirty pages of the last export must not come to this one's server.
        Some(ref claim) => claim.change_medium(),
        None => dev_info!(disk.device(), "attached again under its exclusive user\n"),
    }
    let mut presence = Presence {
        _receivers: KVec::new(),
        _pid: None,
    };
    let result = try_bring_up(disk, attachment, &mut presence);
    if let Err(error) = result {
        disk.data().note(Trouble::Start {
            generation: attachment.generation,
            error,
        });
        dev_err!(disk.device(), "cannot start ({error:?})\n");
    }
    (presence, result)
}

fn try_bring_up(
    disk: &Disk<Device>,
    attachment: &Arc<Attachment>,
    presence: &mut Presence,
) -> Result {
    disk.update_hw_queues(u32::try_from(attachment.connections.len())?);
    for connection in &attachment.connections {
        connection.socket.set_memalloc();
    }
    geometry::apply_timeout(disk, attachment, attachment.timeout());
    disk.set_read_only(attachment.flags().contains(TransmissionFlags::READ_ONLY));
    presence._pid = Some(AttributeFile::create(disk)?);
    disk.attach(KBox::new(attachment.clone(), GFP_KERNEL)?)
        .map_err(|_| EBUSY)?;
    for connection in &attachment.connections {
        let receiver = Receiver::start(disk, attachment, connection)?;
        presence._receivers.push(receiver, GFP_KERNEL)?;
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
    if attachment.is_draining() {
        let_server_finish(attachment);
    }
    let mut end = attachment.end.lock();
    while !gone(&end) {
        // All sockets are shut down: the receivers are on their way.
        attachment.end_changed.wait(&mut end);
    }
    if attachment.timed_out() {
        EndReason::TimedOut
    } else {
        EndReason::ConnectionsLost
    }
}

/// After a disconnect: lets the server answer what it was asked, and close. It has a while for
/// that; then, or with a signal, the connections are killed.
fn let_server_finish(attachment: &Attachment) {
    for _ in 0..DISCONNECT_GRACE_MS / DISCONNECT_TICK_MS {
        // Who could not be told at first is told once its sender is done.
        teardown::say_goodbye(attachment);
        let mut end = attachment.end.lock();
        if end.receivers == 0 {
            return;
        }
        let tick = msecs_to_jiffies(DISCONNECT_TICK_MS);
        match attachment
            .end_changed
            .wait_interruptible_timeout(&mut end, tick)
        {
            CondVarTimeoutResult::Signal { .. } => break,
            CondVarTimeoutResult::Woken { .. } | CondVarTimeoutResult::Timeout => {}
        }
    }
    attachment.kill_all();
}

/// Ends all that a generation still has going. Bounded: nothing here waits for a server.
fn drain(disk: &Disk<Device>, opened: Opened, attachment: &Attachment, presence: Presence) {
    debug_assert!(matches!(
        disk.data().setup.lock().phase(),
        Phase::Draining { .. }
    ));
    // The sockets are shut down: receivers leave, and with them the requests that they await.
    let Presence { _receivers, _pid } = presence;
    drop(_receivers);
    for connection in &attachment.connections {
        connection.flush();
    }
    // Who was sending has met the dead socket when this returns.
    disk.wait_for_dispatch();
    disk.for_each_request(|request| {
        if let Some(claim) = request.data().word.claim() {
            answer(request, claim, Outcome::End(Status::IoError));
        }
    });
    let detached = disk.freeze().detach();
    drop(detached);
    drop(_pid);
    geometry::clear(disk, opened);
}
