// SPDX-License-Identifier: GPL-2.0

//! Requests that are sent at once, by one call of the socket.

use super::{
    device::Device,
    link::Link,
    outbox::{Requests, CAPACITY},
    transmit,
};
use crate::{
    abstractions::{
        block::mq::{Op, Request},
        bvec::{Buffer, BvecList, BvecRoom, NoRoom},
        iov::Source,
        net::socket::{More, Wait},
        trace,
    },
    protocol::{
        cookie::{Cookie, Sequence},
        request::SendMark,
        wire::REQUEST_SIZE,
    },
};
use kernel::{prelude::*, sync::aref::ARef};

/// How many pieces of memory are sent at once at most.
const PIECES: usize = 512;

/// What is needed to send requests at once.
pub(super) struct Batch {
    /// Where those are that are to be sent. Empty when nobody sends.
    pub(super) requests: Requests,
    /// Of those that go together.
    outgoing: KVec<Outgoing>,
    headers: Buffer,
    room: BvecRoom,
}

/// A request that goes with others.
#[derive(Clone, Copy)]
pub(super) struct Outgoing {
    pub(super) mark: SendMark,
    /// What it is called on the wire.
    pub(super) cookie: Cookie,
    /// Bytes on the wire.
    pub(super) bytes: usize,
}

/// How many pieces a request's data is sent in.
fn pieces(request: &Request<Device>) -> usize {
    match request.op() {
        Op::Write => request.segments(),
        _ => 0,
    }
}

impl Batch {
    /// Sleeps.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            requests: KVec::with_capacity(CAPACITY, GFP_KERNEL)?,
            outgoing: KVec::with_capacity(CAPACITY, GFP_KERNEL)?,
            headers: Buffer::new(CAPACITY.saturating_mul(REQUEST_SIZE))?,
            room: BvecRoom::new(PIECES)?,
        })
    }

    /// Begins to send the first of `requests` over a link, as many as can go together. Returns how
    /// many: none, if the first has too many pieces.
    pub(super) fn begin(
        &mut self,
        link: &Link,
        sequence: &mut Sequence,
        requests: &[ARef<Request<Device>>],
    ) -> usize {
        self.outgoing.clear();
        let mut room = PIECES;
        let headers = self.headers.bytes_mut().chunks_exact_mut(REQUEST_SIZE);
        for (request, place) in requests.iter().zip(headers) {
            // One for the headers before its data.
            let needed = pieces(request).saturating_add(1);
            let Some(left) = room.checked_sub(needed) else {
                break;
            };
            room = left;
            let sending = request.data().word.begin(link.route, sequence);
            let cookie = sending.cookie(request.unique_tag());
            let mut header = transmit::header(request, cookie);
            trace::send_request(&mut header, request.disk().data().index, request);
            place.copy_from_slice(&header);
            let data = match request.op() {
                Op::Write => request.bytes() as usize,
                _ => 0,
            };
            let outgoing = Outgoing {
                mark: sending.interrupt(),
                cookie,
                bytes: REQUEST_SIZE.saturating_add(data),
            };
            if self.outgoing.push_within_capacity(outgoing).is_err() {
                break;
            }
        }
        self.outgoing.len()
    }

    /// Those that were begun.
    pub(super) fn outgoing(&self) -> &[Outgoing] {
        &self.outgoing
    }

    /// Sends `requests`, which were begun, over a link. Returns how many bytes went, and what
    /// stopped the rest. Sleeps.
    pub(super) fn send(
        &mut self,
        link: &Link,
        requests: &[ARef<Request<Device>>],
        more: More,
    ) -> (usize, Result) {
        let mut list = self.room.list();
        if Self::list(&self.headers, requests, &mut list).is_err() {
            // They were counted: there is room.
            return (0, Err(ENOBUFS));
        }
        let (sent, result) = link.socket.send(&mut list, more, Wait::Allowed);
        link.count_sent(sent);
        (sent, result)
    }

    fn list<'a>(
        headers: &'a Buffer,
        requests: &'a [ARef<Request<Device>>],
        list: &mut BvecList<'a, Source>,
    ) -> Result<(), NoRoom> {
        let (mut from, mut to) = (0_usize, 0_usize);
        for request in requests {
            to = to.saturating_add(REQUEST_SIZE);
            if request.op() == Op::Write {
                list.push_bytes(headers, from..to)?;
                request.push_source(list)?;
                from = to;
            }
        }
        list.push_bytes(headers, from..to)
    }
}
