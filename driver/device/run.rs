// SPDX-License-Identifier: GPL-2.0

//! `NBD_DO_IT`: a generation from its start to its end, in one task.

use super::{
    drain, end,
    start::{bring_up, start},
    Device,
};
use crate::{
    abstractions::{block::mq::IoctlMode, pid},
    driver::{
        attachment::{keeper::Keeper, Attachment, AttachmentRef, End},
        wire::journal::LastError,
    },
    protocol::setup::{EndReason, Interface},
};
use kernel::{prelude::*, sync::Arc};

/// The keeper is the task in `NBD_DO_IT`, which looks by itself. The generation ends with its last
/// connection.
struct Task;

impl Keeper<Attachment> for Task {
    fn interface(&self) -> Interface {
        Interface::Ioctl
    }

    fn end_due(&self, _: &AttachmentRef) {}
}

/// `NBD_DO_IT`: starts the generation that was set up, and returns when it is gone.
///
/// # Errors
///
/// Those of the start: see [`errno`](super::refusal::errno). Then: none if the device was disconnected; `EPIPE` if
/// all connections died, which `nbd-client -persist` answers with new ones; `ETIMEDOUT` if a request
/// timed out; `EINTR` if a signal came.
pub(crate) fn run(device: &Arc<Device>, mode: IoctlMode) -> Result {
    let keeper = || Ok(KBox::new(Task, GFP_KERNEL)? as KBox<dyn Keeper<Attachment>>);
    let started = start(device, mode, keeper)?;
    device.set_pid(pid::current_pid_nr());
    let brought_up = bring_up(device, &started);
    let attachment = started.attachment.clone();
    drop(started);
    let reason = match &brought_up {
        Ok(()) => wait_for_end(device, &attachment),
        Err(_) => EndReason::StartFailed,
    };
    end::end(device, reason);
    let reason = drain::run(device, &attachment, || None::<()>).unwrap_or(reason);
    brought_up?;
    match reason {
        EndReason::ConnectionsLost => Err(EPIPE),
        EndReason::TimedOut => Err(ETIMEDOUT),
        EndReason::Interrupted => {
            device.journal.note(LastError::Interrupted {
                generation: attachment.generation,
            });
            Err(EINTR)
        }
        _ => Ok(()),
    }
}

/// Waits until no connection is left, and tells why.
fn wait_for_end(device: &Device, attachment: &Attachment) -> EndReason {
    let gone = |end: &End| end.receivers == 0;
    let mut guard = attachment.end.lock();
    while !gone(&guard) && !guard.asked {
        if attachment.end_changed.wait_interruptible(&mut guard) {
            drop(guard);
            end::end(device, EndReason::Interrupted);
            guard = attachment.end.lock();
        }
    }
    drop(guard);
    drain::let_server_finish(attachment);
    if attachment.timed_out() {
        EndReason::TimedOut
    } else {
        EndReason::ConnectionsLost
    }
}
