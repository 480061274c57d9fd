// SPDX-License-Identifier: GPL-2.0
//! Which driver is there, and its netlink family.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;
use nbd_netlink::{Answer, Client};
use serde::{Serialize, Serializer};

use crate::failure::{Failure, Kind};

/// CAP_SYS_ADMIN's bit.
const SYS_ADMIN: u64 = 1 << 21;

/// The drivers that speak for /dev/nbdN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Rnbd,
    /// The kernel's own in C.
    Nbd,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Rnbd => "rnbd",
            Driver::Nbd => "nbd.ko",
        })
    }
}

impl Serialize for Driver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The driver that is loaded, or built in. To look for its family alone would load nbd.ko.
pub fn loaded() -> Result<Driver> {
    let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
    if !has_nbd(&devices) {
        return Err(Failure::new(Kind::Absent, "no nbd driver is loaded")
            .hint("modprobe nbd loads the one that is installed; insmod rnbd.ko one that was just built")
            .into());
    }
    Ok(if Path::new("/sys/module/rnbd").exists() { Driver::Rnbd } else { Driver::Nbd })
}

fn has_nbd(devices: &str) -> bool {
    let block = devices.split_once("Block devices:").map_or("", |(_, block)| block);
    block.lines().any(|line| line.split_whitespace().eq(["43", "nbd"]))
}

/// The family's client, for what needs privileges.
pub fn privileged(what: &str) -> Result<(Driver, Client)> {
    let driver = loaded()?;
    let capabilities = procfs::process::Process::myself()?.status()?.capeff;
    if capabilities & SYS_ADMIN == 0 {
        return Err(Failure::privileges(what).into());
    }
    Ok((driver, client()?))
}

/// The family's client, for what anybody may ask.
pub fn client() -> Result<Client> {
    Client::open().map_err(|error| {
        Failure::new(Kind::Absent, format!("the driver does not answer on netlink: {error:#}"))
            .hint("in a network namespace of its own or a container, netlink may be out of reach")
            .into()
    })
}

/// What the kernel has answered, or its refusal of `what`.
pub fn granted<T>(what: &str, answer: Answer<T>) -> Result<T> {
    answer.map_err(|refusal| Failure::of(what, &refusal).into())
}

/// A device as people name it: `nbd0`, `/dev/nbd0`, or `0`.
pub fn parse_device(text: &str) -> Result<u32, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let number = name.strip_prefix("nbd").unwrap_or(name);
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let index = number.parse().ok().filter(|index| digits && *index <= i32::MAX as u32);
    index.ok_or_else(|| match number.split_once('p') {
        Some((device, _)) if name.starts_with("nbd") => format!("that is a partition: say nbd{device}"),
        _ => "that is no nbd device: say nbd0, /dev/nbd0 or 0".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_three_ways() {
        for text in ["nbd12", "/dev/nbd12", "12"] {
            assert_eq!(parse_device(text), Ok(12), "{text}");
        }
        for text in ["", "nbd", "/dev/sda", "nbd-1", "+1", "2147483648", "nbd0x"] {
            assert!(parse_device(text).is_err(), "{text}");
        }
        assert_eq!(parse_device("/dev/nbd3p1"), Err("that is a partition: say nbd3".to_owned()));
    }

    #[test]
    fn a_driver_is_found_by_its_major() {
        assert!(has_nbd("Character devices:\n  1 mem\n\nBlock devices:\n  7 loop\n 43 nbd\n259 blkext\n"));
        assert!(!has_nbd("Character devices:\n 43 nbd\n\nBlock devices:\n  7 loop\n"));
    }
}
