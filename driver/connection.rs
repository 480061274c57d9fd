// SPDX-License-Identifier: GPL-2.0

//! One connection: a socket, who sends on it, and how it dies.

use super::{attachment::Attachment, device::Device};
use crate::{
    abstractions::{
        block::mq::{Disk, Request},
        deferred::{Deferred, Later},
        net::socket::Socket,
    },
    protocol::{
        request::{Route, SendMark},
        wire,
    },
};
use kernel::{
    fmt, new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Atomic, Full, Relaxed},
        Arc, Mutex,
    },
};

/// A connection that may be shared, and that a worker can finish a send on.
pub(super) type ConnectionRef = Arc<Deferred<Connection>>;

/// One connection of a generation.
#[pin_data]
pub(super) struct Connection {
    /// Names this connection in the requests sent on it.
    pub(super) route: Route,
    pub(super) socket: Socket,
    disk: ARef<Disk<Device>>,
    dead: Atomic<bool>,
    /// Serialises senders: a request goes out whole before the next begins.
    #[pin]
    pub(super) tx: Mutex<Tx>,
}

/// What a connection's senders leave to each other.
#[derive(Default)]
pub(super) struct Tx {
    /// A request of which only a part went out, before a signal stopped its sender. Nothing else
    /// may go out before the rest of it has.
    pub(super) partial: Option<Partial>,
}

/// A request of which only a part went out.
pub(super) struct Partial {
    pub(super) attachment: Arc<Attachment>,
    pub(super) request: ARef<Request<Device>>,
    pub(super) mark: SendMark,
    /// Bytes that went out, header included.
    pub(super) sent: usize,
}

/// Why a connection died.
#[derive(Clone, Copy, Debug)]
pub(super) enum Death {
    /// The server closed it between two replies.
    ServerClosed,
    /// The server closed it, or it broke, within a reply.
    CutOff(Error),
    /// Receiving failed.
    ReceiveFailed(Error),
    /// Sending failed.
    SendFailed(Error),
    /// The server sent something that is no reply.
    WrongMagic(wire::WrongMagic),
    /// The server answered what was not asked on this connection, or was answered already.
    UnknownCookie(u64),
    /// A request was not answered in time.
    TimedOut,
    /// The generation ended.
    Retired,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerClosed => write!(f, "the server closed it"),
            Self::CutOff(error) => write!(f, "cut off within a reply ({error:?})"),
            Self::ReceiveFailed(error) => write!(f, "receiving failed ({error:?})"),
            Self::SendFailed(error) => write!(f, "sending failed ({error:?})"),
            Self::WrongMagic(wire::WrongMagic(magic)) => {
                write!(f, "the server sent magic {magic:#010x}, not a reply's")
            }
            Self::UnknownCookie(cookie) => write!(
                f,
                "the server answered cookie {cookie:#x}, which it was not asked"
            ),
            Self::TimedOut => write!(f, "a request was not answered in time"),
            Self::Retired => write!(f, "the device was detached"),
        }
    }
}

impl Connection {
    /// A live connection over `socket`, the `index`th of its generation.
    pub(super) fn new(disk: &Disk<Device>, index: u16, socket: Socket) -> Result<ConnectionRef> {
        socket.reclassify_locks();
        Arc::pin_init(
            Deferred::new(try_pin_init!(Self {
                route: Route {
                    connection: index,
                    epoch: 0,
                },
                socket,
                disk: disk.get(),
                dead: Atomic::new(false),
                tx <- new_mutex!(Tx::default(), "rnbd::tx"),
            }? Error)),
            GFP_KERNEL,
        )
    }

    /// The disk that the connection serves.
    pub(super) fn disk(&self) -> &Disk<Device> {
        &self.disk
    }

    /// Whether the connection died.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Kills the connection: its socket is shut down, so that whoever waits on it wakes, and the
    /// peer sees the end. True for the first killer alone. May sleep.
    ///
    /// Fully ordered: who puts a request on the wire after this sees the death, or else whoever
    /// looks for stranded requests after this sees the request.
    pub(super) fn kill(&self) -> bool {
        if self.dead.xchg(true, Full) {
            return false;
        }
        self.socket.shutdown();
        true
    }
}

impl Later for Connection {
    /// Finishes a send that a signal stopped; a worker gets no signals.
    fn later(this: &Arc<Deferred<Self>>) {
        super::transmit::finish_partial(this);
    }
}
