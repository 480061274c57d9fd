// SPDX-License-Identifier: GPL-2.0

//! The keeper of a generation that was attached by ioctl: the task in `NBD_DO_IT`, and while that is
//! away a worker.
//!
//! To be stopped, traced or frozen a task must leave the kernel, and nothing has ended by that. So it
//! leaves the call with `ERESTARTNOHAND`, and the generation runs on. When the task goes on, the kernel
//! makes the call again, which finds its generation. If that ends meanwhile the worker sees to it, and
//! the call learns how it ended. If the call is not made again, since a handler has run or the task has
//! died, the generation ends as it does with a signal. The kernel does not tell that to a driver: another
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

/// A task that runs so long from one look to the next, in nanoseconds, does not come back.
const ELSEWHERE_NS: u64 = 50_000_000;

/// So many looks in a row must agree: one may fall into the moment in which it comes back.
const LOOKS: u32 = 3;

/// A task that is away.
struct Absence {
    attachment: AttachmentRef,
    task: TaskRef,
    /// How long it had run at the last look.
    runtime: u64,
    /// How many looks in a row have found it elsewhere.
    elsewhere: u32,
    /// No open file may be left that keeps the module: this does.
    _module: ModuleRef,
}

impl Absence {
    /// Whether the task does other things than to come back.
    fn is_for_good(&mut self) -> bool {
        let before = core::mem::replace(&mut self.runtime, self.task.runtime());
        let is_elsewhere = match self.task.doing() {
            Doing::Exiting => return true,
            Doing::Held => false,
            Doing::Sleeping => true,
            Doing::Running => self.runtime.wrapping_sub(before) > ELSEWHERE_NS,
        };
        self.elsewhere = match is_elsewhere {
            true => self.elsewhere.saturating_add(1),
            false => 0,
        };
        self.elsewhere >= LOOKS
    }
}

/// What is to be ended.
struct Due {
    attachment: AttachmentRef,
    /// The task does other things: that is why.
    for_good: bool,
    /// Who is to be told; and what keeps the module until it has ended.
    absence: Option<Absence>,
}

/// Ends a generation whose task is away.
#[pin_data]
struct Substitute {
    device: Arc<Device>,
    #[pin]
    due: Mutex<Option<Due>>,
}

/// Watches a task that is away.
#[pin_data]
struct Watcher {
    substitute: Arc<WithWork<Substitute>>,
    #[pin]
    absence: Mutex<Option<Absence>>,
}

/// The keeper of a generation that is attached by ioctl.
struct Task {
    substitute: Arc<WithWork<Substitute>>,
    watcher: Arc<WithWork<Watcher>>,
}

/// The keeper of a generation of `device`, which the current task is about to start. Sleeps.
pub(super) fn keeper(device: &Arc<Device>) -> Result<KBox<dyn Keeper<Attachment>>> {
    let substitute = Arc::pin_init(
        WithWork::new(pin_init!(Substitute {
            device: device.clone(),
            due <- new_mutex!(None, "rnbd::due"),
        })),
        GFP_KERNEL,
    )?;
    let theirs = substitute.clone();
    let watcher = Arc::pin_init(
        WithWork::new(pin_init!(Watcher {
            substitute: theirs,
            absence <- new_mutex!(None, "rnbd::absence"),
        })),
        GFP_KERNEL,
    )?;
    Ok(KBox::new(
        Task {
            substitute,
            watcher,
        },
        GFP_KERNEL,
    )?)
}

impl Keeper<Attachment> for Task {
    fn interface(&self) -> Interface {
        Interface::Ioctl
    }

    fn end_due(&self, attachment: &AttachmentRef) {
        self.watcher.end(attachment, false);
    }

    fn leave(&self, attachment: &AttachmentRef) -> bool {
        let maker = &self.substitute.device.maker;
        let Some(module) = ModuleRef::try_get(maker.module) else {
            return false;
        };
        let task = TaskRef::current();
        let absence = Absence {
            attachment: attachment.clone(),
            runtime: task.runtime(),
            task,
            elsewhere: 0,
            _module: module,
        };
        if self.substitute.device.unseen.lock().reserve().is_err() {
            return false;
        }
        let before = self.watcher.absence.lock().replace(absence);
        drop(before);
        Attachment::tell_keeper(attachment, End::leave);
        WithWork::queue_work(&self.watcher, &maker.watchers);
        true
    }

    fn come_back(&self, attachment: &AttachmentRef) -> ComeBack {
        // Another thread of the process is another caller.
        let mut end = attachment.end.lock();
        let is_other = match &*self.watcher.absence.lock() {
            Some(absence) => !absence.task.is_current(),
            None => false,
        };
        if is_other {
            return ComeBack::Occupied;
        }
        let back = end.come_back();
        drop(end);
        if back == ComeBack::Done {
            let absence = self.watcher.absence.lock().take();
            drop(absence);
            attachment.end_changed.notify_all();
        }
        back
    }
}

impl WorkFunc for Watcher {
    /// Waits until the task is back, or its generation ends; or until the task does other things: then
    /// it is this that has it ended.
    fn run(this: &Arc<WithWork<Self>>) {
        loop {
            let Some(attachment) = this.attachment() else {
                return;
            };
            let mut end = attachment.end.lock();
            if !end.is_away() {
                return;
            }
            if this.is_for_good() && end.take() {
                drop(end);
                return this.end(&attachment, true);
            }
            let tick = msecs_to_jiffies(TICK_MS);
            // A worker gets no signals.
            let _ = attachment
                .end_changed
                .wait_interruptible_timeout(&mut end, tick);
        }
    }
}

impl Watcher {
    fn attachment(&self) -> Option<AttachmentRef> {
        let absence = self.absence.lock();
        Some(absence.as_ref()?.attachment.clone())
    }

    fn is_for_good(&self) -> bool {
        let mut guard = self.absence.lock();
        match &mut *guard {
            Some(absence) => absence.is_for_good(),
            None => false,
        }
    }

    /// Has the generation ended. Called once: see [`End::take`].
    fn end(&self, attachment: &AttachmentRef, for_good: bool) {
        let due = Due {
            attachment: attachment.clone(),
            for_good,
            absence: self.absence.lock().take(),
        };
        *self.substitute.due.lock() = Some(due);
        let workers = &self.substitute.device.maker.workers;
        WithWork::queue_work(&self.substitute, workers);
    }
}

impl WorkFunc for Substitute {
    fn run(this: &Arc<WithWork<Self>>) {
        // First out of the lock: what it keeps goes with the drain.
        let due = this.due.lock().take();
        let Some(due) = due else {
            return;
        };
        let (device, attachment) = (&this.device, &due.attachment);
        if due.for_good {
            device.journal.note(LastError::Interrupted {
                generation: attachment.generation,
            });
            end::end(device, EndReason::Interrupted);
        }
        // A worker gets no signals.
        let _ = drain::conclude(device, attachment);
        let settle = |life: &mut Lifecycle| {
            let reason = life.drained();
            // Before anybody can see that it is gone.
            if let (Some(reason), Some(absence)) = (reason, due.absence.filter(|_| !due.for_good)) {
                device.unseen.lock().put(absence.task, reason);
            }
            reason
        };
        drain::run(device, attachment, settle, || None::<()>);
    }
}
