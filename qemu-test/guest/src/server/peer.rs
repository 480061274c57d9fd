// SPDX-License-Identifier: GPL-2.0
//! One connection of a server that follows a script: it may send what it likes, and looks at every byte that it gets.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::wire::{self, Command, Request, flags};
use super::{Shared, Stream, pattern};
use crate::process::PATIENCE;

/// Requests that a queue of the drivers can have.
const DEPTH: u64 = 128;
/// The other end sends nothing more.
const CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
/// A driver may number a request and then not send it: by how much numbers may jump.
const GAP: u64 = 64;

/// What a script has of its connection.
pub struct Peer<'a> {
    pub connection: usize,
    pub(super) stream: Stream,
    pub(super) shared: &'a Shared,
    /// The number in the last request's cookie.
    pub(super) sequence: u64,
}

fn wrong(what: &str, request: &Request) -> io::Error {
    io::Error::other(format!("{what}: {request:x?}"))
}

impl Peer<'_> {
    /// The next request; None at the end of the stream. No byte of its header may be other than it has to be: what is
    /// there else would be the sender's memory.
    pub fn request(&mut self) -> io::Result<Option<Request>> {
        let Some(request) = Request::read(&mut self.stream, self.connection)? else { return Ok(None) };
        self.check(&request)?;
        super::lock(&self.shared.seen).push(request);
        Ok(Some(request))
    }

    fn check(&mut self, request: &Request) -> io::Result<()> {
        let may = match request.command {
            Command::Write | Command::Trim => flags::FUA,
            Command::WriteZeroes => flags::FUA | flags::NO_HOLE,
            Command::Read | Command::Flush | Command::Disconnect => 0,
            Command::Unknown(_) => return Err(wrong("an unknown command", request)),
        };
        if request.flags & !may != 0 {
            return Err(wrong("flags that mean nothing", request));
        }
        let (offset, length) = (request.offset, u64::from(request.length));
        if matches!(request.command, Command::Flush | Command::Disconnect) {
            if offset != 0 || length != 0 {
                return Err(wrong("a range that means nothing", request));
            }
        } else if length == 0 || (offset | length) % 512 != 0 || !self.shared.export.holds(offset, length) {
            return Err(wrong("a range that the device does not have", request));
        }
        if request.command == Command::Disconnect {
            return if request.cookie == 0 {
                Ok(())
            } else {
                Err(wrong("a cookie that means nothing", request))
            };
        }
        let (sequence, queue, tag) =
            (request.cookie >> 32, (request.cookie >> 16) & 0xffff, request.cookie & 0xffff);
        let queues = self.shared.accepted.load(std::sync::atomic::Ordering::SeqCst) as u64;
        if sequence <= self.sequence || sequence > self.sequence + GAP || queue >= queues || tag >= DEPTH {
            return Err(wrong("a cookie that is not made of a number and a tag", request));
        }
        self.sequence = sequence;
        Ok(())
    }

    /// What a write brings with it; each sector of it must belong where it goes.
    pub fn payload(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut payload = Vec::new();
        if request.command == Command::Write {
            payload.resize(request.length as usize, 0);
            self.stream.read_exact(&mut payload)?;
            pattern::versions(request.offset, &payload)
                .map_err(|what| wrong(&format!("a write of other data: {what}"), request))?;
        }
        Ok(payload)
    }

    /// Does what was asked, and gives the reply, header and data.
    ///
    /// A write that comes late, when the driver has long sent it over another connection, changes nothing.
    pub fn perform(&self, request: &Request, payload: &[u8]) -> io::Result<Vec<u8>> {
        let export = &self.shared.export;
        let (offset, length) = (request.offset, request.length as usize);
        let mut reply = wire::reply(wire::REPLY_MAGIC, 0, request.cookie).to_vec();
        match request.command {
            Command::Read => reply.extend(export.read(offset, length)?),
            Command::Write => {
                let _one = super::lock(&self.shared.writing);
                let there = pattern::versions(offset, &export.read(offset, length)?);
                let new = pattern::versions(offset, payload).map_err(io::Error::other)?;
                for (index, (new, there)) in new.into_iter().zip(there.map_err(io::Error::other)?).enumerate()
                {
                    let at = index * pattern::SECTOR;
                    if new >= there {
                        export.write(offset + at as u64, &payload[at..at + pattern::SECTOR])?;
                    }
                }
            }
            _ => {}
        }
        Ok(reply)
    }

    /// Does all that a correct server does with a request.
    pub fn serve(&mut self, request: &Request) -> io::Result<()> {
        let reply = self.reply(request)?;
        self.send(&reply)
    }

    /// All of that but to send the reply.
    pub fn reply(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let payload = self.payload(request)?;
        self.perform(request, &payload)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one byte, whatever it is. False at the end of the stream.
    pub fn byte(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        Ok((self.stream.read(&mut byte)? == 1).then_some(byte[0]))
    }

    /// Ends the script.
    pub fn leave(&self) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    pub fn reset(&self) -> io::Result<()> {
        self.stream.reset().map_err(io::Error::other)
    }

    pub fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }

    fn poll(&self, events: PollFlags, bound: PollTimeout) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.fd(), events)];
        Ok(poll(&mut fds, bound)? > 0)
    }

    /// Whether something to read comes within so many milliseconds.
    pub fn comes(&self, milliseconds: u16) -> io::Result<bool> {
        self.poll(PollFlags::POLLIN, milliseconds.into())
    }

    /// Whether the driver has closed the connection. Reads nothing.
    pub fn is_closed(&self) -> io::Result<bool> {
        self.poll(CLOSED, PollTimeout::ZERO)
    }

    /// Neither reads nor sends until the driver closes the connection, which it must do. Then the script ends: what
    /// is left in the socket is of no use.
    pub fn stall(&self) -> io::Result<()> {
        let bound = PollTimeout::try_from(*PATIENCE).map_err(io::Error::other)?;
        if self.poll(CLOSED, bound)? {
            return self.leave();
        }
        Err(io::Error::other("the driver keeps a connection on which nothing comes"))
    }
}
