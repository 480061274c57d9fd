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
pub(crate) trait WorkFunc: Send + Sync + 'static {
    /// Does it, in process context, without signals.
    fn run(this: &Arc<WithWork<Self>>)
    where
        Self: Sized;
}

/// An object that can have its [`WorkFunc::run`] called by a worker.
#[pin_data]
pub(crate) struct WithWork<T: WorkFunc> {
    #[pin]
    work: Work<Self>,
    #[pin]
    inner: T,
}

impl_has_work! {
    impl{T: WorkFunc} HasWork<Self> for WithWork<T> { self.work }
}

impl<T: WorkFunc> WorkItem for WithWork<T> {
    type Pointer = Arc<Self>;

    #[inline]
    fn run(this: Arc<Self>) {
        T::run(&this);
    }
}

impl<T: WorkFunc> WithWork<T> {
    /// Makes an object that can be scheduled.
    pub(crate) fn new<E>(inner: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            work <- new_work!("rnbd::WithWork"),
            inner <- inner,
        })
    }

    /// Has [`WorkFunc::run`] called soon by a worker of `queue`, once, however often this is called
    /// before. Any context.
    #[inline]
    pub(crate) fn queue_work(this: &Arc<Self>, queue: &Workqueue) {
        // An error tells that it is scheduled already.
        let _ = queue.enqueue(this.clone());
    }
}

impl<T: WorkFunc> Deref for WithWork<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}
