// SPDX-License-Identifier: GPL-2.0

//! The sender: a thread for each connection, for what submitters leave to be sent.
//!
//! A submitter sends by itself when the server owes no answer: nothing is faster. Otherwise it leaves
//! the request to this thread, and goes on. By the time that the thread gets a processor there may be
//! more, which then goes out at once; the server answers it at once, and so on.

use super::{connection::ConnectionRef, overseer::Overseer, send};
use crate::abstractions::kthread::{SchedPolicy, Thread, ThreadFn};
use kernel::{prelude::*, sync::Arc};

/// Sends what waits on a connection until it is not needed any more.
pub(crate) struct Sender<O: Overseer> {
    overseer: Arc<O>,
    connection: ConnectionRef,
}

impl<O: Overseer> Sender<O> {
    /// Starts the sender of a connection. Sleeps.
    pub(crate) fn start(overseer: &Arc<O>, connection: &ConnectionRef) -> Result<Thread<Self>> {
        let (device, index) = (connection.journal.index, connection.index);
        let sender = Self {
            overseer: overseer.clone(),
            connection: connection.clone(),
        };
        Thread::run(fmt!("nbd{device}-send{index}"), sender)
    }
}

impl<O: Overseer> ThreadFn for Sender<O> {
    const SCHED_POLICY: SchedPolicy = SchedPolicy::Batch;

    fn run(self) {
        while self.connection.outbox.wait() {
            send::send_queued(&*self.overseer, &self.connection);
        }
    }
}
