// SPDX-License-Identifier: GPL-2.0
//! A listener of the kernel's uevents.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::process::PATIENCE;

pub struct Uevents(OwnedFd);

impl Uevents {
    pub fn listen() -> Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Uevents(fd))
    }

    /// The events that are there already, as `action@devpath`.
    pub fn pending(&self) -> Result<Vec<String>> {
        let mut events = Vec::new();
        let mut message = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                Ok(count) => {
                    let header = message[..count].split(|byte| *byte == 0).next();
                    events.push(String::from_utf8_lossy(header.unwrap_or_default()).into_owned());
                }
                Err(Errno::EAGAIN) => return Ok(events),
                Err(errno) => bail!("reading uevents: {errno}"),
            }
        }
    }

    /// Waits for an event whose header ends with `suffix` and starts with `action@`.
    pub fn wait(&self, action: &str, suffix: &str) -> Result<()> {
        let start = Instant::now();
        let mut seen = Vec::new();
        while start.elapsed() < *PATIENCE {
            let new = self.pending()?;
            let hit = |event: &String| {
                event.strip_prefix(action).is_some_and(|rest| rest.starts_with('@'))
                    && event.ends_with(suffix)
            };
            if new.iter().any(hit) {
                return Ok(());
            }
            seen.extend(new);
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("no uevent {action}@…{suffix}; seen: {seen:?}");
    }
}
