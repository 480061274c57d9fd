// SPDX-License-Identifier: GPL-2.0

//! Replies on their way from the server: a thread for each link.

use super::{
    connection::ConnectionRef,
    inbox::Inbox,
    link::{DeadReason, Link},
    overseer::Overseer,
};
use crate::{
    abstractions::{
        block::mq::{Op, Outcome, Request, Status},
        kthread::{SchedPolicy, Thread, ThreadFn},
        trace,
    },
    driver::nbd::{answer, Nbd},
    protocol::{
        flags::TransmissionFlags,
        wire::{Reply, ServerError},
    },
};
use kernel::{prelude::*, sync::Arc};

/// Reads the replies that come over one link until it dies.
pub(crate) struct Receiver<O: Overseer> {
    overseer: Arc<O>,
    connection: ConnectionRef,
    link: Arc<Link>,
    inbox: Inbox,
}

impl<O: Overseer> Receiver<O> {
    /// Starts the receiver of a connection's link. Sleeps.
    pub(crate) fn start(
        overseer: &Arc<O>,
        connection: &ConnectionRef,
        link: Arc<Link>,
    ) -> Result<Thread<Self>> {
        let inbox = Inbox::new()?;
        overseer.receiver_comes();
        let receiver = Self {
            overseer: overseer.clone(),
            connection: connection.clone(),
            link,
            inbox,
        };
        let (device, index) = (connection.journal.index, connection.index);
        Thread::run(fmt!("nbd{device}-recv{index}"), receiver)
    }

    /// Reads one reply, and what follows it.
    fn serve_reply(&mut self) -> Result<(), DeadReason> {
        let bytes = self.inbox.header(&self.link)?;
        let reply = Reply::decode(&bytes).map_err(DeadReason::WrongMagic)?;
        let unknown = DeadReason::UnknownCookie(reply.cookie.to_wire());
        let request = self
            .overseer
            .disk()
            .tag_to_rq(reply.cookie.tag())
            .ok_or(unknown)?;
        let claim = request
            .data()
            .word
            .reply(reply.cookie, self.link.route)
            .map_err(|_| unknown)?;
        // First: its submitter may come with the next one at once.
        self.link.count_answered();
        trace::header_received(&request, reply.cookie.to_wire());
        match self.read_result(&request, reply) {
            Ok(status) => {
                trace::payload_received(&request, reply.cookie.to_wire());
                if request.should_fake_timeout() {
                    claim.withhold();
                } else {
                    answer(&request, claim, Outcome::End(status));
                    self.inbox.put(request);
                }
                Ok(())
            }
            Err(error) => {
                // Dead before the request's fate is asked for: it must not come back here.
                let death = DeadReason::CutOff(error);
                self.overseer.kill(&self.connection, &self.link, death);
                answer(&request, claim, self.overseer.disposition());
                Err(death)
            }
        }
    }

    /// Reads what follows a reply into its request.
    fn read_result(&mut self, request: &Request<Nbd>, reply: Reply) -> Result<Status> {
        if let Err(error) = reply.result {
            if error == ServerError::NotSupported {
                self.disable_op(request.op());
            }
            self.report(request, error);
            return Ok(status_of(request.op(), error));
        }
        if request.op() == Op::Read {
            self.inbox.data(&self.link, request)?;
        }
        Ok(Status::Ok)
    }

    /// The server does not know a command, whatever its flags say: the block layer has other ways,
    /// and finds out before the request ends.
    fn disable_op(&self, op: Op) {
        let flag = match op {
            Op::Discard => TransmissionFlags::SEND_TRIM,
            Op::WriteZeroes => TransmissionFlags::SEND_WRITE_ZEROES,
            _ => return,
        };
        let first = self.overseer.clear_flag(flag);
        if op == Op::Discard {
            self.overseer.disk().disable_discard();
        } else {
            self.overseer.disk().disable_write_zeroes();
        }
        if first {
            dev_info!(
                self.overseer.disk().device(),
                "the server does not support {}: turned off until the device is attached again\n",
                op.name()
            );
        }
    }

    fn report(&self, request: &Request<Nbd>, error: ServerError) {
        if let Some(passed) = self.overseer.log_limit().ratelimit() {
            dev_err!(
                self.overseer.disk().device(),
                "the server failed {:?} at byte {}, {} bytes: error {} ({error:?}); {} lines like this held back\n",
                request.op(),
                request.sector() << 9,
                request.bytes(),
                error.number(),
                passed.missed
            );
        }
    }
}

impl<O: Overseer> ThreadFn for Receiver<O> {
    // Answers free what they answer.
    const SCHED_POLICY: SchedPolicy = SchedPolicy::HighPri;

    fn run(mut self) {
        let death = loop {
            if let Err(death) = self.serve_reply() {
                break death;
            }
        };
        self.inbox.end_answered();
        self.overseer.kill(&self.connection, &self.link, death);
    }
}

impl<O: Overseer> Drop for Receiver<O> {
    /// Sees to the requests on its link, also if the thread was stopped before it had begun.
    fn drop(&mut self) {
        self.overseer
            .kill(&self.connection, &self.link, DeadReason::Retired);
        O::receiver_goes(&self.overseer, self.link.route);
    }
}

/// What the submitter of a request learns of a server's error.
fn status_of(op: Op, error: ServerError) -> Status {
    match error {
        ServerError::NoSpace => Status::NoSpace,
        // What may be lacking. A server that does not support reads is broken; and of a flush some
        // would take it for a disk that needs none.
        ServerError::NotSupported if matches!(op, Op::Discard | Op::WriteZeroes) => {
            Status::NotSupported
        }
        // There is no status for it. A disk that is write-protected says this, and multipath then
        // does not try another path.
        ServerError::NotPermitted => Status::Target,
        // Multipath tries another path.
        ServerError::ShuttingDown => Status::Offline,
        // BLK_STS_RESOURCE is for the block layer alone. EINVAL would read as if the caller's own
        // arguments were wrong.
        ServerError::NotSupported
        | ServerError::NoMemory
        | ServerError::Io
        | ServerError::Invalid
        | ServerError::Overflow
        | ServerError::Unknown(_) => Status::IoError,
    }
}
