// SPDX-License-Identifier: GPL-2.0

//! The keeper of a generation that was attached by ioctl: the task in `NBD_DO_IT`, and while that is
//! away a worker.
//!
//! To be stopped, traced or frozen a task must leave the kernel, and nothing has ended by that. So it
//! leaves the call with `ERESTARTNOHAND`, and the generation runs on. When the task goes on, the kernel
//! makes the call again, which finds its generation. If that ends meanwhile the worker sees to it, and
//! the call learns how it ended. If the call is not made again, since a handler has run or the task has
//! died, the generation ends as it does with a signal. The kernel does not tell that to a driver: the
//! worker looks what the task is doing.

use super::{drain, end, owner::Lifecycle, Device};
use crate::{
    abstractions::{
        module_ref::ModuleRef,
        task::{Doing, TaskRef},
        work::{WithWork, WorkFunc},
    },
    driver::{
        attachment::{keeper::Keeper, Attachment, AttachmentRef},
        wire::journal::LastError,
    },
    protocol::{
        end::{ComeBack, End},
        setup::{EndReason, Interface},
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::msecs_to_jiffies,
};

/// How often it is looked what a task is doing that is away.
const TICK_MS: u32 = 100;

/// A task that runs so long, in nanoseconds, does not come back: to come back takes it a moment.
const ELSEWHERE_NS: u64 = 100_000_000;

/// A task that is away.
struct Absence {
    attachment: AttachmentRef,
    task: TaskRef,
    /// How long it had run when it left.
    runtime: u64,
    /// No open file may be left that keeps the module: this does.
    _module: ModuleRef,
}

impl Absence {
    /// Whether the task does other things than to come back.
    fn is_for_good(&self) -> bool {
        match self.task.doing() {
            Doing::Exiting | Doing::Sleeping => true,
            Doing::Running => self.task.runtime().wrapping_sub(self.runtime) > ELSEWHERE_NS,
            Doing::Held => false,
        }
    }
}

/// Sees to a generation while its task is away.
#[pin_data]
struct Substitute {
    device: Arc<Device>,
    #[pin]
    absence: Mutex<Option<Absence>>,
    /// The end is due: this is to be ended.
    #[pin]
    due: Mutex<Option<AttachmentRef>>,
}

/// The keeper of a generation that is attached by ioctl.
struct Task(Arc<WithWork<Substitute>>);

/// The keeper of a generation of `device`, which the current task is about to start. Sleeps.
pub(super) fn keeper(device: &Arc<Device>) -> Result<KBox<dyn Keeper<Attachment>>> {
    let substitute = Arc::pin_init(
        WithWork::new(pin_init!(Substitute {
            device: device.clone(),
            absence <- new_mutex!(None, "rnbd::absence"),
            due <- new_mutex!(None, "rnbd::due"),
        })),
        GFP_KERNEL,
    )?;
    Ok(KBox::new(Task(substitute), GFP_KERNEL)?)
}

impl Keeper<Attachment> for Task {
    fn interface(&self) -> Interface {
        Interface::Ioctl
    }

    fn end_due(&self, attachment: &AttachmentRef) {
        *self.0.due.lock() = Some(attachment.clone());
        WithWork::queue_work(&self.0, &self.0.device.maker.substitutes);
    }

    fn leave(&self, attachment: &AttachmentRef) -> bool {
        let Some(module) = ModuleRef::try_get(self.0.device.maker.module) else {
            return false;
        };
        let task = TaskRef::current();
        let absence = Absence {
            attachment: attachment.clone(),
            runtime: task.runtime(),
            task,
            _module: module,
        };
        let before = self.0.absence.lock().replace(absence);
        drop(before);
        Attachment::tell_keeper(attachment, End::leave);
        WithWork::queue_work(&self.0, &self.0.device.maker.substitutes);
        true
    }

    fn come_back(&self, attachment: &AttachmentRef) -> ComeBack {
        let back = attachment.end.lock().come_back();
        if back == ComeBack::Done {
            let absence = self.0.absence.lock().take();
            drop(absence);
            attachment.end_changed.notify_all();
        }
        back
    }
}

impl WorkFunc for Substitute {
    fn run(this: &Arc<WithWork<Self>>) {
        if let Some(absence) = this.watch() {
            this.device.journal.note(LastError::Interrupted {
                generation: absence.attachment.generation,
            });
            end::end(&this.device, EndReason::Interrupted);
            this.finish(&absence.attachment);
            return;
        }
        // First out of the lock: what it keeps goes with the drain.
        let due = this.due.lock().take();
        if let Some(attachment) = due {
            let absence = this.absence.lock().take();
            this.finish(&attachment);
            drop(absence);
        }
    }
}

impl Substitute {
    /// Waits until the task is back, or a worker is to end the generation; or until the task does other
    /// things: then this is the one to end it.
    fn watch(&self) -> Option<Absence> {
        loop {
            let attachment = self.absence.lock().as_ref()?.attachment.clone();
            let mut end = attachment.end.lock();
            let for_good = match &*self.absence.lock() {
                Some(absence) => absence.is_for_good(),
                None => return None,
            };
            if !end.is_away() {
                return None;
            }
            if for_good && end.take() {
                drop(end);
                return self.absence.lock().take();
            }
            let tick = msecs_to_jiffies(TICK_MS);
            // A worker gets no signals.
            let _ = attachment
                .end_changed
                .wait_interruptible_timeout(&mut end, tick);
        }
    }

    fn finish(&self, attachment: &AttachmentRef) {
        // A worker gets no signals.
        let _ = drain::conclude(&self.device, attachment);
        drain::run(&self.device, attachment, Lifecycle::drained_unseen, || {
            None::<()>
        });
    }
}
