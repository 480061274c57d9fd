// SPDX-License-Identifier: GPL-2.0

//! A device's journal: its number, and the last thing that went wrong with it.

use super::link::DeadReason;
use crate::abstractions::ratelimit::RatelimitState;
use kernel::{
    fmt, new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// Where everything that belongs to a device says what went wrong.
#[pin_data]
pub(crate) struct Journal {
    /// The device's number.
    pub(crate) index: u32,
    /// The last thing that went wrong. Innermost of all locks.
    #[pin]
    last_error: Mutex<Option<LastError>>,
    /// Bounds how often refusals are said in the log.
    pub(crate) log_limit: RatelimitState,
    /// Tells user space that a connection is dead.
    link_dead: fn(u32),
}

/// Something that went wrong with a device.
#[derive(Clone, Copy)]
pub(crate) enum LastError {
    /// A connection died while its generation ran.
    Connection {
        generation: u64,
        index: u16,
        death: DeadReason,
    },
    /// A generation could not be started.
    Start { generation: u64, error: Error },
    /// The task that had started a generation got a signal, or died.
    Interrupted { generation: u64 },
}

impl fmt::Display for LastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection {
                generation,
                index,
                death,
            } => f.write_fmt(fmt!("generation {generation}, connection {index}: {death}")),
            Self::Start { generation, error } => {
                write!(f, "generation {generation}: cannot start ({error:?})")
            }
            Self::Interrupted { generation } => write!(
                f,
                "generation {generation}: the task in NBD_DO_IT got a signal"
            ),
        }
    }
}

impl Journal {
    /// The journal of device `index`. `link_dead` is called with that number for each connection
    /// that dies by itself; it may sleep, but not wait for another task.
    pub(crate) fn new(index: u32, link_dead: fn(u32)) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                index,
                last_error <- new_mutex!(None, "rnbd::last_error"),
                log_limit: RatelimitState::new(),
                link_dead,
            }),
            GFP_KERNEL,
        )
    }

    /// Keeps in mind what went wrong. May sleep.
    pub(crate) fn note(&self, error: LastError) {
        *self.last_error.lock() = Some(error);
        if matches!(error, LastError::Connection { .. }) {
            (self.link_dead)(self.index);
        }
    }

    /// The last thing that went wrong. May sleep.
    pub(crate) fn last_error(&self) -> Option<LastError> {
        *self.last_error.lock()
    }
}
