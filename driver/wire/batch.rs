// SPDX-License-Identifier: GPL-2.0

//! Requests that are sent at once, by one call of the socket.

use super::{
    header::header,
    link::Link,
    outbox::{Requests, CAPACITY},
};
use crate::{
    abstractions::{
        block::mq::{Op, Request},
        bvec::{Buffer, BvecArray},
        compat::error::code::ENOBUFS,
        net::{
            socket::{More, Wait},
            staging::Staging,
        },
        trace,
    },
    driver::nbd::Nbd,
    protocol::{
        cookie::{Cookie, Sequence},
        request::SendMark,
        wire::REQUEST_SIZE,
    },
};
use core::ops::Range;
use kernel::{prelude::*, sync::aref::ARef};

/// How many pieces of memory are sent at once at most.
const PIECES: usize = 512;

/// How many pages of data may be on their way to the server without being copied by the socket. As
/// much is not on its way at a time but on long, fast lines.
const PAGES: usize = 128;

/// What is needed to send requests at once.
pub(crate) struct Batch {
    /// Where those are that are to be sent. Empty while nothing is sent.
    pub(crate) requests: Requests,
    /// Of those that go together.
    outgoing: KVec<Outgoing>,
    headers: Buffer,
    room: BvecArray,
    staging: Staging,
}

/// A request that goes with others.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing {
    pub(crate) mark: SendMark,
    /// What it is called on the wire.
    pub(crate) cookie: Cookie,
    /// Bytes on the wire.
    pub(crate) bytes: usize,
}

/// How many pieces a request's data is sent in.
fn pieces(request: &Request<Nbd>) -> usize {
    match request.op() {
        Op::Write => request.nr_bvecs(),
        _ => 0,
    }
}

impl Batch {
    /// Sleeps.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            requests: KVec::with_capacity(CAPACITY, GFP_KERNEL)?,
            outgoing: KVec::with_capacity(CAPACITY, GFP_KERNEL)?,
            headers: Buffer::new(CAPACITY.saturating_mul(REQUEST_SIZE))?,
            room: BvecArray::new(PIECES)?,
            staging: Staging::new(PAGES)?,
        })
    }

    /// Begins to send the first of `requests` of device `index` over a link, as many as can go
    /// together. Returns how many: none, if the first has too many pieces.
    pub(crate) fn begin(
        &mut self,
        index: u32,
        link: &Link,
        sequence: &mut Sequence,
        requests: &[ARef<Request<Nbd>>],
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
            let mut header = header(request, cookie);
            trace::send_request(&mut header, index, request);
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
    pub(crate) fn outgoing(&self) -> &[Outgoing] {
        &self.outgoing
    }

    /// Sends `requests`, which were begun, over a link. Returns how many bytes went, and what
    /// stopped the rest. Sleeps, and waits for the server if it may.
    pub(crate) fn send(
        &mut self,
        link: &Link,
        requests: &[ARef<Request<Nbd>>],
        more: More,
        wait: Wait,
    ) -> (usize, Result) {
        let mut sent = 0;
        let result = if requests.iter().any(|request| request.op() == Op::Write) {
            self.send_staged(link, requests, (more, wait), &mut sent)
        } else {
            let end = requests.len().saturating_mul(REQUEST_SIZE);
            self.send_copied(link, 0..end, None, (more, wait), &mut sent)
        };
        link.count_sent(sent);
        (sent, result)
    }

    /// Sends requests from pages that their headers and data are copied to.
    fn send_staged(
        &mut self,
        link: &Link,
        requests: &[ARef<Request<Nbd>>],
        (more, wait): (More, Wait),
        sent: &mut usize,
    ) -> Result {
        let mut to = 0_usize;
        for (place, request) in requests.iter().enumerate() {
            let from = to;
            to = from.saturating_add(REQUEST_SIZE);
            let is_last = place.saturating_add(1) == requests.len();
            let after = if is_last { more } else { More::Follows };
            let is_write = request.op() == Op::Write;
            let header = self.headers.bytes().get(from..to).ok_or(ENOBUFS)?;
            if self.staging.push_bytes(header).is_err() {
                // What went before has to be read first, or there is no memory.
                self.flush(link, (More::Follows, wait), sent)?;
                let after = if is_write { More::Follows } else { after };
                self.send_copied(link, from..to, None, (after, wait), sent)?;
            }
            if is_write {
                self.send_data(link, request, (after, wait), sent)?;
            }
        }
        self.flush(link, (more, wait), sent)
    }

    /// Copies a request's data to be sent. Without pages for that sends it, before what comes `after`.
    fn send_data(
        &mut self,
        link: &Link,
        request: &Request<Nbd>,
        (after, wait): (More, Wait),
        sent: &mut usize,
    ) -> Result {
        let bytes = request.bytes() as usize;
        let mut done = request.stage(&mut self.staging, 0);
        while done < bytes {
            self.flush(link, (More::Follows, wait), sent)?;
            let copied = request.stage(&mut self.staging, done);
            if copied == 0 {
                return self.send_copied(link, 0..0, Some((request, done)), (after, wait), sent);
            }
            done = done.saturating_add(copied);
        }
        Ok(())
    }

    /// Sends what was copied.
    fn flush(&mut self, link: &Link, (more, wait): (More, Wait), sent: &mut usize) -> Result {
        if self.staging.is_empty() {
            return Ok(());
        }
        let (went, result) = link.socket.send(&mut self.staging, more, wait);
        self.staging.clear();
        *sent = sent.saturating_add(went);
        result
    }

    /// Has the socket copy headers, and the data of a request from some byte on.
    fn send_copied(
        &mut self,
        link: &Link,
        headers: Range<usize>,
        data: Option<(&Request<Nbd>, usize)>,
        (more, wait): (More, Wait),
        sent: &mut usize,
    ) -> Result {
        let mut list = self.room.list();
        let listed = list
            .push_bytes(&self.headers, headers)
            .and_then(|()| match data {
                Some((request, done)) => request.push_source(&mut list, done),
                None => Ok(()),
            });
        // They were counted: there is room.
        listed.map_err(|_| ENOBUFS)?;
        let (went, result) = link.socket.send(&mut list, more, wait);
        *sent = sent.saturating_add(went);
        result
    }
}
