// SPDX-License-Identifier: GPL-2.0

//! The atomic word that gives the right to answer a request (invariant G5).
//!
//! Each request has one [`Word`]. It holds the request's state, the connection and epoch that it
//! was sent on, and the sequence number of its cookie; every transition is one compare-exchange on
//! the whole of it, so that exactly one party wins the right to answer:
//!
//! ```text
//!            begin              sent               reply
//!  Answered ───────▶ Sending ────────▶ Sent ──────────────▶ Receiving
//!      ▲               │ │              │ ◀─────────────────────┤ Claim::withhold
//!      │   abandon     │ │  reply       │  claim               │ Claim::answer
//!      ├───────────────┘ └──────────────┼─────────▶────────────┤
//!      └────────────────────────────────┴──────────────────────┘
//! ```
//!
//! A reply may overtake the end of its own send: the server answers as soon as it has the bytes,
//! the sender learns that they are gone a little later. Then the receiver has the answer, and the
//! sender just leaves.

use super::cookie::{Cookie, Sequence};

/// The one atomic 64-bit integer that a [`Word`] needs.
///
/// The kernel gives its own atomics, the host loom's: the logic is the same file.
pub trait AtomicWord {
    /// An atomic that holds `value`.
    fn new(value: u64) -> Self;

    /// Reads, with acquire ordering.
    fn load(&self) -> u64;

    /// Writes, with release ordering.
    fn store(&self, value: u64);

    /// Writes `new` if the value is `old`, fully ordered; the value met instead otherwise.
    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64>;
}

/// Which socket a request was sent on: the connection's index, and the epoch of that connection,
/// which counts the sockets it has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the connection in the generation's array, below [`Route::MAX_CONNECTIONS`].
    pub connection: u16,
    /// How many sockets the connection had before this one.
    pub epoch: u16,
}

impl Route {
    /// How many connections a generation can have.
    pub const MAX_CONNECTIONS: usize = 1 << 12;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the block layer, or about to go back to it.
    Answered,
    /// A sender is writing it to a socket.
    Sending,
    /// On the wire; the reply is awaited.
    Sent,
    /// A receiver has matched the reply and is reading what follows.
    Receiving,
}

/// What the 64 bits mean: sequence (32), connection (12), epoch (16), state (4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    sequence: u32,
    route: Route,
    state: State,
}

impl Fields {
    const fn pack(self) -> u64 {
        let state = match self.state {
            State::Answered => 0,
            State::Sending => 1,
            State::Sent => 2,
            State::Receiving => 3,
        };
        ((self.sequence as u64) << 32)
            | (((self.route.connection & 0xfff) as u64) << 20)
            | ((self.route.epoch as u64) << 4)
            | state
    }

    const fn unpack(word: u64) -> Self {
        Self {
            sequence: (word >> 32) as u32,
            route: Route {
                connection: (word >> 20) as u16 & 0xfff,
                epoch: (word >> 4) as u16,
            },
            state: match word & 0xf {
                1 => State::Sending,
                2 => State::Sent,
                3 => State::Receiving,
                _ => State::Answered,
            },
        }
    }

    const fn with(self, state: State) -> Self {
        Self { state, ..self }
    }
}

/// A reply that answers nothing: its request is unknown, already answered, or was sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// The right to answer a request. See the [module](self).
pub struct Word<A: AtomicWord>(A);

impl<A: AtomicWord> Default for Word<A> {
    fn default() -> Self {
        Self(A::new(0))
    }
}

impl<A: AtomicWord> Word<A> {
    fn fields(&self) -> Fields {
        Fields::unpack(self.0.load())
    }

    fn change(&self, from: Fields, to: State) -> Result<(), Fields> {
        self.0
            .compare_exchange(from.pack(), from.with(to).pack())
            .map_err(Fields::unpack)
    }

    /// Whether its reply is being read.
    pub fn is_receiving(&self) -> bool {
        self.fields().state == State::Receiving
    }

    /// Starts to send the request on `route`, as the next of that connection's `sequence`.
    ///
    /// To be called by the task that the block layer has just handed the request to: no other
    /// changes the word while it is answered.
    pub fn begin(&self, route: Route, sequence: &mut Sequence) -> Sending<'_, A> {
        let fields = Fields {
            sequence: sequence.advance(),
            route,
            state: State::Sending,
        };
        self.0.store(fields.pack());
        Sending { word: self, fields }
    }

    /// Takes up a send that was begun and interrupted, if it still is that send.
    pub fn resume(&self, mark: SendMark) -> Option<Sending<'_, A>> {
        let fields = self.fields();
        (fields == mark.0).then_some(Sending { word: self, fields })
    }

    /// Matches a reply that came over `route` with this request.
    ///
    /// On success the caller has the right, and the duty, to answer.
    pub fn reply(&self, cookie: Cookie, route: Route) -> Result<Claim<'_, A>, Stale> {
        let mut fields = self.fields();
        loop {
            let awaited = matches!(fields.state, State::Sending | State::Sent);
            if !awaited || fields.sequence != cookie.sequence() || fields.route != route {
                return Err(Stale);
            }
            match self.change(fields, State::Receiving) {
                Ok(()) => return Ok(self.claimed(fields)),
                Err(met) => fields = met,
            }
        }
    }

    /// Takes the right to answer from the server at the other end of `route`, which is dead.
    ///
    /// Gives nothing while a sender or a receiver has the request: they notice that the route is
    /// dead.
    pub fn claim_from(&self, route: Route) -> Option<Claim<'_, A>> {
        let fields = self.fields();
        (fields.route == route)
            .then(|| self.claim_sent(fields))
            .flatten()
    }

    /// Takes the right to answer from any server; for a time-out and for draining.
    pub fn claim(&self) -> Option<Claim<'_, A>> {
        self.claim_sent(self.fields())
    }

    fn claim_sent(&self, fields: Fields) -> Option<Claim<'_, A>> {
        if fields.state != State::Sent || self.change(fields, State::Receiving).is_err() {
            return None;
        }
        Some(self.claimed(fields))
    }

    fn claimed(&self, fields: Fields) -> Claim<'_, A> {
        Claim {
            word: self,
            fields: fields.with(State::Receiving),
        }
    }

    /// The cookie that the request has on the wire, for its unique tag `tag`.
    pub fn cookie(&self, tag: u32) -> Cookie {
        Cookie::new(self.fields().sequence, tag)
    }

    /// The route that the request is on, unless it is answered.
    pub fn route(&self) -> Option<Route> {
        let fields = self.fields();
        (fields.state != State::Answered).then_some(fields.route)
    }
}

/// Names one send of one request, to take it up again with [`Word::resume`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendMark(Fields);

/// The right to put a request on the wire.
#[must_use]
pub struct Sending<'a, A: AtomicWord> {
    word: &'a Word<A>,
    fields: Fields,
}

impl<'a, A: AtomicWord> Sending<'a, A> {
    /// The cookie to send, for the request's unique tag `tag`.
    pub fn cookie(&self, tag: u32) -> Cookie {
        Cookie::new(self.fields.sequence, tag)
    }

    /// Leaves the send unfinished, to be taken up again.
    pub fn interrupt(self) -> SendMark {
        SendMark(self.fields)
    }

    /// All bytes are on their way: from here on a reply is awaited. (It may be here already.)
    pub fn sent(self) {
        // The only other change from Sending is a reply's, and then the receiver goes on.
        let _ = self.word.change(self.fields, State::Sent);
    }

    /// The bytes could not be sent: takes the right to answer, unless a reply has.
    pub fn abandon(self) -> Option<Claim<'a, A>> {
        self.word.change(self.fields, State::Receiving).ok()?;
        Some(self.word.claimed(self.fields))
    }
}

/// The right, and the duty, to answer a request: there is never more than one.
#[must_use]
pub struct Claim<'a, A: AtomicWord> {
    word: &'a Word<A>,
    fields: Fields,
}

impl<A: AtomicWord> Claim<'_, A> {
    /// The request is answered. To be called just before it goes back to the block layer.
    pub fn answer(self) {
        self.word.0.store(self.fields.with(State::Answered).pack());
    }

    /// The reply counts as if it had not come: it is awaited again.
    pub fn withhold(self) {
        self.word.0.store(self.fields.with(State::Sent).pack());
    }
}
