// SPDX-License-Identifier: GPL-2.0

//! Kernel threads.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use crate::bindings as extra;
use core::ptr::NonNull;
use kernel::{bindings, error::from_err_ptr, ffi, fmt, prelude::*, str::CString};

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SchedPolicy {
    /// `SCHED_NORMAL` with `MIN_NICE`: it preempts the task that wakes it.
    HighPri,
    /// `SCHED_BATCH`: it does not preempt the task that wakes it, and may find more to do by then.
    Batch,
}

/// The function of a thread (`threadfn`).
pub(crate) trait ThreadFn: Send + 'static {
    /// How it is scheduled.
    const SCHED_POLICY: SchedPolicy;

    /// Does it, in process context; the thread ends when this returns.
    fn run(self);
}

/// `MIN_NICE`, a macro that is there for C alone; part of the ABI.
const MIN_NICE: isize = -20;

/// A kernel thread. Dropping this waits until the thread has ended (`kthread_stop`): the caller
/// must make sure that it does.
///
/// A wait that signals interrupt is then interrupted, in the thread, as if by one.
///
/// # Invariants
///
/// `task` is a thread started with `body`, with a reference that is this value's.
pub(crate) struct Thread<B: ThreadFn> {
    task: NonNull<bindings::task_struct>,
    body: NonNull<Option<B>>,
}

impl<B: ThreadFn> Thread<B> {
    /// Creates and wakes a thread (`kthread_run`). The kernel shows the first 15 bytes of `name`.
    /// Sleeps.
    pub(crate) fn run(name: fmt::Arguments<'_>, body: B) -> Result<Self> {
        let name = CString::try_from_fmt(name)?;
        let body = KBox::into_raw(KBox::new(Some(body), GFP_KERNEL)?);
        // SAFETY: `main` fits the box, which outlives the thread; the format takes one string.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(Self::main),
                body.cast(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        });
        let task = match task {
            Ok(task) => task,
            Err(error) => {
                // SAFETY: No thread has it.
                drop(unsafe { KBox::from_raw(body) });
                return Err(error);
            }
        };
        // SAFETY: The thread does not run before it is woken, so it is alive; the reference keeps
        // its task for `drop`, and neither pointer is null.
        unsafe {
            match B::SCHED_POLICY {
                SchedPolicy::HighPri => bindings::set_user_nice(task, MIN_NICE),
                // If it fails the thread works as well.
                SchedPolicy::Batch => {
                    extra::rnbd_helper_sched_set_batch(task);
                }
            }
            bindings::get_task_struct(task);
            bindings::wake_up_process(task);
            // INVARIANT: The thread was started above.
            Ok(Self {
                task: NonNull::new_unchecked(task),
                body: NonNull::new_unchecked(body),
            })
        }
    }

    /// # Safety
    ///
    /// Only for a thread made by [`Self::run`], with the box made there.
    unsafe extern "C" fn main(body: *mut ffi::c_void) -> ffi::c_int {
        // SAFETY: By the safety requirement; the box is the thread's while it runs.
        if let Some(body) = unsafe { (*body.cast::<Option<B>>()).take() } {
            body.run();
        }
        0
    }
}

impl<B: ThreadFn> Drop for Thread<B> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. This waits for the thread to end, also when it has ended
        // or has not begun: then it never will.
        unsafe {
            bindings::kthread_stop(self.task.as_ptr());
            bindings::put_task_struct(self.task.as_ptr());
        }
        // SAFETY: The thread, which alone used it, is gone.
        drop(unsafe { KBox::from_raw(self.body.as_ptr()) });
    }
}

// SAFETY: A thread may be waited for from anywhere, and its body may be sent.
unsafe impl<B: ThreadFn> Send for Thread<B> {}

// SAFETY: `&Thread` gives access to nothing.
unsafe impl<B: ThreadFn> Sync for Thread<B> {}
