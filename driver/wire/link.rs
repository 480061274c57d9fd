// SPDX-License-Identifier: GPL-2.0

//! A link: one socket that a connection has, or had, and how it died.

use crate::{
    abstractions::{
        iov::Kvec,
        net::{
            sockaddr::SockAddr,
            socket::{More, Socket, Wait},
        },
        pid::ProcessRef,
    },
    protocol::{request::Route, wire},
};
use kernel::{
    fmt, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc, Mutex,
    },
    time::{Instant, Monotonic},
};

/// One socket of a connection, from when it is put there to its death. A dead link stays dead: the
/// connection gets another one, with the next epoch.
#[pin_data]
pub(crate) struct Link {
    /// Names this link in the requests sent on it.
    pub(crate) route: Route,
    pub(crate) socket: Socket,
    dead: Atomic<bool>,
    /// What the socket was when it was added, and the process that added it.
    pub(crate) origin: Origin,
    /// Bytes sent and received, headers included.
    pub(crate) sent: Atomic<u64>,
    pub(crate) received: Atomic<u64>,
    /// Requests that were sent whole, and those that were answered.
    asked: Atomic<u64>,
    answered: Atomic<u64>,
    /// How the link died, once it has.
    #[pin]
    end: Mutex<Option<End>>,
}

/// Where a link came from.
pub(crate) struct Origin {
    pub(crate) local: SockAddr,
    pub(crate) peer: SockAddr,
    /// The process that added it.
    pub(crate) added_by: i32,
}

/// How and when a link died.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) death: DeadReason,
    pub(crate) at: Instant<Monotonic>,
}

/// Why a link died.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DeadReason {
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
    /// Another socket has taken its place.
    HandedOver,
}

impl fmt::Display for DeadReason {
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
            Self::HandedOver => write!(f, "another socket took its place"),
        }
    }
}

impl DeadReason {
    /// Whether it was wished for, and is nothing that went wrong.
    pub(crate) fn is_deliberate(self) -> bool {
        matches!(self, Self::Retired | Self::HandedOver)
    }

    /// In one word, for the tracepoint.
    pub(crate) fn name(self) -> &'static CStr {
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
            Self::HandedOver => c"handed_over",
        }
    }
}

impl Link {
    /// A live link over `socket`.
    pub(crate) fn new(route: Route, socket: Socket) -> Result<Arc<Self>> {
        socket.reclassify_locks();
        let origin = Origin {
            local: socket.getsockname(),
            peer: socket.getpeername(),
            added_by: ProcessRef::current().number(),
        };
        Arc::pin_init(
            pin_init!(Self {
                route,
                socket,
                dead: Atomic::new(false),
                origin,
                sent: Atomic::new(0),
                received: Atomic::new(0),
                asked: Atomic::new(0),
                answered: Atomic::new(0),
                end <- new_mutex!(None, "rnbd::link_end"),
            }),
            GFP_KERNEL,
        )
    }

    /// Counts bytes that went out. Its one sender at a time calls this.
    pub(crate) fn count_sent(&self, bytes: usize) {
        count(&self.sent, bytes);
    }

    /// Counts requests that are going out. Its one sender at a time calls this.
    pub(crate) fn count_asked(&self, requests: usize) {
        count(&self.asked, requests);
    }

    /// Takes back that a request was going out: nothing of it went. Its one sender at a time calls
    /// this.
    pub(crate) fn count_unasked(&self) {
        let asked = self.asked.load(Relaxed);
        self.asked.store(asked.wrapping_sub(1), Relaxed);
    }

    /// Counts bytes that came in. Its receiver alone calls this.
    pub(crate) fn count_received(&self, bytes: usize) {
        count(&self.received, bytes);
    }

    /// How many bytes came in and went out.
    pub(crate) fn bytes(&self) -> u64 {
        let (sent, received) = (self.sent.load(Relaxed), self.received.load(Relaxed));
        sent.wrapping_add(received)
    }

    /// Counts a request that is answered. Its receiver alone calls this.
    pub(crate) fn count_answered(&self) {
        count(&self.answered, 1);
    }

    /// Whether the server owes no answer, as far as can be told without a lock.
    pub(crate) fn is_quiet(&self) -> bool {
        self.asked.load(Relaxed) == self.answered.load(Relaxed)
    }

    /// Whether the link died.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Relaxed)
    }

    /// Marks the link as dead. True for the first caller alone, which then shuts the socket down.
    ///
    /// Fully ordered: a task that puts a request on the wire after this sees the death, or else one
    /// that looks for stranded requests after this sees the request.
    pub(crate) fn mark_dead(&self) -> bool {
        !self.dead.xchg(true, Full)
    }

    /// Says how the link died, and shuts its socket down, so that what waits on it wakes, and
    /// the peer sees the end. May sleep.
    ///
    /// With answers owed, what the peer has not taken must not follow: those requests are done
    /// elsewhere or have failed, and a write that came late would undo a newer one. Otherwise all
    /// that can be on its way is the message that says good-bye.
    pub(crate) fn shutdown(&self, death: DeadReason) {
        *self.end.lock() = Some(End {
            death,
            at: Instant::now(),
        });
        if self.is_quiet() {
            self.socket.shutdown();
        } else {
            self.socket.abort();
        }
    }

    /// Sends the message that nothing more will come (`NBD_CMD_DISC`), while nothing else is sent
    /// here. Does not wait. Returns how many bytes went, and what stopped the rest.
    pub(crate) fn send_disconnect(&self) -> (usize, Result) {
        let message = wire::Request::DISCONNECT.encode();
        self.socket
            .send(&mut Kvec::source(&message), More::Ends, Wait::Never)
    }

    /// How and when the link died; none, while it lives or is just dying.
    pub(crate) fn end(&self) -> Option<End> {
        *self.end.lock()
    }
}

/// Adds to a counter that has no other writer.
fn count(counter: &Atomic<u64>, more: usize) {
    counter.store(counter.load(Relaxed).wrapping_add(more as u64), Relaxed);
}
