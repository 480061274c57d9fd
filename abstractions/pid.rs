// SPDX-License-Identifier: GPL-2.0

//! Processes, by `struct pid`.
//!
//! A reference to a `struct pid` neither dangles nor comes to mean another process: the kernel may
//! use its number again, but not the structure.
//!
//! C header: [`include/linux/pid.h`](srctree/include/linux/pid.h)

use crate::bindings as extra;
use core::ptr::NonNull;
use kernel::{bindings, fmt, sync::rcu, task::Task};

/// Bytes of a task's name, with the NUL.
const COMM_LEN: usize = bindings::TASK_COMM_LEN as usize;

/// A process (thread group).
///
/// # Invariants
///
/// `pid` is the pid of a thread group, with a reference that is this value's.
pub(crate) struct ProcessRef {
    pid: NonNull<bindings::pid>,
    name: [u8; COMM_LEN],
}

impl ProcessRef {
    /// The process of the current task.
    pub(crate) fn current() -> Self {
        // SAFETY: The current task has a thread group, so neither pointer is null; the second call
        // takes the reference. A kernel thread is a group of its own.
        let pid = unsafe {
            NonNull::new_unchecked(extra::rnbd_helper_get_pid(extra::rnbd_helper_current_tgid()))
        };
        // INVARIANT: It is the current thread group's, and the reference was taken above.
        let mut this = Self {
            pid,
            name: [0; COMM_LEN],
        };
        this.name = this.read_name().unwrap_or_default();
        this
    }

    /// Whether a thread of the process has not begun to exit.
    pub(crate) fn is_alive(&self) -> bool {
        let _rcu = rcu::read_lock();
        // SAFETY: By the type invariant. The task found stays for the RCU section, and its signal
        // structure with it.
        unsafe {
            let leader = bindings::pid_task(self.pid.as_ptr(), bindings::pid_type_PIDTYPE_TGID);
            !leader.is_null() && extra::rnbd_helper_signal_live(leader) > 0
        }
    }

    /// Whether this is the process that the current task's process was forked from, and that one
    /// has not been reaped.
    pub(crate) fn is_parent_of_current(&self) -> bool {
        let _rcu = rcu::read_lock();
        // SAFETY: The RCU lock is held; only the pointers are compared.
        unsafe { extra::rnbd_helper_parent_tgid() == self.pid.as_ptr() }
    }

    /// Its number in the initial pid namespace.
    #[inline]
    pub(crate) fn number(&self) -> i32 {
        // SAFETY: By the type invariant. The first entry is the initial namespace's.
        unsafe { (*self.pid.as_ptr()).numbers.as_ptr().read().nr }
    }

    /// The name that it had when this was made, as far as that is text.
    pub(crate) fn name(&self) -> &str {
        let text = self
            .name
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        core::str::from_utf8(text).unwrap_or("?")
    }

    fn read_name(&self) -> Option<[u8; COMM_LEN]> {
        let _rcu = rcu::read_lock();
        // SAFETY: By the type invariant; the task found stays for the RCU section.
        let leader =
            unsafe { bindings::pid_task(self.pid.as_ptr(), bindings::pid_type_PIDTYPE_TGID) };
        // SAFETY: As above. The name may be changed while it is read: that mixes two names, no
        // more, for the array is always NUL-terminated in its last byte.
        (!leader.is_null()).then(|| unsafe { (&raw const (*leader).comm).read_volatile() })
    }
}

impl fmt::Display for ProcessRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.number(), self.name())?;
        if !self.is_alive() {
            write!(f, ", which has died")?;
        }
        Ok(())
    }
}

impl Clone for ProcessRef {
    #[inline]
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant.
        unsafe { extra::rnbd_helper_get_pid(self.pid.as_ptr()) };
        // INVARIANT: The reference was taken above.
        Self {
            pid: self.pid,
            name: self.name,
        }
    }
}

impl PartialEq for ProcessRef {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid
    }
}

impl Drop for ProcessRef {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is this value's.
        unsafe { bindings::put_pid(self.pid.as_ptr()) };
    }
}

// SAFETY: A `struct pid` may be used and released anywhere.
unsafe impl Send for ProcessRef {}

// SAFETY: As above.
unsafe impl Sync for ProcessRef {}

/// The number of the current task (thread) in the initial pid namespace.
#[inline]
pub(crate) fn current_pid_nr() -> i32 {
    // SAFETY: Always allowed.
    unsafe { extra::rnbd_helper_current_pid_nr() }
}

/// Whether the current task is on its way out.
#[inline]
pub(crate) fn current_is_exiting() -> bool {
    // SAFETY: The current task is there.
    unsafe { extra::rnbd_helper_task_exiting(Task::current_raw()) }
}
