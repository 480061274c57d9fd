// SPDX-License-Identifier: GPL-2.0

//! A device: a number, a `/dev/nbdN`, whatever disk it has.
//!
//! * [`owner`]: whose setup it is, and the life of a device. [`maker`], [`slot`], [`disk`]: its disk.
//! * [`geometry`]: sizes and limits of its disk. [`files`]: what sysfs has while it is attached.
//! * [`refusal`]: why a change is refused. [`setup`]: setting up, by ioctl.
//! * [`start`]: how a generation is started, and brought up. [`end`]: how it is ended, and what is
//!   done at once. [`drain`]: how it is taken out of the system. [`run`]: `NBD_DO_IT`, all of it;
//!   [`away`], [`unseen`]: while its task is stopped, traced or frozen.

#[macro_use]
mod log;

mod away;
pub(crate) mod disk;
pub(crate) mod drain;
pub(crate) mod end;
pub(crate) mod files;
pub(crate) mod geometry;
pub(crate) mod maker;
pub(crate) mod owner;
pub(crate) mod refusal;
pub(crate) mod run;
pub(crate) mod setup;
mod slot;
pub(crate) mod start;
mod unseen;

use self::{maker::Maker, owner::Lifecycle, slot::Slot, unseen::Unseen};
use super::{nbd::Nbd, wire::journal::Journal};
use crate::{
    abstractions::{block::mq::Disk, memalloc::MemallocNoio, trace},
    protocol::setup::Phase,
};
use core::ops::{Deref, DerefMut};
use kernel::{
    new_condvar, new_mutex, new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Relaxed},
        Arc, CondVar, Mutex, MutexGuard, SpinLock,
    },
};

/// What the driver knows of one device.
///
/// Lock order: the disk's open lock, then the setup lock, then a connection's send lock or an
/// attachment's end lock. The block layer's locks for limits, freezing and hardware queues are
/// never taken under the setup lock.
#[pin_data]
pub(crate) struct Device {
    pub(crate) journal: Arc<Journal>,
    maker: Arc<Maker>,
    /// What is in the system for it. Held while a generation is started. Outermost of all locks, but
    /// that a last close may try for it.
    #[pin]
    in_system: Mutex<Slot>,
    /// A reference to that disk, for those that only look.
    #[pin]
    current: SpinLock<Option<ARef<Disk<Nbd>>>>,
    /// The setup lock (invariant G1).
    #[pin]
    setup: Mutex<Lifecycle>,
    /// The phase, under the setup lock, has changed.
    #[pin]
    phase_changed: CondVar,
    /// How generations ended whose tasks were away. Taken under the setup lock, or alone.
    #[pin]
    unseen: Mutex<Unseen>,
    /// The task that started the generation which is attached, or 0.
    pid: Atomic<i32>,
    /// The disk was opened for use since it was attached.
    used: Atomic<bool>,
}

/// The setup lock, held. What is allocated meanwhile does not wait for I/O: that could be this
/// device's, and what would end it waits for the lock.
pub(crate) struct SetupGuard<'a> {
    life: MutexGuard<'a, Lifecycle>,
    _noio: MemallocNoio,
}

impl Deref for SetupGuard<'_> {
    type Target = Lifecycle;

    fn deref(&self) -> &Lifecycle {
        &self.life
    }
}

impl DerefMut for SetupGuard<'_> {
    fn deref_mut(&mut self) -> &mut Lifecycle {
        &mut self.life
    }
}

impl Device {
    /// A device that is idle, and has no disk yet.
    pub(crate) fn new(index: u32, maker: &Arc<Maker>) -> Result<Arc<Self>> {
        let journal = Journal::new(index, maker.link_dead)?;
        Arc::pin_init(
            pin_init!(Self {
                journal,
                maker: maker.clone(),
                in_system <- new_mutex!(Slot::default(), "rnbd::slot"),
                current <- new_spinlock!(None, "rnbd::current"),
                setup <- new_mutex!(Lifecycle::default(), "rnbd::setup"),
                phase_changed <- new_condvar!("rnbd::phase_changed"),
                unseen <- new_mutex!(Unseen::default(), "rnbd::unseen"),
                pid: Atomic::new(0),
                used: Atomic::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// The current task makes another call than that which it may have left.
    pub(crate) fn forget_absence(&self) {
        let _ = self.unseen.lock().take();
    }

    /// Its number.
    pub(crate) fn index(&self) -> u32 {
        self.journal.index
    }

    /// The task that started the generation which is attached, or 0. Takes no lock.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Relaxed)
    }

    pub(crate) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Relaxed);
    }

    /// A generation begins: it was not used yet.
    pub(crate) fn forget_use(&self) {
        self.used.store(false, Relaxed);
    }

    /// The disk is opened for use.
    pub(crate) fn note_use(&self) {
        self.used.store(true, Relaxed);
    }

    /// Whether the disk was opened for use since the generation began, not just to look
    /// what is on it, as udev does when a disk comes.
    pub(crate) fn was_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Takes the setup lock. Sleeps.
    pub(crate) fn lock_setup(&self) -> SetupGuard<'_> {
        let noio = MemallocNoio::save();
        SetupGuard {
            life: self.setup.lock(),
            _noio: noio,
        }
    }

    /// Runs `step` under the setup lock, once no generation drains any more. Sleeps; a signal
    /// stops the wait with `ERESTARTSYS`. Draining is bounded, and so is the wait.
    pub(crate) fn when_drained<R>(&self, step: impl FnOnce(&mut Lifecycle) -> R) -> Result<R> {
        let mut life = self.lock_setup();
        while matches!(life.phase(), Phase::Draining { .. }) {
            if self.phase_changed.wait_interruptible(&mut life.life) {
                return Err(ERESTARTSYS);
            }
        }
        Ok(self.observed(&mut life, step))
    }

    /// Runs `step` under the setup lock. May sleep.
    pub(crate) fn change<R>(&self, step: impl FnOnce(&mut Lifecycle) -> R) -> R {
        self.observed(&mut self.lock_setup(), step)
    }

    /// Runs `step`, and tells those that wait and those that watch if the phase has changed by it.
    fn observed<R>(&self, life: &mut Lifecycle, step: impl FnOnce(&mut Lifecycle) -> R) -> R {
        let before = (life.generation(), life.phase().name());
        let result = step(life);
        let after = (life.generation(), life.phase().name());
        if before != after {
            let (generation, phase) = after;
            trace::phase(self.index(), generation, phase);
            self.phase_changed.notify_all();
        }
        result
    }
}
