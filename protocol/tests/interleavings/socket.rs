// SPDX-License-Identifier: GPL-2.0

//! A socket, and the server at its other end: it answers, or not, as it was told to.

use loom::sync::{Condvar, Mutex};
use rnbd_protocol::cookie::Cookie;
use std::collections::VecDeque;

/// What happens when a request is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The server answers.
    Answer,
    /// The server answers twice.
    AnswerTwice,
    /// The server answers what it was asked before, under the same tag.
    AnswerEarlier,
    /// The server takes it, and says nothing.
    Silence,
    /// The server closes.
    Close,
    /// The server had closed before the socket was given to the driver.
    Closed,
    /// The server takes nothing: the sender waits until the socket is shut down.
    Stall,
    /// A signal stops the sender after a part.
    Signal,
    /// A signal stops the sender after a part, and the server answers that.
    SignalAndAnswer,
}

/// How a send went.
#[derive(Clone, Copy)]
pub enum Sent {
    Whole,
    /// A signal came before any of it went.
    NotBegun,
    /// A signal came after a part.
    Interrupted,
    Failed,
}

/// What comes.
pub enum Received {
    Reply(Cookie),
    /// Nothing yet, and it was not to be waited for.
    Nothing,
    /// The socket is shut down.
    End,
}

struct State {
    shut: bool,
    replies: VecDeque<Cookie>,
    events: VecDeque<Event>,
}

pub struct Socket {
    state: Mutex<State>,
    changed: Condvar,
}

impl Socket {
    /// A socket where so much happens, one event for each send, and after that every request is
    /// answered.
    pub fn new(events: &[Event]) -> Self {
        Self {
            state: Mutex::new(State {
                shut: events.first() == Some(&Event::Closed),
                replies: VecDeque::new(),
                events: events.iter().copied().collect(),
            }),
            changed: Condvar::new(),
        }
    }

    pub fn send(&self, cookie: Cookie) -> Sent {
        let mut state = self.state.lock().unwrap();
        if state.shut {
            return Sent::Failed;
        }
        let event = state.events.pop_front().unwrap_or(Event::Answer);
        match event {
            Event::Answer => state.replies.push_back(cookie),
            Event::AnswerTwice => state.replies.extend([cookie, cookie]),
            Event::AnswerEarlier => {
                let earlier = cookie.sequence().wrapping_sub(1);
                state.replies.push_back(Cookie::new(earlier, cookie.tag()));
            }
            Event::Silence => {}
            Event::Close | Event::Closed => state.shut = true,
            Event::Stall => {
                while !state.shut {
                    state = self.changed.wait(state).unwrap();
                }
                return Sent::Failed;
            }
            Event::Signal => return Sent::Interrupted,
            Event::SignalAndAnswer => {
                state.replies.push_back(cookie);
                drop(state);
                self.changed.notify_all();
                return Sent::Interrupted;
            }
        }
        drop(state);
        self.changed.notify_all();
        Sent::Whole
    }

    /// The next reply.
    pub fn receive(&self, waits: bool) -> Received {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(reply) = state.replies.pop_front() {
                return Received::Reply(reply);
            }
            if state.shut {
                return Received::End;
            }
            if !waits {
                return Received::Nothing;
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    pub fn shutdown(&self) {
        self.state.lock().unwrap().shut = true;
        self.changed.notify_all();
    }
}
