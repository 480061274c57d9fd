// SPDX-License-Identifier: GPL-2.0

//! One `/dev/nbdN`: its setup lock, and what the block layer asks of it.

use super::{
    attachment::AttachmentRef, ioctl, link::Death, owner::Lifecycle, teardown, timeout, transmit,
};
use crate::{
    abstractions::{
        block::mq::{Disk, IoctlMode, OpenMode, Operations, Request, Timeout},
        memalloc::MemallocNoio,
        pid,
        ratelimit::RatelimitState,
        trace,
    },
    protocol::{
        request::{AtomicWord, Word},
        setup::Phase,
    },
};
use core::ops::{Deref, DerefMut};
use kernel::{
    fmt, new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        CondVar, Mutex, MutexGuard,
    },
};

/// What the driver knows of one device.
///
/// Lock order: the disk's open lock, then the setup lock, then a connection's send lock or an
/// attachment's end lock. The block layer's locks for limits, freezing and hardware queues are
/// never taken under the setup lock.
#[pin_data]
pub(crate) struct Device {
    pub(super) index: u32,
    /// The setup lock (invariant G1).
    #[pin]
    setup: Mutex<Lifecycle>,
    /// The phase, under the setup lock, has changed.
    #[pin]
    phase_changed: CondVar,
    /// The task that started the generation which is attached, or 0.
    pid: Atomic<i32>,
    /// Somebody has had the disk open for use since it was attached.
    used: Atomic<bool>,
    /// The last thing that went wrong. Innermost of all locks.
    #[pin]
    trouble: Mutex<Option<Trouble>>,
    /// Bounds how often refusals are said in the log.
    pub(super) said: RatelimitState,
}

/// Something that went wrong with a device.
#[derive(Clone, Copy)]
pub(super) enum Trouble {
    /// A connection died while its generation ran.
    Connection {
        generation: u64,
        index: u16,
        death: Death,
    },
    /// A generation could not be started.
    Start { generation: u64, error: Error },
    /// The task that had started a generation got a signal, or died.
    Interrupted { generation: u64 },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection {
                generation,
                index,
                death,
            } => f.write_fmt(fmt!("generation {generation}, connection {index}: {death}")),
            Self::Start { generation, error } => {
                write!(f, "generation {generation}: cannot start ({error:?})")
            }
            Self::Interrupted { generation } => write!(
                f,
                "generation {generation}: the task in NBD_DO_IT got a signal"
            ),
        }
    }
}

/// The setup lock, held. What is allocated meanwhile does not wait for I/O: that could be this
/// device's, and whoever would end it waits for the lock.
pub(super) struct SetupGuard<'a> {
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
    /// A device that is idle.
    pub(super) fn new(index: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            index,
            setup <- new_mutex!(Lifecycle::default(), "rnbd::setup"),
            phase_changed <- new_condvar!("rnbd::phase_changed"),
            pid: Atomic::new(0),
            used: Atomic::new(false),
            trouble <- new_mutex!(None, "rnbd::trouble"),
            said: RatelimitState::new(),
        })
    }

    /// The task that started the generation which is attached, or 0. Takes no lock.
    pub(super) fn pid(&self) -> i32 {
        self.pid.load(Relaxed)
    }

    pub(super) fn set_pid(&self, pid: i32) {
        self.pid.store(pid, Relaxed);
    }

    /// A generation begins: nobody has used it yet.
    pub(super) fn forget_use(&self) {
        self.used.store(false, Relaxed);
    }

    /// Somebody opens the disk for use.
    fn note_use(&self) {
        self.used.store(true, Relaxed);
    }

    /// Whether somebody has had the disk open for use since the generation began, not just to look
    /// what is on it, as udev does when a disk comes.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// Keeps in mind what went wrong. May sleep.
    pub(super) fn note(&self, trouble: Trouble) {
        *self.trouble.lock() = Some(trouble);
    }

    /// The last thing that went wrong. May sleep.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        *self.trouble.lock()
    }

    /// Takes the setup lock. Sleeps.
    pub(super) fn lock_setup(&self) -> SetupGuard<'_> {
        let noio = MemallocNoio::save();
        SetupGuard {
            life: self.setup.lock(),
            _noio: noio,
        }
    }

    /// Runs `step` under the setup lock, once no generation drains any more. Sleeps; a signal
    /// stops the wait with `ERESTARTSYS`. Draining is bounded, and so is the wait.
    pub(super) fn when_drained<R>(&self, step: impl FnOnce(&mut Lifecycle) -> R) -> Result<R> {
        let mut life = self.lock_setup();
        while matches!(life.phase(), Phase::Draining { .. }) {
            if self.phase_changed.wait_interruptible(&mut life.life) {
                return Err(ERESTARTSYS);
            }
        }
        Ok(self.observed(&mut life, step))
    }

    /// Runs `step` under the setup lock. May sleep.
    pub(super) fn change<R>(&self, step: impl FnOnce(&mut Lifecycle) -> R) -> R {
        self.observed(&mut self.lock_setup(), step)
    }

    /// Runs `step`, and tells those who wait and those who watch if the phase has changed by it.
    fn observed<R>(&self, life: &mut Lifecycle, step: impl FnOnce(&mut Lifecycle) -> R) -> R {
        let before = (life.generation(), life.phase().name());
        let result = step(life);
        let after = (life.generation(), life.phase().name());
        if before != after {
            let (generation, phase) = after;
            trace::phase(self.index, generation, phase);
            self.phase_changed.notify_all();
        }
        result
    }
}

/// The driver's data of a request: the word that says who may answer it.
#[derive(Default)]
pub(crate) struct RequestData {
    pub(super) word: Word<RequestWord>,
}

/// The kernel's atomics for [`Word`].
pub(crate) struct RequestWord(Atomic<u64>);

impl AtomicWord for RequestWord {
    fn new(value: u64) -> Self {
        Self(Atomic::new(value))
    }

    fn load(&self) -> u64 {
        self.0.load(Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Release);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0.cmpxchg(old, new, Full).map(|_| ())
    }
}

#[vtable]
impl Operations for Device {
    type DiskData = Self;
    type Attachment = AttachmentRef;
    type RequestData = RequestData;

    fn queue_rq(
        disk: &Disk<Self>,
        attachment: Option<&AttachmentRef>,
        request: &Request<Self>,
        queue: u32,
        last: bool,
    ) {
        transmit::submit(disk, attachment, request, queue, last);
    }

    fn commit_rqs(_: &Disk<Self>, attachment: Option<&AttachmentRef>, _: u32) {
        if let Some(attachment) = attachment {
            attachment
                .connections
                .iter()
                .for_each(|connection| connection.outbox.commit());
        }
    }

    fn timeout(
        disk: &Disk<Self>,
        attachment: Option<&AttachmentRef>,
        request: &Request<Self>,
    ) -> Timeout {
        timeout::handle(disk, attachment, request)
    }

    fn open(disk: &Disk<Self>, mode: OpenMode) -> Result {
        // Who only reads may be udev; but from a read-only disk no more than that can be wanted.
        if mode.writable || mode.exclusive || disk.is_read_only() {
            disk.data().note_use();
        }
        Ok(())
    }

    fn release(disk: &Disk<Self>, last: bool) {
        teardown::closed(disk, last, pid::current_is_exiting());
    }

    fn ioctl(disk: &Disk<Self>, mode: IoctlMode, cmd: u32, arg: usize) -> Result<i32> {
        ioctl::handle(disk, mode, cmd, arg)
    }
}
