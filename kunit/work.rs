// SPDX-License-Identifier: GPL-2.0

//! Work items of objects (`abstractions/work.rs`).

use super::fixture::{Census, Counted, Event};
use crate::abstractions::{
    work::{WithWork, WorkFunc},
    workqueue::Workqueue,
};
use core::convert::Infallible;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
    time::{delay::fsleep, Delta},
};

/// Counts how often it was called, and waits for a sign before it returns.
#[pin_data]
struct Worker {
    calls: Atomic<u32>,
    entered: Event,
    leave: Event,
    _counted: Counted,
}

impl WorkFunc for Worker {
    fn run(this: &Arc<WithWork<Self>>) {
        this.calls.fetch_add(1, Full);
        this.entered.happen();
        this.leave.wait();
    }
}

fn worker(census: &Census) -> Result<Arc<WithWork<Worker>>> {
    let (entered, leave) = (Event::new()?, Event::new()?);
    let worker = pin_init!(Worker {
        calls: Atomic::new(0),
        entered: entered,
        leave: leave,
        _counted: census.make(),
    });
    Arc::pin_init(WithWork::new::<Infallible>(worker), GFP_KERNEL)
}

#[kunit_tests(rnbd_work)]
mod tests {
    use super::*;

    #[test]
    fn scheduled_once_called_once() -> Result {
        let (census, queue) = (Census::new()?, Workqueue::new(c"rnbd-kunit")?);
        let worker = worker(&census)?;
        worker.leave.happen();
        queue.flush();
        assert_eq!(worker.calls.load(Relaxed), 0);
        WithWork::queue_work(&worker, &queue);
        queue.flush();
        assert_eq!(worker.calls.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn scheduled_while_it_runs_called_once_more() -> Result {
        let (census, queue) = (Census::new()?, Workqueue::new(c"rnbd-kunit")?);
        let worker = worker(&census)?;
        WithWork::queue_work(&worker, &queue);
        worker.entered.wait();
        // The first of these queues it again; the others find it queued.
        for _ in 0..10 {
            WithWork::queue_work(&worker, &queue);
        }
        worker.leave.happen();
        queue.flush();
        assert_eq!(worker.calls.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    fn the_worker_keeps_the_object_and_lets_go() -> Result {
        let (census, queue) = (Census::new()?, Workqueue::new(c"rnbd-kunit")?);
        let worker = worker(&census)?;
        let (entered, leave) = (worker.entered.clone(), worker.leave.clone());
        WithWork::queue_work(&worker, &queue);
        entered.wait();
        drop(worker);
        assert_eq!(census.alive(), 1);
        leave.happen();
        // The last reference goes with the worker: some time from now, in another thread.
        while census.alive() != 0 {
            fsleep(Delta::from_millis(1));
        }
        Ok(())
    }
}
