// SPDX-License-Identifier: GPL-2.0
//! Connections to a server, through the handshake, for the kernel to go on with.

#[cfg(test)]
mod real;

use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use rnbd_protocol::flags::TransmissionFlags;
use rnbd_protocol::wire;
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::address::Address;
use crate::failure::{Failure, Kind};
use crate::handshake::{self, Export};
use crate::text;

/// Several connections to one export.
pub struct Session {
    pub export: Export,
    connections: Vec<Connection>,
}

/// A connection that the server expects requests on. Unless the kernel has it by then, the server is told when it goes.
struct Connection {
    socket: Socket,
    given_away: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.given_away {
            // As good as just closing it, but the server need not wonder.
            let _ = self.socket.write_all(&wire::Request::DISCONNECT.encode());
        }
    }
}

/// What a session is to be.
pub struct Wanted<'a> {
    pub address: &'a Address,
    pub export: &'a str,
    pub connections: usize,
    /// For all of a connection's handshake.
    pub patience: Duration,
}

impl Wanted<'_> {
    /// Connects, so many times. One connection tells whether there may be others.
    pub fn open(&self) -> Result<Session> {
        let (first, export) = self.connect()?;
        let mut session = Session { export, connections: vec![first] };
        if self.connections > 1 && !export.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
            return Err(self
                .failure("it does not offer several connections to this export (NBD_FLAG_CAN_MULTI_CONN)")
                .hint(
                    "what is flushed on one need not be safe on another: leave out --connections, or set the server \
                     up for it",
                )
                .into());
        }
        while session.connections.len() < self.connections {
            let (next, other) = self.connect()?;
            session.connections.push(next);
            if other != export {
                let told =
                    format!("connection {} shows another export than the first", session.connections.len());
                return Err(self.failure(&told).into());
            }
        }
        Ok(session)
    }

    fn connect(&self) -> Result<(Connection, Export)> {
        let until = Instant::now() + self.patience;
        let socket = self.reach(until).map_err(|error| {
            let told = match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    "it cannot be reached in time".to_owned()
                }
                _ => format!("it cannot be reached: {}", text::plain(&error)),
            };
            self.failure(&told)
        })?;
        let export = handshake::negotiate(Bounded { socket: &socket, until }, self.export);
        let export = export.map_err(|error| {
            let failure = self.failure(&error.to_string());
            match error {
                handshake::Error::NoExport(_) => failure
                    .hint("nbd-client -l HOST lists the exports of a server; --export NAME asks for one"),
                _ => failure,
            }
        })?;
        // These would be the kernel's time-outs too.
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        Ok((Connection { socket, given_away: false }, export))
    }

    fn reach(&self, until: Instant) -> io::Result<Socket> {
        match self.address {
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                // It waits when the server's queue is full.
                socket.set_write_timeout(Some(left(until)?))?;
                socket.connect(&SockAddr::unix(path)?)?;
                Ok(socket)
            }
            Address::Tcp(host, port) => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                    match socket.connect_timeout(&address.into(), left(until)?) {
                        Ok(()) => {
                            socket.set_tcp_nodelay(true)?;
                            // A server that is gone without a word is found out.
                            socket
                                .set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(60)))?;
                            return Ok(socket);
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn failure(&self, what: &str) -> Failure {
        let export = match self.export {
            "" => String::new(),
            name => format!(", export {name:?}"),
        };
        Failure::new(Kind::Server, format!("the server at {}{export}: {what}", self.address))
    }
}

impl Session {
    /// The sockets, for a request to the kernel.
    pub fn fds(&self) -> Vec<RawFd> {
        self.connections.iter().map(|connection| connection.socket.as_raw_fd()).collect()
    }

    /// The kernel has the first so many.
    pub fn give_away(&mut self, count: usize) {
        self.connections.iter_mut().take(count).for_each(|connection| connection.given_away = true);
    }
}

/// How long there still is.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket that is done with at a certain time, however slowly bytes come until then.
struct Bounded<'a> {
    socket: &'a Socket,
    until: Instant,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.until)?))?;
        let mut socket = self.socket;
        socket.read(buffer)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.until)?))?;
        let mut socket = self.socket;
        socket.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A new one.
    pub fn directory() -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("rnbdctl-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// A server at a path that does `serve` with each of its first `clients`.
    fn open(
        patience: Duration,
        clients: usize,
        connections: usize,
        serve: fn(&Socket),
    ) -> (Result<Session>, std::thread::JoinHandle<Vec<u8>>) {
        let directory = directory();
        let path = directory.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let sockets: Vec<Socket> = (0..clients)
                .map(|_| {
                    let socket = listener.accept().unwrap().0.into();
                    serve(&socket);
                    socket
                })
                .collect();
            for mut socket in sockets {
                socket.read_to_end(&mut heard).unwrap();
            }
            heard
        });
        let address = Address::Unix(path);
        let wanted = Wanted { address: &address, export: "", connections, patience };
        let session = wanted.open();
        std::fs::remove_dir_all(&directory).unwrap();
        (session, script)
    }

    fn greet(mut socket: &Socket) {
        socket.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        socket.read_exact(&mut [0; 4 + 16 + 8]).unwrap();
    }

    fn grant(mut socket: &Socket, flags: u8) {
        greet(socket);
        let reply = |kind: u8, data: &[u8]| {
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            [&magic[..], &[0, 0, 0, 7, 0, 0, 0, kind, 0, 0, 0, data.len() as u8], data].concat()
        };
        let export = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[u8::from(flags > 1), 1]].concat();
        socket.write_all(&[reply(3, &export), reply(1, &[])].concat()).unwrap();
    }

    #[test]
    fn a_session_that_comes_to_nothing_is_ended_by_the_book() {
        let (session, script) = open(PATIENCE, 1, 1, |socket| grant(socket, 1));
        drop(session.unwrap());
        let heard = script.join().unwrap();
        // NBD_CMD_DISC.
        assert_eq!(heard[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 2]);
        assert_eq!(heard.len(), 28);
    }

    #[test]
    fn sockets_of_the_kernels_are_left_alone() {
        let (session, script) = open(PATIENCE, 2, 2, |socket| grant(socket, 2));
        let mut session = session.unwrap();
        session.give_away(1);
        drop(session);
        assert_eq!(script.join().unwrap().len(), 28);
    }

    #[test]
    fn the_kernel_gets_sockets_without_time_outs() {
        let (session, script) = open(PATIENCE, 1, 1, |socket| grant(socket, 1));
        let session = session.unwrap();
        let socket = &session.connections[0].socket;
        assert_eq!(socket.read_timeout().unwrap(), None);
        assert_eq!(socket.write_timeout().unwrap(), None);
        drop(session);
        script.join().unwrap();
    }

    #[test]
    fn several_connections_need_the_servers_consent() {
        let (session, script) = open(PATIENCE, 1, 2, |socket| grant(socket, 1));
        let told = session.err().unwrap().to_string();
        assert!(told.contains("NBD_FLAG_CAN_MULTI_CONN"), "{told}");
        script.join().unwrap();
    }

    #[test]
    fn a_server_that_drips_is_not_awaited_for_ever() {
        static SENT: AtomicU32 = AtomicU32::new(0);
        let (session, script) = open(Duration::from_secs(2), 1, 1, |mut socket| {
            for byte in b"NBDMAGICIHAVEOPT\0\x03" {
                std::thread::sleep(Duration::from_secs(1));
                if socket.write_all(&[*byte]).is_err() {
                    return;
                }
                SENT.fetch_add(1, Ordering::Relaxed);
            }
        });
        let told = session.err().unwrap().to_string();
        assert!(told.contains("it does not answer"), "{told}");
        script.join().unwrap();
        assert!(SENT.load(Ordering::Relaxed) < 18, "the client waited for the end of the greeting");
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        let address = Address::Unix("/nonexistent/socket".into());
        let wanted = Wanted { address: &address, export: "disk", connections: 1, patience: PATIENCE };
        let told = wanted.open().err().unwrap().to_string();
        assert_eq!(
            told,
            "the server at /nonexistent/socket, export \"disk\": it cannot be reached: No such file or directory"
        );
    }
}
