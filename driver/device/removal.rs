// SPDX-License-Identifier: GPL-2.0

//! Taking a disk out of the system, by a worker.
//!
//! The block layer waits there for whatever is just closing the disk, which may wait for I/O of its
//! own that is held back, and for readers of the disk's files. The caller waits for the worker, with
//! a bound.

use crate::{
    abstractions::{
        block::mq::GenDisk,
        work::{WithWork, WorkFunc},
        workqueue::Workqueue,
    },
    driver::nbd::Nbd,
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{Arc, CondVar, CondVarTimeoutResult, Mutex},
    time::msecs_to_jiffies,
};

/// How long a caller waits for a disk to be gone, in milliseconds.
const PATIENCE_MS: u32 = 5000;

/// A disk that is being taken out of the system.
#[pin_data]
pub(crate) struct Removal {
    /// The disk, until a worker takes it.
    #[pin]
    disk: Mutex<Option<GenDisk<Nbd>>>,
    /// It is gone.
    #[pin]
    gone: Mutex<bool>,
    #[pin]
    gone_changed: CondVar,
}

/// What was seen of a removal.
pub(crate) enum Seen {
    /// The disk is gone.
    Gone,
    /// It is not, after a while.
    Delayed,
    /// A signal came first.
    Interrupted,
}

impl Removal {
    /// Has `disk`, which has nothing attached, taken out on `queue`. Its openers get errors from now
    /// on. Without memory nothing happens, and the disk stays where it is. Sleeps.
    pub(crate) fn start(
        disk: &mut Option<GenDisk<Nbd>>,
        queue: &Workqueue,
    ) -> Result<Arc<WithWork<Self>>> {
        let removal = Arc::pin_init(
            WithWork::new(pin_init!(Self {
                disk <- new_mutex!(None, "rnbd::removal"),
                gone <- new_mutex!(false, "rnbd::gone"),
                gone_changed <- new_condvar!("rnbd::gone_changed"),
            })),
            GFP_KERNEL,
        )?;
        let disk = disk.take();
        if let Some(disk) = &disk {
            // Nothing is to be written back: there is no server.
            disk.mark_dead();
        }
        *removal.disk.lock() = disk;
        WithWork::queue_work(&removal, queue);
        Ok(removal)
    }

    /// Waits until the disk is gone. Sleeps; five seconds at most.
    pub(crate) fn wait(&self) -> Seen {
        let mut left = msecs_to_jiffies(PATIENCE_MS);
        let mut gone = self.gone.lock();
        while !*gone {
            match self
                .gone_changed
                .wait_interruptible_timeout(&mut gone, left)
            {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                CondVarTimeoutResult::Timeout => break,
                CondVarTimeoutResult::Signal { .. } => return Seen::Interrupted,
            }
        }
        match *gone {
            true => Seen::Gone,
            false => Seen::Delayed,
        }
    }
}

impl WorkFunc for Removal {
    fn run(this: &Arc<WithWork<Self>>) {
        let disk = this.disk.lock().take();
        drop(disk);
        *this.gone.lock() = true;
        this.gone_changed.notify_all();
    }
}
