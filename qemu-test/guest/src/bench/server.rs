// SPDX-License-Identifier: GPL-2.0
//! A server that is not the bottleneck: a thread a connection, no copy but the sockets', as few system calls as
//! there can be. It answers together what it has received together.

use std::io::{self, ErrorKind};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};

use super::memory::Memory;
use super::meter::Meter;
use super::program::Program;
use crate::server::wire::{self, Command, Request};

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Unix,
    Tcp,
}

impl Transport {
    pub const ALL: [Transport; 2] = [Transport::Unix, Transport::Tcp];

    pub fn name(self) -> &'static str {
        match self {
            Transport::Unix => "unix",
            Transport::Tcp => "tcp",
        }
    }
}

/// Received at once. Larger payloads than this are received where they belong.
const BUFFER: usize = 32 << 10;

/// Answered at once; two parts a reply stay below what one system call takes.
const TOGETHER: usize = 128;

const REQUEST: usize = 28;

/// One connection's thread, which ends when the client has gone.
pub struct Connection {
    thread: JoinHandle<io::Result<u64>>,
}

impl Connection {
    /// Connects a client, whose end is returned, to a new thread.
    pub fn new(
        transport: Transport,
        memory: &Arc<Memory>,
        meter: &Arc<Meter>,
    ) -> Result<(OwnedFd, Connection)> {
        let (client, server) = pair(transport)?;
        let mut served = Served {
            socket: server,
            memory: memory.clone(),
            meter: meter.clone(),
            buffer: vec![0; BUFFER],
            filled: 0,
            used: 0,
            replies: Vec::with_capacity(TOGETHER),
        };
        let thread = std::thread::Builder::new().name("server".to_owned()).spawn(move || served.run())?;
        Ok((client, Connection { thread }))
    }

    /// Waits for its end. Returns how many requests came.
    pub fn ended(self) -> Result<u64> {
        match self.thread.join() {
            Ok(result) => result.context("the server's connection"),
            Err(_) => bail!("a thread of the server panicked"),
        }
    }
}

fn pair(transport: Transport) -> Result<(OwnedFd, OwnedFd)> {
    match transport {
        Transport::Unix => {
            let (client, server) = UnixStream::pair()?;
            Ok((client.into(), server.into()))
        }
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").context("bind")?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            client.set_nodelay(true)?;
            let (server, _) = listener.accept()?;
            server.set_nodelay(true)?;
            Ok((client.into(), server.into()))
        }
    }
}

struct Reply {
    header: [u8; 16],
    data: Option<libc::iovec>,
    length: u64,
}

struct Served {
    socket: OwnedFd,
    memory: Arc<Memory>,
    meter: Arc<Meter>,
    buffer: Vec<u8>,
    filled: usize,
    used: usize,
    replies: Vec<Reply>,
}

// SAFETY: the addresses in it are those of the shared memory, which it keeps.
unsafe impl Send for Served {}

impl Served {
    fn run(&mut self) -> io::Result<u64> {
        let mut requests = 0;
        loop {
            if self.filled - self.used < REQUEST {
                self.answer()?;
                if !self.receive()? {
                    return Ok(requests);
                }
                continue;
            }
            let mut header = &self.buffer[self.used..self.used + REQUEST];
            let Some(request) = Request::read(&mut header, 0)? else { return Ok(requests) };
            self.used += REQUEST;
            if request.command == Command::Disconnect {
                self.answer()?;
                return Ok(requests);
            }
            requests += 1;
            self.serve(&request)?;
            if self.replies.len() == TOGETHER {
                self.answer()?;
            }
        }
    }

    /// Receives something more, behind what is not used yet. False at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.used..self.filled, 0);
        self.filled -= self.used;
        self.used = 0;
        let free = &mut self.buffer[self.filled..];
        let part = libc::iovec { iov_base: free.as_mut_ptr().cast(), iov_len: free.len() };
        let received = receive_some(self.socket.as_raw_fd(), &part)?;
        self.filled += received;
        Ok(received > 0)
    }

    fn serve(&mut self, request: &Request) -> io::Result<()> {
        let length = request.length as usize;
        let range = self.memory.range(request.offset, length);
        let range = range.ok_or_else(|| io::Error::other("a request beyond the end"))?;
        let data = match request.command {
            Command::Read => Some(range),
            Command::Write => {
                self.store(range)?;
                None
            }
            Command::Flush => None,
            other => return Err(io::Error::other(format!("{other:?} is not served here"))),
        };
        let header = wire::reply(wire::REPLY_MAGIC, 0, request.cookie);
        self.replies.push(Reply { header, data, length: u64::from(request.length) });
        Ok(())
    }

    /// Takes a payload: what has been received already, and the rest right to its place.
    fn store(&mut self, mut range: libc::iovec) -> io::Result<()> {
        let here = range.iov_len.min(self.filled - self.used);
        self.memory.store(&range, &self.buffer[self.used..self.used + here]);
        self.used += here;
        advance(&mut range, here);
        while range.iov_len > 0 {
            match receive_some(self.socket.as_raw_fd(), &range)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                received => advance(&mut range, received),
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut parts = Vec::with_capacity(2 * self.replies.len());
        for reply in &mut self.replies {
            parts.push(libc::iovec {
                iov_base: reply.header.as_mut_ptr().cast(),
                iov_len: reply.header.len(),
            });
            parts.extend(reply.data);
        }
        send_all(self.socket.as_raw_fd(), &mut parts)?;
        self.replies.drain(..).for_each(|reply| self.meter.answered(reply.length));
        Ok(())
    }
}

/// The rest of a range, without its first bytes.
pub fn advance(range: &mut libc::iovec, bytes: usize) {
    let bytes = bytes.min(range.iov_len);
    // SAFETY: it stays inside of the range, or comes to its end.
    range.iov_base = unsafe { range.iov_base.byte_add(bytes) };
    range.iov_len -= bytes;
}

fn receive_some(socket: RawFd, part: &libc::iovec) -> io::Result<usize> {
    loop {
        // SAFETY: the range is memory of ours, which nobody has a reference to or which is exclusively borrowed.
        let received = unsafe { libc::recv(socket, part.iov_base, part.iov_len, 0) };
        if received >= 0 {
            return Ok(received as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Sends some of it, with these flags, and takes that from the front; returns how many bytes.
pub fn send_some(socket: RawFd, parts: &mut [libc::iovec], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: a message without address and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len();
    // SAFETY: the parts are memory that lives until this returns, and is only read.
    let sent = unsafe { libc::sendmsg(socket, &message, flags | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn send_all(socket: RawFd, mut parts: &mut [libc::iovec]) -> io::Result<()> {
    while !parts.is_empty() {
        let mut sent = match send_some(socket, parts, 0) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            sent => sent?,
        };
        let whole = parts.iter().take_while(|part| {
            let fits = sent >= part.iov_len;
            sent -= if fits { part.iov_len } else { 0 };
            fits
        });
        let whole = whole.count();
        parts = &mut parts[whole..];
        if let Some(first) = parts.first_mut() {
            advance(first, sent);
        }
    }
    Ok(())
}

/// The server of one measurement.
pub struct Server {
    pub sockets: Vec<OwnedFd>,
    connections: Vec<Connection>,
}

impl Server {
    pub fn new(
        transport: Transport,
        connections: usize,
        memory: &Arc<Memory>,
        meter: &Arc<Meter>,
    ) -> Result<Server> {
        let made = (0..connections).map(|_| Connection::new(transport, memory, meter));
        let made = made.collect::<Result<Vec<_>>>().map_err(|error| anyhow!("connect: {error:#}"))?;
        let (sockets, connections) = made.into_iter().unzip();
        Ok(Server { sockets, connections })
    }

    /// A real server, which somebody else has started.
    pub fn of_program(program: &Program, connections: usize) -> Result<Server> {
        let sockets = (0..connections).map(|_| program.connect()).collect::<Result<_>>()?;
        Ok(Server { sockets, connections: Vec::new() })
    }

    /// Waits until every client has gone. Returns how many connections had requests, if that is known.
    pub fn ended(self) -> Result<Option<usize>> {
        drop(self.sockets);
        if self.connections.is_empty() {
            return Ok(None);
        }
        let mut used = 0;
        for connection in self.connections {
            used += usize::from(connection.ended()? > 0);
        }
        Ok(Some(used))
    }
}
