// SPDX-License-Identifier: GPL-2.0
//! How long each call may take in each condition: the promise, of which the tests and the table in docs/design.md are
//! made.

use std::fmt::Write as _;

use nix::errno::Errno;

use super::calls::{Answer, Call};
use super::conditions::Condition;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It ends by itself within so many seconds.
    Within(u64),
    /// It ends when the server has answered what it asks, as it does.
    Answered,
    /// It waits for the server by its nature, and DISCONNECT ends it.
    UntilEnd,
    NotApplicable(&'static str),
}

use Bound::{Answered, NotApplicable, UntilEnd, Within};

const NOT_FROZEN: &str = "a task that waits for the server is not frozen: whatever the driver, the kernel gives up after \
    `pm_freeze_timeout`, 20 s by default, with EBUSY and a stack trace, for which a test would fail";
const OPEN_ELSEWHERE: &str = "somebody else has it open: it is not the last";

/// The promise.
pub fn bound(call: Call, condition: Condition) -> Bound {
    match call {
        Call::SetBlksize | Call::ReconfigureBlockSize => match condition {
            Condition::Slow => Within(5),
            _ if waits(condition) => Within(5),
            _ => Within(1),
        },
        Call::Disconnect | Call::ConnectOther => Within(6),
        Call::ConnectAnew => Within(11),
        Call::Handover => Within(4),
        Call::Read | Call::Fsync | Call::FlushBuffers | Call::RereadPartitions | Call::QueueWrite => {
            by_server(condition)
        }
        Call::LimitsWrite => by_server(condition),
        Call::QueueRead if condition == Condition::LimitsWriter => UntilEnd,
        Call::Open | Call::OpenExclusive | Call::Close if condition == Condition::ScanWaiting => UntilEnd,
        // It may be the first after a change of the size: it reads the partition table.
        Call::Open | Call::OpenExclusive if condition == Condition::Slow => Answered,
        Call::LastClose => match condition {
            Condition::HolderStopped
            | Condition::HolderFrozen
            | Condition::ClientStopped
            | Condition::ClientFrozen
            | Condition::LimitsWriter
            | Condition::ScanWaiting => NotApplicable(OPEN_ELSEWHERE),
            _ => by_server(condition),
        },
        // Who serves is frozen before who waits.
        Call::Suspend if condition == Condition::Slow || waits(condition) => NotApplicable(NOT_FROZEN),
        Call::Suspend => Within(20),
        _ => Within(1),
    }
}

/// Whether requests wait for the server, as long as it pleases.
fn waits(condition: Condition) -> bool {
    match condition {
        Condition::Silent
        | Condition::NotReading
        | Condition::DeadWaiting
        | Condition::LimitsWriter
        | Condition::ScanWaiting
        | Condition::MemoryShort => true,
        Condition::Slow
        | Condition::HalfClosed
        | Condition::Dead
        | Condition::HolderStopped
        | Condition::HolderFrozen
        | Condition::ClientStopped
        | Condition::ClientFrozen => false,
    }
}

/// The bound of what is or waits for a request.
fn by_server(condition: Condition) -> Bound {
    match condition {
        Condition::Slow => Answered,
        _ if waits(condition) => UntilEnd,
        _ => Within(1),
    }
}

/// What the answer must be, where that is promised too.
pub fn answer(call: Call, condition: Condition) -> Option<Answer> {
    match call {
        Call::Connect => Some(Err(Errno::EBUSY)),
        // It was attached by ioctl then, which these are not for.
        Call::Reconfigure | Call::ReconfigureBlockSize | Call::ReconfigureSockets | Call::Handover
            if condition.is_clients() =>
        {
            Some(Err(Errno::EINVAL))
        }
        // Attached by netlink then, which these are not for.
        Call::SetSock | Call::DoIt | Call::SetBlksize | Call::SetTimeout | Call::SetFlags
            if condition.is_lost() =>
        {
            Some(Err(Errno::EINVAL))
        }
        Call::SetSock | Call::DoIt => Some(Err(Errno::EBUSY)),
        Call::Rmmod => Some(Err(Errno::EWOULDBLOCK)),
        Call::SetBlksize | Call::ReconfigureBlockSize if waits(condition) => Some(Err(Errno::EBUSY)),
        Call::IoctlDisconnect
        | Call::ClearSock
        | Call::Disconnect
        | Call::ConnectOther
        | Call::Status
        | Call::SetTimeout
        | Call::SetFlags
        | Call::Reconfigure
        | Call::Handover => Some(Ok(())),
        _ => None,
    }
}

fn word(bound: Bound, reasons: &mut Vec<&'static str>) -> String {
    match bound {
        Within(seconds) => format!("{seconds} s"),
        Answered => "answer".to_owned(),
        UntilEnd => "DISCONNECT".to_owned(),
        NotApplicable(reason) => {
            let known = reasons.iter().position(|known| *known == reason);
            let number = known.unwrap_or_else(|| {
                reasons.push(reason);
                reasons.len() - 1
            });
            format!("– ({})", number + 1)
        }
    }
}

/// The table, as docs/design.md has it.
pub fn markdown() -> String {
    let mut reasons = Vec::new();
    let names: Vec<_> = Condition::ALL.iter().map(|condition| format!("`{}`", condition.name())).collect();
    let mut text = format!("| | {} |\n|-|{}\n", names.join(" | "), "-|".repeat(names.len()));
    for call in Call::ALL {
        let cells: Vec<_> =
            Condition::ALL.iter().map(|condition| word(bound(call, *condition), &mut reasons)).collect();
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {} |", call.name(), cells.join(" | "));
    }
    text.push('\n');
    for (number, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "({}) {reason}.", number + 1);
    }
    text.push('\n');
    for condition in Condition::ALL {
        let _ = writeln!(text, "- `{}`: {}", condition.name(), condition.about());
    }
    text
}

#[cfg(test)]
mod tests {
    const BEGIN: &str = "<!-- bounds: made by `rnbd-test bounds-table`, not by hand -->\n";
    const END: &str = "<!-- end of bounds -->";

    #[test]
    fn the_table_in_the_design_is_the_one_that_is_tested() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/design.md");
        let design = std::fs::read_to_string(path).unwrap();
        let (_, rest) = design.split_once(BEGIN).expect("docs/design.md has no table of bounds");
        let (table, _) = rest.split_once(END).expect("the table of bounds does not end");
        assert!(
            table == super::markdown(),
            "put there what `rnbd-test bounds-table` prints:\n{}",
            super::markdown()
        );
    }
}
