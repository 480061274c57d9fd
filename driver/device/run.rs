// SPDX-License-Identifier: GPL-2.0

//! `NBD_DO_IT`: a generation from its start to its end, in one task.

use super::{
    away, drain, end,
    start::{bring_up, start},
    Device,
};
use crate::{
    abstractions::{block::mq::IoctlMode, pid, pid::ProcessRef, task},
    driver::{
        attachment::{Attachment, AttachmentRef},
        wire::journal::LastError,
    },
    protocol::{end::ComeBack, setup::EndReason},
};
use kernel::{prelude::*, sync::Arc};

/// `NBD_DO_IT`: starts the generation that was set up, and returns when it is gone. Or goes on with
/// the generation that the current task has left for a while.
///
/// # Errors
///
/// Those of the start: see [`errno`](super::refusal::errno). Then: none if the device was disconnected; `EPIPE` if
/// all connections died, which `nbd-client -persist` answers with new ones; `ETIMEDOUT` if a request
/// timed out; `EINTR` if a signal came; `ERESTARTNOHAND`, which user space does not see, if the task has
/// to leave the kernel for a while.
pub(crate) fn run(device: &Arc<Device>, mode: IoctlMode) -> Result {
    let caller = ProcessRef::current();
    loop {
        let (ended, runs) =
            device.when_drained(|life| (device.unseen.lock().take(), life.attached_by(&caller)))?;
        if let Some(reason) = ended {
            return answer(device, None, reason);
        }
        let Some(attachment) = runs else {
            break;
        };
        match attachment.keeper.come_back(&attachment) {
            ComeBack::Done => {
                device.set_pid(pid::current_pid_nr());
                return keep(device, &attachment);
            }
            // It is another thread's of the process: this one is refused.
            ComeBack::Occupied => break,
            ComeBack::TooLate => wait_until_asked(&attachment)?,
        }
    }
    let started = start(device, mode, || away::keeper(device))?;
    device.set_pid(pid::current_pid_nr());
    let brought_up = bring_up(device, &started);
    let attachment = started.attachment.clone();
    drop(started);
    if let Err(error) = brought_up {
        end::end(device, EndReason::StartFailed);
        settle(device, &attachment);
        return Err(error);
    }
    keep(device, &attachment)
}

/// Keeps a generation that runs until it is gone, or until the task must leave.
fn keep(device: &Device, attachment: &AttachmentRef) -> Result {
    loop {
        match wait_for_end(attachment).and_then(|()| drain::conclude(device, attachment)) {
            Ok(reason) => {
                let reason = settle(device, attachment).unwrap_or(reason);
                return answer(device, Some(attachment), reason);
            }
            // The kernel makes the call again, unless a handler has run.
            Err(drain::Interrupted)
                if task::must_leave() && attachment.keeper.leave(attachment) =>
            {
                return Err(ERESTARTNOHAND);
            }
            Err(drain::Interrupted) => {
                end::end(device, EndReason::Interrupted);
            }
        }
    }
}

/// Waits until the end is due.
fn wait_for_end(attachment: &Attachment) -> Result<(), drain::Interrupted> {
    let mut end = attachment.end.lock();
    while !end.is_due() {
        // What only freezes does so here.
        if attachment
            .end_changed
            .wait_interruptible_freezable(&mut end)
        {
            return Err(drain::Interrupted);
        }
    }
    Ok(())
}

/// A worker is about to end the generation: waits until that is to be seen in the phase. With a signal
/// the call is left, and may come back for the answer.
fn wait_until_asked(attachment: &Attachment) -> Result {
    let mut end = attachment.end.lock();
    while !end.is_asked() {
        if attachment.end_changed.wait_interruptible(&mut end) {
            return Err(ERESTARTNOHAND);
        }
    }
    Ok(())
}

/// Ends what is left of a generation. Tells why it ended.
fn settle(device: &Device, attachment: &AttachmentRef) -> Option<EndReason> {
    drain::run(device, attachment, |life| life.drained(), || None::<()>)
}

/// What the caller learns of a generation that has ended.
fn answer(device: &Device, attachment: Option<&Attachment>, reason: EndReason) -> Result {
    match reason {
        EndReason::ConnectionsLost => Err(EPIPE),
        EndReason::TimedOut => Err(ETIMEDOUT),
        EndReason::Interrupted => {
            if let Some(attachment) = attachment {
                device.journal.note(LastError::Interrupted {
                    generation: attachment.generation,
                });
            }
            Err(EINTR)
        }
        EndReason::Disconnected | EndReason::Cleared | EndReason::StartFailed => Ok(()),
    }
}
