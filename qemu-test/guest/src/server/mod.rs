// SPDX-License-Identifier: GPL-2.0
//! An NBD server for tests, in threads of the test's own process. It speaks the transmission phase only, since a
//! driver's sockets start there. It records every request, and a test decides what each is answered with.

mod export;
pub mod handshake;
pub mod pattern;
mod peer;
pub mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

pub use export::Export;
pub use peer::Peer;
pub use wire::{Command, Request};

use crate::process::wait_for;

/// What to do with a request. Writes have had their payload read, and not yet stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Do what it asks, and say so.
    Serve,
    /// Do it after a while. Requests that follow on the connection wait.
    Delay(Duration),
    /// Refuse it with this error of the protocol.
    Refuse(u32),
    /// Never answer it.
    Ignore,
    /// Close the connection.
    Close,
    /// Send these bytes instead of a reply.
    Send(Vec<u8>),
}

type Script = dyn Fn(&mut Peer<'_>) -> std::io::Result<()> + Send + Sync;

/// How a server deals with its connections.
enum Conduct {
    /// It reads each request, and does with it what this says.
    Answer(Box<dyn Fn(&Request) -> Action + Send + Sync>),
    /// It leaves each connection wholly to this. What it serves is made of [`pattern`]'s data.
    Script(Box<Script>),
}

struct Shared {
    export: Export,
    conduct: Conduct,
    /// Held while a script's connection looks what is there, and writes.
    writing: Mutex<()>,
    seen: Mutex<Vec<Request>>,
    /// It goes on when it is told that nothing more comes.
    stubborn: AtomicBool,
    /// The connections that the peer has not closed, by number.
    open: Mutex<BTreeMap<usize, Stream>>,
    accepted: AtomicUsize,
    errors: Mutex<Vec<String>>,
}

pub struct Server {
    shared: Arc<Shared>,
}

/// The kinds of sockets that a driver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Unix,
    Tcp4,
    Tcp6,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn try_clone(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(stream) => Stream::Tcp(stream.try_clone()?),
            Stream::Unix(stream) => Stream::Unix(stream.try_clone()?),
        })
    }

    fn shut_down(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        // A peer that is gone already is as good.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Aborts a TCP connection: the peer gets a RST, as from a server with SO_LINGER of 0, or one that rebooted.
    fn reset(&self) -> Result<()> {
        let Stream::Tcp(stream) = self else { return Ok(()) };
        // SAFETY: an address without content, of the family that means "none".
        let mut none: libc::sockaddr = unsafe { std::mem::zeroed() };
        none.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
        let size = size_of::<libc::sockaddr>() as libc::socklen_t;
        // SAFETY: `connect` reads `size` bytes of an address that we own.
        let done = unsafe { libc::connect(stream.as_raw_fd(), &none, size) };
        nix::errno::Errno::result(done).context("reset a connection")?;
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(data),
            Stream::Unix(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// A server that does what it is asked.
    pub fn new(export: Export) -> Server {
        Server::with_behaviour(export, |_| Action::Serve)
    }

    pub fn with_behaviour(
        export: Export,
        behaviour: impl Fn(&Request) -> Action + Send + Sync + 'static,
    ) -> Server {
        Server::of(export, Conduct::Answer(Box::new(behaviour)))
    }

    /// A server of `size` bytes, each of whose connections follows `script` to its end.
    pub fn scripted(
        size: u64,
        script: impl Fn(&mut Peer<'_>) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Result<Server> {
        let export = Export::memory(size)?;
        export.write(0, &pattern::data(0, size as usize, pattern::ORIGINAL))?;
        Ok(Server::of(export, Conduct::Script(Box::new(script))))
    }

    fn of(export: Export, conduct: Conduct) -> Server {
        let shared = Shared {
            export,
            conduct,
            writing: Mutex::default(),
            seen: Mutex::default(),
            stubborn: AtomicBool::new(false),
            open: Mutex::default(),
            accepted: AtomicUsize::new(0),
            errors: Mutex::default(),
        };
        Server { shared: Arc::new(shared) }
    }

    /// A new connection to the server: the client's end.
    pub fn connect(&self, transport: Transport) -> Result<OwnedFd> {
        match transport {
            Transport::Unix => {
                let (client, server) = UnixStream::pair()?;
                self.serve(Stream::Unix(server))?;
                Ok(client.into())
            }
            Transport::Tcp4 => self.connect_tcp("127.0.0.1:0"),
            Transport::Tcp6 => self.connect_tcp("[::1]:0"),
        }
    }

    fn connect_tcp(&self, address: &str) -> Result<OwnedFd> {
        let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        client.set_nodelay(true)?;
        let (server, _) = listener.accept()?;
        server.set_nodelay(true)?;
        self.serve(Stream::Tcp(server))?;
        Ok(client.into())
    }

    /// Serves one end of a socket pair that a test has made itself.
    pub fn serve_unix(&self, stream: UnixStream) -> Result<()> {
        self.serve(Stream::Unix(stream))
    }

    /// Serves whoever connects to a UNIX socket at `path`, as long as this process lives.
    pub fn listen_unix(&self, path: &Path) -> Result<()> {
        let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
        let server = Server { shared: self.shared.clone() };
        std::thread::Builder::new().name("listener".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                let served = stream.context("accept").and_then(|stream| server.serve_unix(stream));
                if let Err(error) = served {
                    lock(&server.shared.errors).push(format!("{error:#}"));
                }
            }
        })?;
        Ok(())
    }

    fn serve(&self, stream: Stream) -> Result<()> {
        let connection = self.shared.accepted.fetch_add(1, Ordering::SeqCst);
        lock(&self.shared.open).insert(connection, stream.try_clone()?);
        let shared = self.shared.clone();
        std::thread::Builder::new().name(format!("server-{connection}")).spawn(move || {
            if let Err(error) = shared.serve(connection, &stream) {
                lock(&shared.errors).push(format!("connection {connection}: {error}"));
            }
            stream.shut_down();
            lock(&shared.open).remove(&connection);
        })?;
        Ok(())
    }

    /// Closes every connection, as a server that dies does.
    pub fn close(&self) {
        lock(&self.shared.open).values().for_each(Stream::shut_down);
    }

    /// From now on it does not close a connection when it is told that nothing more will come.
    pub fn be_stubborn(&self) {
        self.shared.stubborn.store(true, Ordering::SeqCst);
    }

    /// Sends nothing more on any connection, and still reads.
    pub fn finish(&self) {
        lock(&self.shared.open).values().for_each(|stream| stream.shut(Shutdown::Write));
    }

    /// Closes one connection, by its number.
    pub fn close_one(&self, connection: usize) {
        if let Some(stream) = lock(&self.shared.open).get(&connection) {
            stream.shut_down();
        }
    }

    /// Resets every TCP connection.
    pub fn reset(&self) -> Result<()> {
        lock(&self.shared.open).values().try_for_each(Stream::reset)
    }

    /// Sends what nobody has asked for, on every connection.
    pub fn blurt(&self, bytes: &[u8]) -> Result<()> {
        let mut open = lock(&self.shared.open);
        open.values_mut().try_for_each(|stream| stream.write_all(bytes)).context("send")
    }

    pub fn export(&self) -> &Export {
        &self.shared.export
    }

    /// Every request seen so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Request> {
        lock(&self.shared.seen).clone()
    }

    /// Requests of one kind.
    pub fn seen_of(&self, command: Command) -> Vec<Request> {
        self.seen().into_iter().filter(|request| request.command == command).collect()
    }

    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
    }

    /// How many connections have ever been made.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections that the peer has not closed.
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Waits until the peer has closed every connection.
    pub fn wait_closed(&self) -> Result<()> {
        wait_for("the server to see its connections closed", || self.open_connections() == 0)
    }

    /// What went wrong on connections: bad magic, a stream that ended within a request.
    pub fn errors(&self) -> Vec<String> {
        lock(&self.shared.errors).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn serve(&self, connection: usize, stream: &Stream) -> std::io::Result<()> {
        let mut stream = stream.try_clone()?;
        let behaviour = match &self.conduct {
            Conduct::Answer(behaviour) => behaviour,
            Conduct::Script(script) => {
                let mut peer = Peer { connection, stream, shared: self, sequence: 0 };
                return match script(&mut peer) {
                    // It is a driver's right to close, also in the middle of a request.
                    Err(error) if error.raw_os_error().is_some() => Ok(()),
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
                    other => other,
                };
            }
        };
        while let Some(request) = Request::read(&mut stream, connection)? {
            let payload = match request.command {
                Command::Write => {
                    let mut payload = vec![0; request.length as usize];
                    stream.read_exact(&mut payload)?;
                    payload
                }
                _ => Vec::new(),
            };
            lock(&self.seen).push(request);
            if request.command == Command::Disconnect && !self.stubborn.load(Ordering::SeqCst) {
                return Ok(());
            }
            match behaviour(&request) {
                Action::Serve => self.answer(&mut stream, &request, &payload)?,
                Action::Delay(time) => {
                    std::thread::sleep(time);
                    self.answer(&mut stream, &request, &payload)?;
                }
                Action::Refuse(error) => {
                    stream.write_all(&wire::reply(wire::REPLY_MAGIC, error, request.cookie))?;
                }
                Action::Ignore => {}
                Action::Close => return Ok(()),
                Action::Send(bytes) => stream.write_all(&bytes)?,
            }
        }
        Ok(())
    }

    fn answer(&self, stream: &mut Stream, request: &Request, payload: &[u8]) -> std::io::Result<()> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let mut data = Vec::new();
        let done = if !self.export.holds(offset, length) {
            Err(std::io::Error::from_raw_os_error(libc::EINVAL))
        } else {
            match request.command {
                Command::Read => self.export.read(offset, length as usize).map(|read| data = read),
                Command::Write => self.export.write(offset, payload),
                Command::Trim | Command::WriteZeroes => self.export.zero(offset, length),
                Command::Flush => Ok(()),
                Command::Disconnect | Command::Unknown(_) => {
                    Err(std::io::Error::from_raw_os_error(libc::EINVAL))
                }
            }
        };
        let error = match done {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO) as u32,
        };
        stream.write_all(&wire::reply(wire::REPLY_MAGIC, error, request.cookie))?;
        if error == 0 {
            stream.write_all(&data)?;
        }
        Ok(())
    }
}
