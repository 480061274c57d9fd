// SPDX-License-Identifier: GPL-2.0
//! The tables that rnbd has in debugfs, and nbd.ko's files beside them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

const DEBUGFS: &str = "/sys/kernel/debug";

/// A socket that a device has or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    pub index: u32,
    pub family: String,
    pub local: String,
    pub peer: String,
    pub live: bool,
    /// How long ago it died.
    pub dead_ms: Option<u64>,
    pub epoch: u32,
    /// The process that gave it to the driver.
    pub owner: i32,
    pub in_flight: u32,
    pub sent: u64,
    pub received: u64,
    /// Why it died.
    pub reason: Option<String>,
}

impl Connection {
    /// `index family local peer state since_ms epoch owner inflight sent received reason`
    fn parse(line: &str) -> Option<Connection> {
        let words: Vec<&str> = line.split(' ').collect();
        let [index, family, ..] = words[..] else { return None };
        // A path may have spaces in it, which are not marked as such.
        let state = (4..words.len()).find(|at| {
            let since = words.get(at + 1).copied().unwrap_or_default();
            matches!(words[*at], "live" | "dead") && (since == "-" || since.parse::<u64>().is_ok())
        })?;
        let [state_word, since, epoch, owner, in_flight, sent, received, ..] = words[state..] else {
            return None;
        };
        let reason = words.get(state + 7..)?.join(" ");
        let local_end = if state == 4 { 3 } else { 2 + (state - 2) / 2 };
        Some(Connection {
            index: index.parse().ok()?,
            family: family.to_owned(),
            local: words[2..local_end].join(" "),
            peer: words[local_end..state].join(" "),
            live: state_word == "live",
            dead_ms: since.parse().ok(),
            epoch: epoch.parse().ok()?,
            owner: owner.parse().ok()?,
            in_flight: in_flight.parse().ok()?,
            sent: sent.parse().ok()?,
            received: received.parse().ok()?,
            reason: Some(reason).filter(|reason| reason != "-" && !reason.is_empty()),
        })
    }

    /// What it leads to, as far as that has a name.
    pub fn place(&self) -> &str {
        match (self.peer.as_str(), self.local.as_str()) {
            ("-" | "", "-" | "") => &self.family,
            ("-" | "", local) => local,
            (peer, _) => peer,
        }
    }
}

/// A request that a server owes an answer to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    pub age_ms: Option<u64>,
    pub operation: String,
    pub sector: u64,
    pub bytes: u32,
    pub connection: u32,
}

impl Request {
    /// `age_ms operation sector bytes connection cookie`
    fn parse(line: &str) -> Option<Request> {
        let mut words = line.split(' ');
        Some(Request {
            age_ms: words.next()?.parse().ok(),
            operation: words.next()?.to_owned(),
            sector: words.next()?.parse().ok()?,
            bytes: words.next()?.parse().ok()?,
            connection: words.next()?.parse().ok()?,
        })
    }
}

/// Why there is nothing to read in debugfs, if so.
pub fn unreadable() -> Option<&'static str> {
    match fs::read_dir(Path::new(DEBUGFS).join("nbd")) {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some("debugfs is root's alone"),
        Err(_) if !Path::new(DEBUGFS).join("block").exists() => {
            Some("debugfs is not mounted (mount -t debugfs debugfs /sys/kernel/debug)")
        }
        Err(_) => Some("the driver has no directory in debugfs"),
    }
}

/// What debugfs has of a device, in the driver's directory.
fn file(index: u32, name: &str) -> Option<String> {
    fs::read_to_string(Path::new(DEBUGFS).join(format!("nbd/nbd{index}/{name}"))).ok()
}

fn rows<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
    text.lines().skip(1).filter_map(parse).collect()
}

/// The table of connections; nbd.ko has none.
pub fn connections(index: u32) -> Option<Vec<Connection>> {
    Some(rows(&file(index, "connections")?, Connection::parse))
}

/// The table of requests; nbd.ko has none.
pub fn requests(index: u32) -> Option<Vec<Request>> {
    Some(rows(&file(index, "requests")?, Request::parse))
}

/// The names of the export's flags.
pub fn flags(index: u32) -> Option<Vec<String>> {
    Some(flag_names(&file(index, "flags")?))
}

fn flag_names(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with("NBD_FLAG_")).map(str::to_owned).collect()
}

/// Whether there is a bound to how long a request may take. It is in jiffies.
pub fn has_timeout(index: u32) -> Option<bool> {
    Some(file(index, "timeout")?.trim() != "0")
}

/// Requests that the block layer has given out, or has got back to give out again: those too that wait for a
/// connection.
pub fn given_out(index: u32) -> Option<u64> {
    let folder = Path::new(DEBUGFS).join(format!("block/nbd{index}"));
    let mut held = BTreeSet::new();
    for queue in fs::read_dir(&folder).ok()?.flatten() {
        if queue.file_name().to_string_lossy().starts_with("hctx") {
            held.extend(request_names(&queue.path().join("busy")));
            held.extend(request_names(&queue.path().join("dispatch")));
        }
    }
    held.extend(request_names(&folder.join("requeue_list")));
    let busy = tags_in_use(&folder);
    Some((held.len() as u64).max(busy))
}

/// The block layer's lists have a line a request, which begins with its address.
fn request_names(path: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn tags_in_use(folder: &Path) -> u64 {
    let queues = fs::read_dir(folder).into_iter().flatten().flatten();
    queues
        .filter_map(|queue| fs::read_to_string(queue.path().join("tags")).ok())
        .map(|text| busy(&text))
        .sum()
}

/// Of the ordinary tags; reserved ones come behind.
fn busy(tags: &str) -> u64 {
    let ordinary = tags.split("breserved_tags").next().unwrap_or_default();
    let line = ordinary.lines().find_map(|line| line.strip_prefix("busy="));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_connections_is_read() {
        let text = "index family local peer state since_ms epoch owner inflight sent received reason\n\
                    0 tcp4 127.0.0.1:33210 127.0.0.1:10809 live - 0 345 2 4096 1234 -\n\
                    1 unix - /run/nbd.sock dead 1500 3 345 0 28 0 the server closed it\n\
                    2 unix - - live - 0 345 0 0 0 -\n\
                    a line of the future\n";
        let table = rows(text, Connection::parse);
        assert_eq!(table.len(), 3);
        assert_eq!((table[0].place(), table[0].live, table[0].in_flight), ("127.0.0.1:10809", true, 2));
        assert_eq!((table[0].dead_ms, table[0].reason.as_deref()), (None, None));
        assert_eq!((table[1].place(), table[1].live), ("/run/nbd.sock", false));
        assert_eq!((table[1].dead_ms, table[1].epoch), (Some(1500), 3));
        assert_eq!(table[1].reason.as_deref(), Some("the server closed it"));
        assert_eq!(table[2].place(), "unix");
    }

    #[test]
    fn a_path_with_spaces_does_not_shift_the_table() {
        let line = "0 unix - /run/my live dead server live - 0 345 0 4096 1234 -";
        let row = Connection::parse(line).unwrap();
        assert_eq!((row.sent, row.received, row.live), (4096, 1234, true));
    }

    #[test]
    fn the_table_of_requests_is_read() {
        let text =
            "age_ms operation sector bytes connection cookie\n12 read 8 4096 1 0x1\n- flush 0 0 0 0x2\n";
        let table = rows(text, Request::parse);
        assert_eq!(table.len(), 2);
        assert_eq!(
            (table[0].age_ms, table[0].operation.as_str(), table[0].connection),
            (Some(12), "read", 1)
        );
        assert_eq!(table[1].age_ms, None);
    }

    #[test]
    fn flags_and_tags_are_read() {
        let flags = "Hex: 0x00000105\n\nKnown flags:\nNBD_FLAG_HAS_FLAGS\nNBD_FLAG_SEND_FLUSH\n";
        assert_eq!(flag_names(flags), ["NBD_FLAG_HAS_FLAGS", "NBD_FLAG_SEND_FLUSH"]);
        let tags = "nr_tags=128\nnr_reserved_tags=0\nactive_queues=0\n\nbitmap_tags:\ndepth=128\nbusy=3\ncleared=1\n";
        assert_eq!(busy(tags), 3);
    }
}
