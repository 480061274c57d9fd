// SPDX-License-Identifier: GPL-2.0

//! Which connection a request goes over, and what becomes of it when that one is dead.

/// The connection that requests of a hardware queue are for: each queue has one, and several may
/// have the same. None if there is no connection at all.
pub fn own<T>(connections: &[T], queue: u32) -> Option<&T> {
    connections.get(own_place(connections, queue)?)
}

fn own_place<T>(connections: &[T], queue: u32) -> Option<usize> {
    usize::try_from(queue).ok()?.checked_rem(connections.len())
}

/// The connection to send a request of a hardware queue on: its own if that lives, or the next one
/// that does.
pub fn choose<T>(connections: &[T], queue: u32, lives: impl Fn(&T) -> bool) -> Option<&T> {
    let (before, from) = connections.split_at_checked(own_place(connections, queue)?)?;
    from.iter()
        .chain(before)
        .find(|connection| lives(connection))
}

/// What becomes of a request that its connection cannot serve, or cannot any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It fails.
    Fail,
    /// It comes again at once: another connection lives.
    Retry,
    /// It waits until there is a connection again.
    Wait,
}

/// Decides it by how many connections live, and whether to wait for another when none does.
pub fn disposition(draining: bool, live: u32, may_wait: impl FnOnce() -> bool) -> Disposition {
    if draining {
        Disposition::Fail
    } else if live > 0 {
        Disposition::Retry
    } else if may_wait() {
        Disposition::Wait
    } else {
        Disposition::Fail
    }
}
