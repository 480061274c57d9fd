// SPDX-License-Identifier: GPL-2.0

//! One connection: a socket, who sends on it, and how it dies.

use super::{attachment::Attachment, device::Device};
use crate::{
    abstractions::{
        block::mq::{Disk, Request},
        deferred::{Deferred, Later},
        net::{address::Address, socket::Socket},
        pid::ProcessRef,
        trace,
    },
    protocol::{
        cookie::Sequence,
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
    time::{Instant, Monotonic},
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
    /// What the socket was when it was added, and who added it.
    pub(super) origin: Origin,
    /// Bytes sent and received, headers included.
    pub(super) sent: Atomic<u64>,
    pub(super) received: Atomic<u64>,
    /// How the connection died, once it has.
    #[pin]
    end: Mutex<Option<End>>,
    /// Serialises senders: a request goes out whole before the next begins.
    #[pin]
    pub(super) tx: Mutex<Tx>,
}

/// Where a connection came from.
pub(super) struct Origin {
    pub(super) local: Address,
    pub(super) peer: Address,
    /// The process that added it.
    pub(super) added_by: i32,
}

/// How and when a connection died.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) death: Death,
    pub(super) at: Instant<Monotonic>,
}

/// What a connection's senders leave to each other.
#[derive(Default)]
pub(super) struct Tx {
    /// Numbers what is sent.
    pub(super) sequence: Sequence,
    /// The server was told that nothing more will come.
    pub(super) disconnected: bool,
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
    /// The server answered a write that it had not got whole; the rest cannot follow.
    AnsweredEarly,
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
            Self::AnsweredEarly => write!(f, "the server answered a write before it had it whole"),
            Self::TimedOut => write!(f, "a request was not answered in time"),
            Self::Retired => write!(f, "the device was detached"),
        }
    }
}

impl Death {
    /// In one word, for the tracepoint.
    fn name(self) -> &'static CStr {
        match self {
            Self::ServerClosed => c"server_closed",
            Self::CutOff(_) => c"cut_off",
            Self::ReceiveFailed(_) => c"receive_failed",
            Self::SendFailed(_) => c"send_failed",
            Self::WrongMagic(_) => c"wrong_magic",
            Self::UnknownCookie(_) => c"unknown_cookie",
            Self::AnsweredEarly => c"answered_early",
            Self::TimedOut => c"timed_out",
            Self::Retired => c"retired",
        }
    }
}

impl Connection {
    /// A live connection over `socket`, the `index`th of its generation.
    pub(super) fn new(disk: &Disk<Device>, index: u16, socket: Socket) -> Result<ConnectionRef> {
        socket.reclassify_locks();
        let origin = Origin {
            local: socket.local_address(),
            peer: socket.peer_address(),
            added_by: ProcessRef::current().number(),
        };
        Arc::pin_init(
            Deferred::new(try_pin_init!(Self {
                route: Route {
                    connection: index,
                    epoch: 0,
                },
                socket,
                disk: disk.get(),
                dead: Atomic::new(false),
                origin,
                sent: Atomic::new(0),
                received: Atomic::new(0),
                end <- new_mutex!(None, "rnbd::connection_end"),
                tx <- new_mutex!(Tx::default(), "rnbd::tx"),
            }? Error)),
            GFP_KERNEL,
        )
    }

    /// The disk that the connection serves.
    pub(super) fn disk(&self) -> &Disk<Device> {
        &self.disk
    }

    /// Counts bytes that went out. Its one sender at a time calls this.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent
            .store(self.sent.load(Relaxed).wrapping_add(bytes as u64), Relaxed);
    }

    /// Counts bytes that came in. Its receiver alone calls this.
    pub(super) fn count_received(&self, bytes: usize) {
        let before = self.received.load(Relaxed);
        self.received
            .store(before.wrapping_add(bytes as u64), Relaxed);
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
    pub(super) fn kill(&self, death: Death) -> bool {
        if self.dead.xchg(true, Full) {
            return false;
        }
        *self.end.lock() = Some(End {
            death,
            at: Instant::now(),
        });
        self.socket.shutdown();
        let index = self.disk.data().index;
        trace::connection_dead(index, self.route.connection.into(), death.name());
        true
    }

    /// How and when the connection died; none, while it lives or is just dying.
    pub(super) fn end(&self) -> Option<End> {
        *self.end.lock()
    }
}

impl Later for Connection {
    /// Finishes a send that a signal stopped; a worker gets no signals.
    fn later(this: &Arc<Deferred<Self>>) {
        super::transmit::finish_partial(this);
    }
}
