// SPDX-License-Identifier: GPL-2.0

//! Work that an object does for itself later, in a kernel worker.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use super::workqueue::Workqueue;
use core::ops::Deref;
use kernel::{
    impl_has_work, new_work,
    prelude::*,
    sync::Arc,
    workqueue::{Work, WorkItem},
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

    /// Has [`Later::later`] called soon by a worker of `queue`, once, however often this is called
    /// before. Any context.
    pub(crate) fn schedule_on(this: &Arc<Self>, queue: &Workqueue) {
        // An error tells that it is scheduled already.
        let _ = queue.enqueue(this.clone());
    }
}

impl<T: Later> Deref for Deferred<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}
