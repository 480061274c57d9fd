// SPDX-License-Identifier: GPL-2.0

//! How far the end of a generation has come, and who sees to it.
//!
//! A generation that was started by ioctl is kept by the task in `NBD_DO_IT`; one of netlink by the
//! task that brings it up, which then goes away for good. A task that is stopped, traced or frozen
//! must leave `NBD_DO_IT` too, and nothing has ended by that: it comes back when it goes on. While no
//! task is there a worker ends the generation, if it comes to that. One of them does, and one alone.
//!
//! ```text
//!            leave                take_if_due, take
//!   Here ────────────▶ Away ──────────────────────────▶ Ending
//!    ▲                  │
//!    └──────────────────┘ come_back
//! ```

use super::setup::Interface;

/// Who sees to the end of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// A task, which looks by itself.
    Here,
    /// Nobody, until the end is due.
    Away,
    /// A worker, which ends it.
    Ending,
}

/// How a task finds a generation to which it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeBack {
    /// It keeps it from here on.
    Done,
    /// Another task keeps it.
    Occupied,
    /// A worker ends it.
    TooLate,
}

/// How far the end of a generation has come. Under a lock of the driver's.
#[derive(Debug)]
pub struct End {
    interface: Interface,
    keeper: Keeper,
    receivers: usize,
    asked: bool,
}

impl End {
    /// Of a generation that a task is bringing up.
    pub fn new(interface: Interface) -> Self {
        Self {
            interface,
            keeper: Keeper::Here,
            receivers: 0,
            asked: false,
        }
    }

    /// A receiver begins.
    pub fn receiver_comes(&mut self) {
        self.receivers = self.receivers.saturating_add(1);
    }

    /// A receiver has left.
    pub fn receiver_goes(&mut self) {
        self.receivers = self.receivers.saturating_sub(1);
    }

    /// Whether no receiver is left.
    pub fn is_deserted(&self) -> bool {
        self.receivers == 0
    }

    /// The end is asked for.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether it was.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// Whether the generation is to be ended. One of netlink outlives its connections.
    pub fn is_due(&self) -> bool {
        self.asked || (self.interface == Interface::Ioctl && self.is_deserted())
    }

    /// Whether no task keeps the generation, and no worker ends it.
    pub fn is_away(&self) -> bool {
        self.keeper == Keeper::Away
    }

    /// The task that keeps the generation goes away.
    pub fn leave(&mut self) {
        if self.keeper == Keeper::Here {
            self.keeper = Keeper::Away;
        }
    }

    /// A task comes to keep the generation again.
    pub fn come_back(&mut self) -> ComeBack {
        match self.keeper {
            Keeper::Here => ComeBack::Occupied,
            Keeper::Ending => ComeBack::TooLate,
            Keeper::Away => {
                self.keeper = Keeper::Here;
                ComeBack::Done
            }
        }
    }

    /// True if the end is due and no task is there: then the caller sees to it that a worker ends the
    /// generation. True once.
    pub fn take_if_due(&mut self) -> bool {
        self.is_due() && self.take()
    }

    /// True if no task is there: then the caller ends the generation. True once.
    pub fn take(&mut self) -> bool {
        let away = self.keeper == Keeper::Away;
        if away {
            self.keeper = Keeper::Ending;
        }
        away
    }
}
