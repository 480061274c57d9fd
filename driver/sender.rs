// SPDX-License-Identifier: GPL-2.0

//! Who sends what submitters leave to be sent: a thread for each connection.
//!
//! A submitter sends by itself when the server owes no answer: nothing is faster. Otherwise it leaves
//! the request to this thread, and goes on. By the time that the thread gets a processor there may be
//! more, which then goes out at once; the server answers it at once, and so on.

use super::{connection::ConnectionRef, transmit};
use crate::abstractions::kthread::{SchedPolicy, Thread, ThreadFn};
use kernel::prelude::*;

/// Sends what waits on a connection until it is not needed any more.
pub(super) struct Sender {
    connection: ConnectionRef,
}

impl Sender {
    /// Starts the sender of a connection. Sleeps.
    pub(super) fn start(connection: &ConnectionRef) -> Result<Thread<Self>> {
        let (device, index) = (connection.disk().data().index, connection.index);
        let sender = Self {
            connection: connection.clone(),
        };
        Thread::run(fmt!("nbd{device}-send{index}"), sender)
    }
}

impl ThreadFn for Sender {
    const SCHED_POLICY: SchedPolicy = SchedPolicy::Batch;

    fn run(self) {
        while self.connection.outbox.wait() {
            transmit::send_left(&self.connection);
        }
    }
}
