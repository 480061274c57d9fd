// SPDX-License-Identifier: GPL-2.0

//! Tasks: why one has to leave the kernel, and what it does then.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::bindings as extra;
use kernel::{
    bindings, ffi,
    sync::aref::ARef,
    task::{Task, TASK_INTERRUPTIBLE},
};

/// Whether the current task, in which a signal interrupts waiting (`signal_pending`), just has to leave
/// the kernel for a while: to stop, to be traced or frozen, to do task work. Then no signal waits that
/// ends it or that it handles, as far as that is certain, and a system call that it leaves with
/// `ERESTARTNOHAND` is made again.
///
/// What is pending is another thing the next moment, and what the process was sent may be for another of
/// its threads: if a handler runs after all, the call returns `EINTR` and is not made again.
pub(crate) fn must_leave() -> bool {
    let task = Task::current_raw();
    // SAFETY: The current task's `signal` and `sighand` are there, and no other task changes these
    // pointers. What they point to is read without the lock, word by word: a look at a state that may be
    // another one the next moment. There is an action for each signal of a set.
    unsafe {
        let own = words(&raw const (*task).pending.signal);
        // Another thread may take what the process has been sent.
        let shared = match (&raw const (*(*task).signal).nr_threads).read_volatile() {
            1 => words(&raw const (*(*task).signal).shared_pending.signal),
            _ => Words::default(),
        };
        let blocked = words(&raw const (*task).blocked);
        // Whoever traces it gets all other signals first, and may keep them.
        let traced = (&raw const (*task).ptrace).read_volatile() != 0;
        let actions = (&raw const (*(*task).sighand).action).cast::<bindings::k_sigaction>();
        let sets = own.into_iter().zip(shared).zip(blocked);
        let pending = sets.map(|((own, shared), blocked)| (own | shared) & !blocked);
        let bits = pending.flat_map(|word| {
            (0..ffi::c_ulong::BITS).map(move |bit| word.wrapping_shr(bit) & 1 != 0)
        });
        let mut signals = bits.enumerate().filter(|(_, pending)| *pending);
        !signals.any(|(index, _)| {
            // The first signal is 1.
            let signal = (index as u32).wrapping_add(1);
            let handler = (&raw const (*actions.add(index)).sa.sa_handler).cast::<usize>();
            signal == bindings::SIGKILL || !traced && is_delivered(signal, handler.read_volatile())
        })
    }
}

/// The words of a `sigset_t`.
type Words = [ffi::c_ulong; size_of::<bindings::sigset_t>() / size_of::<ffi::c_ulong>()];

/// # Safety
///
/// `set` must be valid for reading.
unsafe fn words(set: *const bindings::sigset_t) -> Words {
    // SAFETY: By the safety requirement; a `sigset_t` is such an array.
    unsafe { set.cast::<Words>().read_volatile() }
}

/// Whether a signal that is taken with this `sa_handler` ends a task or runs its handler.
const fn is_delivered(signal: u32, handler: usize) -> bool {
    const SIG_DFL: usize = 0;
    const SIG_IGN: usize = 1;

    match handler {
        SIG_IGN => false,
        // `sig_kernel_ignore` and `sig_kernel_stop`.
        SIG_DFL => !matches!(
            signal,
            bindings::SIGCONT
                | bindings::SIGCHLD
                | bindings::SIGWINCH
                | bindings::SIGURG
                | bindings::SIGSTOP
                | bindings::SIGTSTP
                | bindings::SIGTTIN
                | bindings::SIGTTOU
        ),
        _ => true,
    }
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It is stopped, traced, frozen, or waits uninterruptibly for something.
    Held,
    /// It runs, or is about to.
    Running,
    /// It sleeps in a system call.
    Sleeping,
    /// It has begun to exit.
    Exiting,
}

/// A task (thread).
pub(crate) struct TaskRef(ARef<Task>);

impl TaskRef {
    /// The current one.
    pub(crate) fn current() -> Self {
        Self(ARef::from(&**kernel::current!()))
    }

    /// Whether it is the current one.
    pub(crate) fn is_current(&self) -> bool {
        self.0.as_ptr() == Task::current_raw()
    }

    /// What it is doing at this moment. Any context.
    pub(crate) fn doing(&self) -> Doing {
        let task = self.0.as_ptr();
        // SAFETY: The reference keeps the task. The fields may change meanwhile.
        let (exiting, state, freezes) = unsafe {
            // Before and after: it may go into the freezer or come out of it meanwhile.
            let before = extra::rnbd_helper_task_freezes(task);
            (
                extra::rnbd_helper_task_exiting(task),
                (&raw const (*task).__state).read_volatile(),
                before || extra::rnbd_helper_task_freezes(task),
            )
        };
        match state {
            _ if exiting => Doing::Exiting,
            0 => Doing::Running,
            // In the cgroup's freezer it sleeps so, too.
            state if state & TASK_INTERRUPTIBLE as u32 != 0 && !freezes => Doing::Sleeping,
            _ => Doing::Held,
        }
    }

    /// How long it has run on a processor, in nanoseconds, in steps of a tick. Time that a hypervisor
    /// has taken may count.
    pub(crate) fn runtime(&self) -> u64 {
        // SAFETY: The reference keeps the task.
        unsafe { (&raw const (*self.0.as_ptr()).se.sum_exec_runtime).read_volatile() }
    }
}
