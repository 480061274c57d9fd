// SPDX-License-Identifier: GPL-2.0

//! What has come over a link: a reply is often there together with the next.

use super::link::{DeadReason, Link};
use crate::{
    abstractions::{
        block::mq::{end_batch, Request},
        bottom_half,
        bvec::{Buffer, BvecArray},
        compat::error::code::ENOBUFS,
        iov::Dest,
        net::socket::Wait,
    },
    driver::nbd::Nbd,
    protocol::wire::REPLY_SIZE,
};
use kernel::{prelude::*, sync::aref::ARef};

/// How many bytes are received at once where no data is expected.
const SIZE: usize = 128 * REPLY_SIZE;

/// With data longer than this the next reply is not received: the two would seldom be there at once.
const LONG: usize = 64 << 10;

/// How many pieces data may have to be received together with the next reply.
const PIECES: usize = (LONG >> 12) + 1;

/// How many requests end together at most.
const TOGETHER: usize = 32;

/// Bytes that came over a link and are not used yet.
pub(crate) struct Inbox {
    buffer: Buffer,
    room: BvecArray,
    /// Where in the buffer they begin and end.
    from: usize,
    to: usize,
    /// There was data behind the last reply: that of the next is better received to its place.
    expects_data: bool,
    /// Requests that are answered, and end before anything is waited for.
    answered: KVec<ARef<Request<Nbd>>>,
}

impl Inbox {
    /// Nothing has come yet. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            buffer: Buffer::new(SIZE)?,
            room: BvecArray::new(PIECES.saturating_add(1))?,
            from: 0,
            to: 0,
            expects_data: false,
            answered: KVec::with_capacity(TOGETHER, GFP_KERNEL)?,
        })
    }

    fn unused(&self) -> &[u8] {
        self.buffer
            .bytes()
            .get(self.from..self.to)
            .unwrap_or_default()
    }

    fn used(&mut self, bytes: usize) {
        self.from = self.from.saturating_add(bytes);
        if self.from >= self.to {
            (self.from, self.to) = (0, 0);
        }
    }

    /// Takes a request that is answered. It ends soon, together with others.
    pub(crate) fn put(&mut self, request: ARef<Request<Nbd>>) {
        // What does not fit is dropped, and ends at once.
        let _ = self.answered.push_within_capacity(request);
        if self.answered.len() == TOGETHER {
            self.end_answered();
        }
    }

    /// Ends the requests that are answered: what waits for them is woken once.
    pub(crate) fn end_answered(&mut self) {
        if !self.answered.is_empty() {
            bottom_half::local_bh_disabled(|| end_batch(&mut self.answered));
        }
    }

    /// Whether it may be waited for bytes: not while requests could end.
    fn may_wait(&self) -> Wait {
        if self.answered.is_empty() {
            Wait::Allowed
        } else {
            Wait::Never
        }
    }

    /// The next reply header. Sleeps.
    pub(crate) fn header(&mut self, link: &Link) -> Result<[u8; REPLY_SIZE], DeadReason> {
        loop {
            if let Some(header) = self.unused().first_chunk().copied() {
                self.used(REPLY_SIZE);
                self.expects_data = false;
                return Ok(header);
            }
            if !link.socket.has_data() {
                self.end_answered();
                link.socket.wait_readable();
            }
            let wait = self.may_wait();
            let result = self.receive(link, wait);
            if wait == Wait::Never && result == Err(EAGAIN) {
                self.end_answered();
                continue;
            }
            result.map_err(|error| match self.unused() {
                [] if error == EPIPE => DeadReason::ServerClosed,
                [] => DeadReason::ReceiveFailed(error),
                _ => DeadReason::CutOff(error),
            })?;
        }
    }

    /// Receives something, behind less than a header. Sleeps, if it may wait.
    fn receive(&mut self, link: &Link, wait: Wait) -> Result {
        self.move_to_front();
        let end = if self.expects_data { REPLY_SIZE } else { SIZE };
        let mut list = self.room.list::<Dest>();
        list.push_bytes_mut(&mut self.buffer, self.to..end)
            .map_err(|_| ENOBUFS)?;
        let (came, result) = link.socket.receive_at_least(&mut list, 1, wait);
        link.count_received(came);
        self.to = self.to.saturating_add(came);
        result
    }

    fn move_to_front(&mut self) {
        let (from, len) = (self.from, self.unused().len());
        // What lies before it was a header at least, and so is longer than it; or there is nothing.
        if let Some((front, rest)) = self.buffer.bytes_mut().split_at_mut_checked(from) {
            front
                .iter_mut()
                .zip(rest)
                .take(len)
                .for_each(|(to, from)| *to = *from);
            (self.from, self.to) = (0, len);
        }
    }

    /// Receives the data behind a reply into the request that it answers. Sleeps.
    pub(crate) fn data(&mut self, link: &Link, request: &Request<Nbd>) -> Result {
        self.expects_data = true;
        let mut done = 0_usize;
        for mut piece in request.dest(0) {
            let here = piece.copy_to_iter(self.unused());
            self.used(here);
            done = done.saturating_add(here);
            if self.unused().is_empty() {
                break;
            }
        }
        loop {
            let rest = (request.bytes() as usize).saturating_sub(done);
            if rest == 0 {
                return Ok(());
            }
            if rest > LONG {
                break;
            }
            let wait = self.may_wait();
            let mut list = self.room.list();
            let fits = request.push_dest(&mut list, done).is_ok()
                && list.push_bytes_mut(&mut self.buffer, 0..REPLY_SIZE).is_ok();
            if !fits {
                break;
            }
            let (came, result) = link.socket.receive_at_least(&mut list, rest, wait);
            link.count_received(came);
            self.to = came.saturating_sub(rest);
            done = done.saturating_add(came);
            match result {
                Err(error) if wait == Wait::Never && error == EAGAIN => self.end_answered(),
                result => return result,
            }
        }
        self.end_answered();
        for mut piece in request.dest(done) {
            let (came, result) = link.socket.receive(&mut piece);
            link.count_received(came);
            result?;
        }
        Ok(())
    }
}
