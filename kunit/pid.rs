// SPDX-License-Identifier: GPL-2.0

//! Processes (`abstractions/pid.rs`).

use super::fixture::Process;
use crate::abstractions::pid::ProcessRef;
use kernel::{current, prelude::*};

/// References to the current thread's `struct pid`.
fn count() -> i32 {
    let task = current!().as_ptr();
    // SAFETY: The current task has its pid; a kernel thread is a group of its own.
    unsafe { (*(*task).thread_pid).count.refs.counter }
}

const MANY: usize = 64;

#[kunit_tests(rnbd_pid)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_counted_and_given_back() -> Result {
        let before = count();
        // The thread's creator has its pid until it is told of that: one reference may go
        // meanwhile.
        let grown_by = |references: i32| matches!(before + references - count(), 0 | 1);
        let mut references = KVec::with_capacity(MANY, GFP_KERNEL)?;
        for _ in 0..MANY {
            references.push(ProcessRef::current(), GFP_KERNEL)?;
        }
        assert!(grown_by(MANY as i32));
        references.truncate(MANY / 2);
        assert!(grown_by(MANY as i32 / 2));
        drop(references);
        assert!(grown_by(0));
        Ok(())
    }

    #[test]
    fn a_process_is_itself_and_no_other() -> Result {
        let other = Process::start("rnbd-other")?;
        let (me, them) = (ProcessRef::current(), other.process()?);
        assert!(me == ProcessRef::current() && them == other.process()?);
        assert!(me != them && me.number() != them.number() && them.number() > 0);
        assert!(me.is_alive() && them.is_alive());
        assert_eq!(them.name(), "rnbd-other");
        assert!(!them.is_parent_of_current());
        Ok(())
    }

    #[test]
    fn a_reference_to_the_dead_stays_theirs() -> Result {
        let other = Process::start("rnbd-other")?;
        let them = other.process()?;
        let number = them.number();
        drop(other);
        assert!(!them.is_alive());
        assert_eq!((them.number(), them.name()), (number, "rnbd-other"));
        // A process that comes now is another, whatever its number.
        for _ in 0..100 {
            let next = Process::start("rnbd-next")?;
            assert!(next.process()? != them);
        }
        assert!(!them.is_alive());
        Ok(())
    }
}
