// SPDX-License-Identifier: GPL-2.0

//! Work that an object does for itself later, in a kernel worker.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::workqueue::Workqueue;
use core::ops::Deref;
use kernel::{
    bindings, impl_has_work, new_work,
    prelude::*,
    sync::Arc,
    workqueue::{self, Work, WorkItem},
};

/// What is done later.
pub(crate) trait Later: Send + Sync + 'static {
    /// Does it, in process context, without signals.
    fn later(this: &Arc<Deferred<Self>>)
    where
        Self: Sized;
}

/// An object that can have its [`Later::later`] called by a worker.
#[pin_data]
pub(crate) struct Deferred<T: Later> {
    #[pin]
    work: Work<Self>,
    #[pin]
    inner: T,
}

impl_has_work! {
    impl{T: Later} HasWork<Self> for Deferred<T> { self.work }
}

impl<T: Later> WorkItem for Deferred<T> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        T::later(&this);
    }
}

impl<T: Later> Deferred<T> {
    /// Makes an object that can be scheduled.
    pub(crate) fn new<E>(inner: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            work <- new_work!("rnbd::Deferred"),
            inner <- inner,
        })
    }

    /// Has [`Later::later`] called soon, once, however often this is called before. Any context.
    pub(crate) fn schedule(this: &Arc<Self>) {
        // An error tells that it is scheduled already.
        let _ = workqueue::system_unbound().enqueue(this.clone());
    }

    /// As [`Self::schedule`], in a worker of `queue`.
    pub(crate) fn schedule_on(this: &Arc<Self>, queue: &Workqueue) {
        let _ = queue.enqueue(this.clone());
    }

    /// Waits until no call that was scheduled before is left. Sleeps.
    pub(crate) fn flush(&self) {
        // SAFETY: `work` is initialised, and a part of `self`.
        let work = unsafe { Work::raw_get(&raw const self.work) };
        // SAFETY: As above.
        unsafe { bindings::flush_work(work) };
    }
}

impl<T: Later> Deref for Deferred<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}
