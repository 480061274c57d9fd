// SPDX-License-Identifier: GPL-2.0

//! What a device has in the system, and the wait for another disk.

use crate::{
    abstractions::block::mq::{Disk, GenDisk, IoctlMode},
    driver::nbd::Nbd,
    protocol::setup::DiskUse,
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{Arc, CondVar, CondVarTimeoutResult, Mutex},
    time::{msecs_to_jiffies, Jiffies},
};

/// What a device has in the system.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) disk: Option<GenDisk<Nbd>>,
    /// Another disk is being made, in the place of the one before.
    pub(super) pending: Option<Arc<Pending>>,
    /// The device goes: it gets no other disk.
    pub(super) closed: bool,
}

/// Whether a disk is used exclusively, by another than the caller of an ioctl with `mode`.
pub(super) fn disk_use(disk: &Disk<Nbd>, mode: IoctlMode) -> DiskUse {
    match !mode.is_excl() && disk.bd_holder().is_some() {
        true => DiskUse::Exclusive,
        false => DiskUse::Shared,
    }
}

/// A disk that is being made.
#[pin_data]
pub(super) struct Pending {
    #[pin]
    progress: Mutex<Progress>,
    #[pin]
    progress_changed: CondVar,
}

/// How far it has come.
#[derive(Default)]
struct Progress {
    done: bool,
    /// Why it could not be made at the last try.
    error: Option<Error>,
}

/// What was seen of a [`Pending`].
pub(super) enum Seen {
    /// It is done, whether or not there is a disk.
    Done,
    /// It is not, after a while; for this reason, if it could not be made so far.
    Delayed(Option<Error>),
    /// A signal came first.
    Interrupted,
}

/// How long a caller waits for disks, all together.
pub(super) struct Patience(Jiffies);

impl Patience {
    pub(super) fn new() -> Self {
        Self(msecs_to_jiffies(5000))
    }
}

impl Pending {
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                progress <- new_mutex!(Progress::default(), "rnbd::pending"),
                progress_changed <- new_condvar!("rnbd::pending_changed"),
            }),
            GFP_KERNEL,
        )
    }

    /// It could not be made, and is tried again. May sleep.
    pub(super) fn note(&self, error: Error) {
        self.progress.lock().error = Some(error);
    }

    /// It is done. May sleep.
    pub(super) fn finish(&self) {
        self.progress.lock().done = true;
        self.progress_changed.notify_all();
    }

    /// Waits until it is done, as long as there is `patience`, of which this takes what it waits.
    /// Sleeps.
    pub(super) fn wait(&self, patience: &mut Patience) -> Seen {
        let mut progress = self.progress.lock();
        while !progress.done {
            let left = patience.0;
            match self
                .progress_changed
                .wait_interruptible_timeout(&mut progress, left)
            {
                CondVarTimeoutResult::Woken { jiffies } => patience.0 = jiffies,
                CondVarTimeoutResult::Timeout => {
                    patience.0 = 0;
                    break;
                }
                CondVarTimeoutResult::Signal { .. } => return Seen::Interrupted,
            }
        }
        match progress.done {
            true => Seen::Done,
            false => Seen::Delayed(progress.error),
        }
    }

    /// Waits until it is done, however long that takes. Sleeps.
    pub(super) fn wait_done(&self) {
        let mut progress = self.progress.lock();
        while !progress.done {
            self.progress_changed.wait(&mut progress);
        }
    }
}
