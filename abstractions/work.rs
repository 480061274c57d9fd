// SPDX-License-Identifier: GPL-2.0

//! Objects with a work item.
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

/// The function of a work item (`work_func_t`).
pub(crate) trait WorkFunc: Send + Sync + 'static {
    /// Does the work, in a kernel worker.
    fn run(this: &Arc<WithWork<Self>>)
    where
        Self: Sized;
}

/// An object with a work item, which calls its [`WorkFunc::run`].
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
    /// Adds a work item to an object.
    pub(crate) fn new<E>(inner: impl PinInit<T, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            work <- new_work!("rnbd::WithWork"),
            inner <- inner,
        })
    }

    /// Queues the work item on `queue`, unless it is pending already. Any context.
    #[inline]
    pub(crate) fn queue_work(this: &Arc<Self>, queue: &Workqueue) {
        // An error tells that it is pending already.
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
