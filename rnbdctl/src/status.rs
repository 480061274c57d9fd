// SPDX-License-Identifier: GPL-2.0
//! `status`: the table of devices, and all about one.

use std::fmt::Write as _;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::cli::StatusArgs;
use crate::device::{self, Details, Device};
use crate::diagnosis::{self, Advice};
use crate::text;

/// Most requests that are listed.
const MAX_REQUESTS: usize = 10;

/// What is not known.
const UNKNOWN: &str = "-";

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    details: &'a Details,
    diagnosis: &'a [Advice],
}

pub fn run(args: &StatusArgs) -> Result<()> {
    let Some(index) = args.device else {
        let devices = device::all()?;
        return if args.json {
            text::print(&format!("{}\n", serde_json::to_string_pretty(&devices)?))
        } else if devices.is_empty() {
            text::print("there are no devices; connecting makes one\n")
        } else {
            text::print(&table(&devices))
        };
    };
    let details = Details::read(device::one(index)?);
    let diagnosis = diagnosis::of(&details);
    if args.json {
        let report = Report { details: &details, diagnosis: &diagnosis };
        return text::print(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    text::print(&page(&details, &diagnosis))
}

/// Columns without lines between them.
fn columns(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for at in right {
        if let Some(column) = table.column_mut(*at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.push(String::new());
    lines.join("\n")
}

/// One line a device.
pub fn table(devices: &[Device]) -> String {
    const HEADER: [&str; 9] =
        ["DEVICE", "STATE", "GENERATION", "OWNER", "LIVE", "SIZE", "REQUESTS", "OLDEST", "LAST ERROR"];
    columns(&HEADER, &[2, 4, 5, 6, 7], devices.iter().map(row))
}

fn known<T: ToString>(value: Option<T>) -> String {
    value.map_or(UNKNOWN.to_owned(), |value| value.to_string())
}

fn row(device: &Device) -> Vec<String> {
    let connections = device.connections.filter(|connections| connections.all > 0);
    vec![
        format!("nbd{}", device.index),
        device.state.to_string(),
        known(device.generation),
        known(device.owner.as_ref()),
        known(connections.map(|connections| format!("{}/{}", connections.live, connections.all))),
        if device.size == 0 { UNKNOWN.to_owned() } else { text::size(device.size) },
        if device.requests == 0 { UNKNOWN.to_owned() } else { device.requests.to_string() },
        known(device.oldest_request_ms.map(text::duration)),
        known(device.last_error.as_ref()),
    ]
}

/// All about one device, and then what it means.
fn page(details: &Details, diagnosis: &[Advice]) -> String {
    let mut page = facts(details);
    if let Some(table) = details.connection_table.as_ref().filter(|table| !table.is_empty()) {
        let rows = table.iter().map(|connection| {
            vec![
                connection.index.to_string(),
                connection.family.clone(),
                connection.place().to_owned(),
                match connection.dead_ms {
                    Some(since) => format!("dead for {}", text::duration(since)),
                    None => "live".to_owned(),
                },
                connection.epoch.to_string(),
                connection.owner.to_string(),
                connection.in_flight.to_string(),
                text::size(connection.sent),
                text::size(connection.received),
                known(connection.reason.as_ref()),
            ]
        });
        const HEADER: [&str; 10] = [
            "CONN", "FAMILY", "PEER", "STATE", "EPOCH", "GIVEN BY", "REQUESTS", "SENT", "RECEIVED", "REASON",
        ];
        let _ = write!(page, "\n{}", columns(&HEADER, &[0, 4, 5, 6, 7, 8], rows));
    }
    if let Some(table) = details.request_table.as_ref().filter(|table| !table.is_empty()) {
        let mut oldest: Vec<_> = table.iter().collect();
        oldest.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
        let rows = oldest.iter().take(MAX_REQUESTS).map(|request| {
            vec![
                known(request.age_ms.map(text::duration)),
                request.operation.clone(),
                request.sector.to_string(),
                text::size(request.bytes.into()),
                request.connection.to_string(),
            ]
        });
        let _ =
            write!(page, "\n{}", columns(&["AGE", "REQUEST", "SECTOR", "SIZE", "CONN"], &[0, 2, 3, 4], rows));
        if table.len() > MAX_REQUESTS {
            let _ = writeln!(page, "and {} more", table.len() - MAX_REQUESTS);
        }
    }
    for advice in diagnosis {
        let _ = write!(page, "\n{}\n", advice.what);
        if let Some(to_do) = &advice.to_do {
            let _ = writeln!(page, "What to do: {to_do}");
        }
    }
    for missing in &details.unreadable {
        let _ = write!(page, "\nNot shown: {missing}.\n");
    }
    page
}

fn facts(details: &Details) -> String {
    let device = &details.device;
    let mut rows: Vec<(&str, String)> =
        vec![("device", format!("{}, of {}", device.device.display(), device.driver))];
    let mut state = device.state.to_string();
    if let Some(generation) = device.generation {
        let _ = write!(state, ", generation {generation}");
    }
    rows.push(("state", state));
    if let Some(owner) = &device.owner {
        let gone = if owner.alive == Some(false) { ", gone" } else { "" };
        rows.push(("owner", format!("{owner}{gone}")));
    }
    if let Some(backend) = &details.backend {
        rows.push(("backend", backend.clone()));
    }
    if device.size > 0 {
        let read_only = if details.read_only { ", read-only" } else { "" };
        let (size, block_size) = (device.size, details.block_size);
        rows.push((
            "size",
            format!("{} ({size} bytes), in blocks of {block_size} bytes{read_only}", text::size(size)),
        ));
    }
    if let Some(flags) = &details.flags {
        rows.push((
            "flags",
            flags.iter().map(|flag| flag.trim_start_matches("NBD_FLAG_")).collect::<Vec<_>>().join(" "),
        ));
    }
    if let Some(seconds) = details.timeout_s {
        rows.push(("time-out", format!("{seconds} s a request")));
    }
    if device.requests > 0 {
        let oldest = device.oldest_request_ms.map(|age| format!(", the oldest for {}", text::duration(age)));
        rows.push(("requests", format!("{} not done{}", device.requests, oldest.unwrap_or_default())));
    }
    rows.extend(details.users.iter().map(|user| ("used by", user.to_string())));
    rows.extend(details.openers.iter().map(|opener| ("open in", opener.to_string())));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<width$}  {value}");
        text
    })
}
