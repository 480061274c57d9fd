// SPDX-License-Identifier: GPL-2.0

//! Kernel threads (`abstractions/kthread.rs`).

use super::fixture::{thread, Census, Event};
use kernel::{
    prelude::*,
    time::{delay::fsleep, Delta},
};

#[kunit_tests(rnbd_kthread)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_thread_waits_for_its_end() -> Result {
        let (census, started, ended) = (Census::new()?, Event::new()?, Event::new()?);
        let (counted, begin, end) = (census.make(), started.clone(), ended.clone());
        let runner = thread(move || {
            begin.happen();
            // Long enough for the other one to be waiting.
            fsleep(Delta::from_millis(50));
            end.happen();
            drop(counted);
        })?;
        started.wait();
        drop(runner);
        assert!(ended.has_happened());
        assert_eq!(census.alive(), 0);
        Ok(())
    }

    #[test]
    fn a_body_is_dropped_whether_it_ran_or_not() -> Result {
        let census = Census::new()?;
        for _ in 0..200 {
            let counted = census.make();
            // It may be stopped before it has begun.
            drop(thread(move || drop(counted))?);
            assert_eq!(census.alive(), 0);
        }
        Ok(())
    }
}
