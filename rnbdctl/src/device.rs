// SPDX-License-Identifier: GPL-2.0
//! What is known of a device, with whatever driver.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Serialize, Serializer};

use crate::driver::{self, Driver};
use crate::failure::{Failure, Kind};
use crate::process::{Owner, comm};
use crate::tables::{self, Connection, Request};
use crate::users::{Nodes, Opener, User};

/// How far a device's life has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Setup,
    Running,
    Draining,
    /// It is being removed.
    Gone,
    /// nbd.ko says that it is in use, and it is not attached: somebody has it open, or it is set up and not started, or
    /// what was attached is not given up.
    Held,
    /// What this program does not know yet.
    Other(String),
}

impl State {
    fn of_rnbd(name: &str) -> State {
        match name {
            "idle" => State::Idle,
            "setup" => State::Setup,
            "running" => State::Running,
            "draining" => State::Draining,
            "gone" => State::Gone,
            other => State::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Idle => "idle",
            State::Setup => "setup",
            State::Running => "running",
            State::Draining => "draining",
            State::Gone => "gone",
            State::Held => "held",
            State::Other(name) => name,
        })
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Connections {
    pub live: u32,
    pub all: u32,
}

/// A line of the table of devices. What is None is not told by the driver, or not to us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub index: u32,
    pub device: PathBuf,
    pub driver: Driver,
    pub state: State,
    pub generation: Option<u64>,
    pub owner: Option<Owner>,
    pub connections: Option<Connections>,
    pub size: u64,
    /// Requests that are not done. Without privileges those alone that a server was asked.
    pub requests: u64,
    pub oldest_request_ms: Option<u64>,
    pub last_error: Option<String>,
}

fn attribute(index: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/sys/block").join(format!("nbd{index}")).join(name)).ok()?;
    Some(text.trim_end().to_owned())
}

fn number<T: std::str::FromStr>(index: u32, name: &str) -> Option<T> {
    attribute(index, name)?.parse().ok()
}

impl Device {
    /// Reads it. `in_use` is what STATUS says.
    fn read(index: u32, in_use: bool) -> Device {
        let rnbd = attribute(index, "nbd/state");
        let table = tables::requests(index);
        let pid = number::<i32>(index, "pid");
        let (driver, state, owner) = match &rnbd {
            Some(state) => {
                let pid = number(index, "nbd/owner_pid").filter(|pid| *pid != 0);
                let owner =
                    pid.map(|pid| Owner::of(pid, attribute(index, "nbd/owner_comm").unwrap_or_default()));
                (Driver::Rnbd, State::of_rnbd(state), owner)
            }
            None => {
                let state = match (pid, in_use) {
                    (Some(_), _) => State::Running,
                    (None, true) => State::Held,
                    (None, false) => State::Idle,
                };
                // It tells the number alone; the name is that of whoever has the number now.
                (Driver::Nbd, state, pid.map(|pid| Owner::of(pid, comm(pid))))
            }
        };
        let all = number(index, "nbd/connections");
        let live = number(index, "nbd/live_connections");
        Device {
            index,
            device: format!("/dev/nbd{index}").into(),
            driver,
            state,
            generation: number(index, "nbd/generation"),
            owner,
            connections: live.zip(all).map(|(live, all)| Connections { live, all }),
            size: number::<u64>(index, "size").unwrap_or(0) * 512,
            requests: in_flight(index).max(tables::given_out(index).unwrap_or(0)),
            oldest_request_ms: table.iter().flatten().filter_map(|request| request.age_ms).max(),
            last_error: attribute(index, "nbd/last_error").filter(|error| error != "none"),
        }
    }

    /// Whether it was attached by netlink. The drivers show a backend then, if only an empty one.
    pub fn by_netlink(&self) -> bool {
        attribute(self.index, "backend").is_some()
    }
}

/// Requests to read and to write that are under way.
fn in_flight(index: u32) -> u64 {
    let text = attribute(index, "inflight").unwrap_or_default();
    text.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).sum()
}

/// All devices, in order.
pub fn all() -> Result<Vec<Device>> {
    let driver = driver::loaded()?;
    let mut indexes: Vec<u32> = Vec::new();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        indexes.extend(name.strip_prefix("nbd").and_then(|number| number.parse::<u32>().ok()));
    }
    indexes.sort_unstable();
    let in_use = in_use(driver)?;
    Ok(indexes.into_iter().map(|index| Device::read(index, in_use.contains_key(&index))).collect())
}

/// One device.
pub fn one(index: u32) -> Result<Device> {
    let driver = driver::loaded()?;
    if !Path::new("/sys/block").join(format!("nbd{index}")).exists() {
        return Err(Failure::new(Kind::Absent, format!("there is no nbd{index}"))
            .hint("rnbdctl status lists the devices; connecting makes one that is missing")
            .into());
    }
    Ok(Device::read(index, in_use(driver)?.contains_key(&index)))
}

/// The devices that nbd.ko says are in use. rnbd says it better in sysfs.
fn in_use(driver: Driver) -> Result<BTreeMap<u32, ()>> {
    if driver == Driver::Rnbd {
        return Ok(BTreeMap::new());
    }
    let answer = driver::client()?.status(None)?;
    let devices = driver::granted("asking for all devices", answer)?;
    Ok(devices.iter().filter(|device| device.connected != 0).map(|device| (device.index, ())).collect())
}

/// All that can be known of one device.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    #[serde(flatten)]
    pub device: Device,
    pub read_only: bool,
    pub block_size: u64,
    /// Which backend it is, as whoever attached it said.
    pub backend: Option<String>,
    pub by_netlink: bool,
    /// Seconds that a request may take.
    pub timeout_s: Option<u64>,
    pub flags: Option<Vec<String>>,
    pub connection_table: Option<Vec<Connection>>,
    pub request_table: Option<Vec<Request>>,
    pub users: Vec<User>,
    pub openers: Vec<Opener>,
    /// What could not be read, and why.
    pub unreadable: Vec<String>,
}

impl Details {
    pub fn read(device: Device) -> Details {
        let index = device.index;
        let nodes = Nodes::of(index);
        let mut unreadable = Vec::new();
        if let Some(why) = tables::unreadable() {
            unreadable.push(format!("tables of connections and requests: {why}"));
        }
        if !nix::unistd::geteuid().is_root() {
            unreadable.push("who has it open: of other users' processes root alone may know".to_owned());
        }
        let timeout = number::<u64>(index, "queue/io_timeout").map(|milliseconds| milliseconds / 1000);
        Details {
            read_only: number::<u8>(index, "ro") == Some(1),
            block_size: number(index, "queue/logical_block_size").unwrap_or(0),
            backend: attribute(index, "backend").filter(|name| !name.is_empty()),
            by_netlink: device.by_netlink(),
            timeout_s: timeout.filter(|_| tables::has_timeout(index) == Some(true)),
            flags: tables::flags(index).filter(|flags| !flags.is_empty()),
            connection_table: tables::connections(index),
            request_table: tables::requests(index),
            users: nodes.users(),
            openers: nodes.openers(),
            unreadable,
            device,
        }
    }
}
