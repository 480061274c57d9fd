// SPDX-License-Identifier: GPL-2.0
//! One queue of a ublk device, and the connection that serves it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Context, Result, anyhow, bail, ensure};
use io_uring::opcode::{PollAdd, Recv, UringCmd16};
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::{IoUring, cqueue};

use super::control::Shape;
use crate::bench::server::{advance, send_some};
use crate::server::wire::{REPLY_MAGIC, REQUEST_MAGIC};

const PAGE: usize = 4096;
const MOST_DEPTH: usize = 4096;
const SECTOR: u64 = 512;

/// `_IOWR('u', number, struct ublksrv_io_cmd)`.
const fn command(number: u32) -> u32 {
    (3 << 30) | (16 << 16) | ((b'u' as u32) << 8) | number
}

const FETCH: u32 = command(0x20);
const COMMIT_AND_FETCH: u32 = command(0x21);

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 2;

/// Marks of completions that are no request's.
const RECEIVED: u64 = u64::MAX;
const WRITABLE: u64 = u64::MAX - 1;

/// `struct ublksrv_io_desc`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    op_flags: u32,
    sectors: u32,
    start: u64,
    address: u64,
}

/// A mapping, unmapped when dropped.
struct Mapping {
    base: NonNull<libc::c_void>,
    length: usize,
}

impl Mapping {
    fn new(length: usize, protection: i32, flags: i32, fd: RawFd, offset: usize) -> Result<Mapping> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset as libc::off_t) };
        ensure!(base != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        Ok(Mapping { base: NonNull::new(base).context("mmap returned null")?, length })
    }

    fn at(&self, offset: usize) -> *mut libc::c_void {
        // SAFETY: it stays inside of the mapping, or comes to its end.
        unsafe { self.base.as_ptr().byte_add(offset.min(self.length)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and the last one who knew its address is gone.
        let _ = unsafe { libc::munmap(self.base.as_ptr(), self.length) };
    }
}

/// What is still to be sent of one request.
struct Outgoing {
    header: [u8; 28],
    payload: libc::iovec,
    sent: usize,
}

pub struct Client<'a> {
    shape: Shape,
    queue: u16,
    device: &'a File,
    socket: &'a OwnedFd,
    ring: IoUring,
    descriptors: Mapping,
    data: Mapping,
    live: usize,
    outgoing: VecDeque<Outgoing>,
    waiting: bool,
    buffer: Vec<u8>,
    filled: usize,
    /// The read whose data come, and what is still to come of them.
    pending: Option<(u16, libc::iovec)>,
}

impl Client<'_> {
    /// Asks for the queue's first requests.
    pub fn start<'a>(
        shape: Shape,
        queue: usize,
        device: &'a File,
        socket: &'a OwnedFd,
    ) -> Result<Client<'a>> {
        let depth = usize::from(shape.depth);
        let each = (MOST_DEPTH * size_of::<Descriptor>()).next_multiple_of(PAGE);
        let length = (depth * size_of::<Descriptor>()).next_multiple_of(PAGE);
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let descriptors = Mapping::new(length, libc::PROT_READ, flags, device.as_raw_fd(), queue * each)?;
        let (all, flags) =
            (depth * shape.largest, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE);
        let data = Mapping::new(all, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)?;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(2 * u32::from(shape.depth) + 4)
            .context("a ring")?;
        let mut client = Client {
            shape,
            queue: queue as u16,
            device,
            socket,
            ring,
            descriptors,
            data,
            live: depth,
            outgoing: VecDeque::new(),
            waiting: false,
            buffer: vec![0; 32 << 10],
            filled: 0,
            pending: None,
        };
        (0..shape.depth).try_for_each(|tag| client.ask(FETCH, tag, 0))?;
        client.receive()?;
        client.ring.submit()?;
        Ok(client)
    }

    /// Serves until the device is stopped.
    pub fn run(mut self) -> Result<()> {
        while self.live > 0 {
            self.ring.submit_and_wait(1)?;
            let done: Vec<cqueue::Entry> = self.ring.completion().collect();
            for entry in done {
                match (entry.user_data(), entry.result()) {
                    (WRITABLE, _) => self.waiting = false,
                    (RECEIVED, result) => self.received(result)?,
                    (tag, 0) => self.request(tag as u16)?,
                    (_, result) if result == -libc::ENODEV => self.live -= 1,
                    (tag, result) => bail!("request {tag}: {}", io::Error::from_raw_os_error(-result)),
                }
            }
            if !self.waiting && !self.send()? {
                self.waiting = true;
                let entry = PollAdd::new(Fd(self.socket.as_raw_fd()), libc::POLLOUT as u32).build();
                self.push(entry.user_data(WRITABLE))?;
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry) -> Result<()> {
        // SAFETY: what an entry points to, this struct owns, and it drops the ring first.
        unsafe { self.ring.submission().push(&entry) }.map_err(|error| anyhow!("{error}"))
    }

    /// Where a request has its data.
    fn place(&self, tag: u16) -> libc::iovec {
        let base = self.data.at(usize::from(tag) * self.shape.largest);
        libc::iovec { iov_base: base, iov_len: self.shape.largest }
    }

    fn descriptor(&self, tag: u16) -> Descriptor {
        let at = self.descriptors.at(usize::from(tag) * size_of::<Descriptor>());
        // SAFETY: inside of the mapping, aligned; the kernel has written it before it told of the request.
        unsafe { at.cast::<Descriptor>().read_volatile() }
    }

    /// Tells that a request is done, if it is no first one, and asks for the next.
    fn ask(&mut self, number: u32, tag: u16, result: i32) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&self.queue.to_ne_bytes());
        bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&result.to_ne_bytes());
        let address = self.place(tag).iov_base.expose_provenance() as u64;
        bytes[8..].copy_from_slice(&address.to_ne_bytes());
        let entry = UringCmd16::new(Fd(self.device.as_raw_fd()), number).cmd(bytes).build();
        self.push(entry.user_data(tag.into()))
    }

    fn request(&mut self, tag: u16) -> Result<()> {
        let descriptor = self.descriptor(tag);
        let length = u64::from(descriptor.sectors) * SECTOR;
        let command: u16 = match descriptor.op_flags as u8 {
            READ => 0,
            WRITE => 1,
            FLUSH => return self.ask(COMMIT_AND_FETCH, tag, 0),
            other => bail!("the kernel asks for {other}"),
        };
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[6..8].copy_from_slice(&command.to_be_bytes());
        header[8..16].copy_from_slice(&u64::from(tag).to_be_bytes());
        header[16..24].copy_from_slice(&(descriptor.start * SECTOR).to_be_bytes());
        header[24..].copy_from_slice(&(length as u32).to_be_bytes());
        let iov_len = if command == 1 { length as usize } else { 0 };
        let payload = libc::iovec { iov_len, ..self.place(tag) };
        self.outgoing.push_back(Outgoing { header, payload, sent: 0 });
        Ok(())
    }

    /// Sends what there is. False when the socket takes no more of it now.
    fn send(&mut self) -> Result<bool> {
        while !self.outgoing.is_empty() {
            let mut parts = Vec::with_capacity(256);
            for one in self.outgoing.iter_mut().take(128) {
                let mut sent = one.sent;
                let header =
                    libc::iovec { iov_base: one.header.as_mut_ptr().cast(), iov_len: one.header.len() };
                for mut part in [header, one.payload] {
                    let skipped = sent.min(part.iov_len);
                    advance(&mut part, skipped);
                    sent -= skipped;
                    if part.iov_len > 0 {
                        parts.push(part);
                    }
                }
            }
            let mut sent = match send_some(self.socket.as_raw_fd(), &mut parts, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                sent => sent.context("send")?,
            };
            while let Some(first) = self.outgoing.front_mut() {
                let length = first.header.len() + first.payload.iov_len;
                let taken = sent.min(length - first.sent);
                first.sent += taken;
                sent -= taken;
                if first.sent < length {
                    break;
                }
                self.outgoing.pop_front();
            }
        }
        Ok(true)
    }

    /// Waits for bytes: the rest of a read's data where they belong, everything else in the buffer.
    fn receive(&mut self) -> Result<()> {
        let free = &mut self.buffer[self.filled..];
        let mut place = libc::iovec { iov_base: free.as_mut_ptr().cast(), iov_len: free.len() };
        if let Some((_, rest)) = &self.pending {
            place = *rest;
        }
        let entry = Recv::new(Fd(self.socket.as_raw_fd()), place.iov_base.cast(), place.iov_len as u32);
        self.push(entry.build().user_data(RECEIVED))
    }

    fn received(&mut self, result: i32) -> Result<()> {
        let received = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        ensure!(received > 0, "the server has closed the connection");
        match &mut self.pending {
            Some((_, rest)) => advance(rest, received),
            None => self.filled += received,
        }
        self.replies()?;
        self.receive()
    }

    fn replies(&mut self) -> Result<()> {
        let mut used = 0;
        loop {
            if let Some((tag, rest)) = &mut self.pending {
                let here = rest.iov_len.min(self.filled - used);
                // SAFETY: the place is in our data's mapping, to which nobody has a reference; the kernel uses it only while
                // the request is its own.
                unsafe {
                    std::ptr::copy_nonoverlapping(self.buffer[used..].as_ptr(), rest.iov_base.cast(), here)
                };
                advance(rest, here);
                used += here;
                if rest.iov_len > 0 {
                    break;
                }
                let tag = *tag;
                self.pending = None;
                self.done(tag)?;
            }
            let Some(header) = self.buffer[..self.filled].get(used..used + 16) else { break };
            ensure!(
                header[..4] == REPLY_MAGIC.to_be_bytes() && header[4..8] == [0; 4],
                "the server says {header:?}"
            );
            let tag = u16::from_be_bytes([header[14], header[15]]);
            ensure!(tag < self.shape.depth, "the server answers what was not asked: {header:?}");
            used += 16;
            let descriptor = self.descriptor(tag);
            if descriptor.op_flags as u8 == READ {
                let iov_len = (u64::from(descriptor.sectors) * SECTOR) as usize;
                self.pending = Some((tag, libc::iovec { iov_len, ..self.place(tag) }));
            } else {
                self.done(tag)?;
            }
        }
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }

    fn done(&mut self, tag: u16) -> Result<()> {
        let length = u64::from(self.descriptor(tag).sectors) * SECTOR;
        self.ask(COMMIT_AND_FETCH, tag, length as i32)
    }
}
