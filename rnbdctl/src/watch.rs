// SPDX-License-Identifier: GPL-2.0
//! `watch`: a live view on a terminal, a line a change elsewhere.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use nbd_netlink::{Listener, attr, command};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use crate::cli::WatchArgs;
use crate::device::{self, Device, State};
use crate::driver;
use crate::status::table;
use crate::text;

/// Events that the live view keeps.
const KEPT: usize = 12;

/// Other screen, no cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Top left; nothing to the right; nothing below.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K\n";
const END: &str = "\x1b[J";

/// Something that has changed.
#[derive(Serialize)]
struct Event {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    event: Kind,
    text: String,
    /// What it is like now.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// The watch begins.
    Begin,
    /// A device that is in use when the watch begins.
    Present,
    Changed,
    Removed,
    LinkDead,
    /// Notifications came faster than they were read.
    Lost,
}

impl Event {
    fn new(event: Kind, device: Option<&Device>, text: String) -> Event {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let index = device.map(|device| device.index);
        Event { time, index, event, text, device: device.cloned() }
    }

    fn line(&self) -> String {
        format!("{} {}", self.time, self.text)
    }
}

/// How events are shown.
enum View {
    Lines,
    Json,
    /// The newest ones, below the table.
    Live(VecDeque<String>),
}

pub fn run(args: &WatchArgs) -> Result<()> {
    ensure!((0.1..=86400.0).contains(&args.interval), "an interval has from 0.1 to 86400 seconds");
    driver::loaded()?;
    if let Some(index) = args.device {
        device::one(index)?;
    }
    let listener = Listener::open().context("listen to the driver")?;
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let view = match (args.json, is_screen()) {
        (true, _) => View::Json,
        (_, true) => View::Live(VecDeque::new()),
        (_, false) => View::Lines,
    };
    let mut watch = Watch { wanted: args.device, view, known: BTreeMap::new() };
    let live = matches!(watch.view, View::Live(_));
    if live {
        text::print(ENTER)?;
    }
    let ended = watch.go_on(&listener, &signals, Duration::from_secs_f64(args.interval));
    if live {
        text::print(LEAVE)?;
    }
    ended
}

/// Whether standard output is a terminal that has a cursor.
fn is_screen() -> bool {
    std::io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|kind| kind != "dumb")
}

struct Watch {
    wanted: Option<u32>,
    view: View,
    known: BTreeMap<u32, Device>,
}

impl Watch {
    /// Looks and listens until a signal comes.
    fn go_on(&mut self, listener: &Listener, signals: &SignalFd, interval: Duration) -> Result<()> {
        self.begin()?;
        loop {
            let until = Instant::now() + interval;
            self.draw()?;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                let mut ready = [
                    PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                    PollFd::new(listener.fd(), PollFlags::POLLIN),
                ];
                // Rounded up, so that it is not polled for nothing at the end.
                let left = PollTimeout::try_from(left + Duration::from_millis(1))?;
                match poll(&mut ready, left) {
                    Err(Errno::EINTR) => continue,
                    result => result?,
                };
                let [signal, message] = ready.map(|ready| ready.any().unwrap_or(false));
                if signal {
                    return Ok(());
                }
                if message {
                    self.hear(listener)?;
                    self.draw()?;
                }
            }
            self.look()?;
        }
    }

    fn devices(&self) -> Result<BTreeMap<u32, Device>> {
        let devices = device::all()?.into_iter();
        let wanted = devices.filter(|device| self.wanted.is_none_or(|index| index == device.index));
        Ok(wanted.map(|device| (device.index, device)).collect())
    }

    fn begin(&mut self) -> Result<()> {
        self.known = self.devices()?;
        let what = match self.wanted {
            Some(index) => format!("watching nbd{index}"),
            None => format!("watching {}", text::count(self.known.len() as u64, "device", "devices")),
        };
        let mut events = vec![Event::new(Kind::Begin, None, what)];
        for device in self.known.values().filter(|device| device.state != State::Idle) {
            events.push(Event::new(
                Kind::Present,
                Some(device),
                format!("nbd{} is {}", device.index, like(device)),
            ));
        }
        events.into_iter().try_for_each(|event| self.tell(event))
    }

    /// Compares all devices with what they were.
    fn look(&mut self) -> Result<()> {
        let now = self.devices()?;
        let before = std::mem::replace(&mut self.known, now);
        changes(&before, &self.known).into_iter().try_for_each(|event| self.tell(event))
    }

    /// Takes what the driver says.
    fn hear(&mut self, listener: &Listener) -> Result<()> {
        let message = match listener.next(Duration::ZERO) {
            Ok(message) => message,
            Err(error) if is_overflow(&error) => {
                return self.tell(Event::new(Kind::Lost, None, "notifications were lost".to_owned()));
            }
            Err(error) => return Err(error),
        };
        let Some(message) = message.filter(|message| message.command == command::LINK_DEAD) else {
            return Ok(());
        };
        let index = u32::from_ne_bytes(message.only(attr::INDEX)?[..].try_into()?);
        if self.wanted.is_some_and(|wanted| wanted != index) {
            return Ok(());
        }
        let event = match device::one(index) {
            Ok(device) => {
                let event = Event::new(Kind::LinkDead, Some(&device), death(&device));
                self.known.insert(index, device);
                event
            }
            // It went with its connection.
            Err(_) => {
                let text = format!("nbd{index}: a connection died (LINK_DEAD)");
                Event { index: Some(index), ..Event::new(Kind::LinkDead, None, text) }
            }
        };
        self.tell(event)
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        match &mut self.view {
            View::Lines => text::print(&format!("{}\n", event.line())),
            View::Json => text::print_json(&event),
            View::Live(events) => {
                events.push_back(event.line());
                if events.len() > KEPT {
                    events.pop_front();
                }
                Ok(())
            }
        }
    }

    fn draw(&self) -> Result<()> {
        let View::Live(events) = &self.view else { return Ok(()) };
        let shown: Vec<Device> =
            self.known.values().filter(|device| device.state != State::Idle).cloned().collect();
        let idle = self.known.len() - shown.len();
        let mut screen = String::new();
        if !shown.is_empty() {
            screen += &table(&shown);
        }
        let is = if idle == 1 { "is" } else { "are" };
        let _ =
            write!(screen, "{} {is} idle; Ctrl-C ends\n\n", text::count(idle as u64, "device", "devices"));
        events.iter().for_each(|event| screen += &format!("{event}\n"));
        // Written over what is there, it does not flicker.
        text::print(&format!("{HOME}{}{END}", screen.replace('\n', END_LINE)))
    }
}

fn is_overflow(error: &anyhow::Error) -> bool {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.filter_map(std::io::Error::raw_os_error).any(|number| number == Errno::ENOBUFS as i32)
}

/// What a device is like, in a line.
fn like(device: &Device) -> String {
    let mut text = device.state.to_string();
    if let Some(generation) = device.generation {
        let _ = write!(text, ", generation {generation}");
    }
    if let Some(owner) = &device.owner {
        let _ = write!(text, ", owner {owner}");
    }
    if let Some(connections) = device.connections.filter(|connections| connections.all > 0) {
        let _ = write!(text, ", {} of {} connections live", connections.live, connections.all);
    }
    if device.size > 0 {
        let _ = write!(text, ", {}", text::size(device.size));
    }
    text
}

fn death(device: &Device) -> String {
    let mut text = format!("nbd{}: a connection died (LINK_DEAD)", device.index);
    if let Some(connections) = device.connections {
        let _ = write!(text, "; {} of {} live", connections.live, connections.all);
    }
    if let Some(error) = &device.last_error {
        let _ = write!(text, "; {error}");
    }
    text
}

/// What differs between two looks.
fn changes(before: &BTreeMap<u32, Device>, now: &BTreeMap<u32, Device>) -> Vec<Event> {
    let mut events = Vec::new();
    for (index, device) in before {
        if !now.contains_key(index) {
            events.push(Event::new(Kind::Removed, Some(device), format!("nbd{index} is removed")));
        }
    }
    for (index, device) in now {
        match before.get(index) {
            Some(old) if like(old) == like(device) => {}
            Some(old) => {
                let was =
                    if old.state == device.state { String::new() } else { format!(" (was {})", old.state) };
                events.push(Event::new(
                    Kind::Changed,
                    Some(device),
                    format!("nbd{index} is {}{was}", like(device)),
                ));
            }
            None => events.push(Event::new(
                Kind::Changed,
                Some(device),
                format!("nbd{index} is new, {}", like(device)),
            )),
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Connections;
    use crate::driver::Driver;

    fn device(index: u32, state: State, live: u32) -> Device {
        Device {
            index,
            device: format!("/dev/nbd{index}").into(),
            driver: Driver::Rnbd,
            state,
            generation: Some(3),
            owner: None,
            connections: Some(Connections { live, all: 2 }),
            size: 1 << 20,
            requests: 0,
            oldest_request_ms: None,
            last_error: Some("generation 3, connection 1: the server closed it".to_owned()),
        }
    }

    fn told(before: &[Device], now: &[Device]) -> Vec<String> {
        let map = |devices: &[Device]| devices.iter().map(|device| (device.index, device.clone())).collect();
        changes(&map(before), &map(now)).into_iter().map(|event| event.text).collect()
    }

    #[test]
    fn only_changes_are_told() {
        let running = [device(0, State::Running, 2)];
        let mut busy = running.clone();
        busy[0].requests = 5;
        busy[0].oldest_request_ms = Some(100);
        assert!(told(&running, &busy).is_empty(), "requests come and go");
        assert_eq!(
            told(&running, &[device(0, State::Running, 1)]),
            ["nbd0 is running, generation 3, 1 of 2 connections live, 1 MiB"]
        );
        assert_eq!(
            told(&running, &[device(0, State::Draining, 2)]),
            ["nbd0 is draining, generation 3, 2 of 2 connections live, 1 MiB (was running)"]
        );
        assert_eq!(
            told(&running, &[device(7, State::Running, 2)]),
            ["nbd0 is removed", "nbd7 is new, running, generation 3, 2 of 2 connections live, 1 MiB"]
        );
    }

    #[test]
    fn a_death_is_told_with_what_is_left_and_why() {
        assert_eq!(
            death(&device(0, State::Running, 1)),
            "nbd0: a connection died (LINK_DEAD); 1 of 2 live; generation 3, connection 1: the server closed it"
        );
    }
}
