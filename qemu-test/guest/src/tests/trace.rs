// SPDX-License-Identifier: GPL-2.0
//! The same in traces: nbd.ko's tracepoints, and those of phases and of the death of connections.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Checks, Context, Test, ours_only, skip};
use crate::attach::{Setup, with_attached};
use crate::device::{open_direct, round_trip};
use crate::process::wait_for;
use crate::server::{Export, Server};

pub const TESTS: &[Test] = &[
    Test::new("state.tracepoints", "a request leaves its four marks, by nbd.ko's names", tracepoints),
    Test::new("state.trace_phases", "phases and the death of connections leave marks", trace_phases),
];

const SIZE: u64 = 1 << 20;

/// The trace of the events that were switched on, with a buffer of its own; gone when dropped.
pub struct Trace(PathBuf);

impl Trace {
    const EVENTS: [&str; 5] = [
        "nbd_send_request",
        "nbd_header_sent",
        "nbd_payload_sent",
        "nbd_header_received",
        "nbd_payload_received",
    ];

    /// Switches tracepoints of the driver on.
    fn start(events: &[&str]) -> Result<Trace> {
        let trace = Trace::new()?;
        for event in events {
            let switch = trace.0.join(format!("events/nbd/{event}/enable"));
            if !switch.exists() {
                bail!("there is no tracepoint nbd:{event}");
            }
            fs::write(switch, "1")?;
        }
        Ok(trace)
    }

    /// Switches one of the kernel's own tracepoints on, for what a filter lets through. None, if there is none.
    pub fn filtered(event: &str, filter: &str) -> Result<Option<Trace>> {
        let trace = Trace::new()?;
        let event = trace.0.join("events").join(event);
        if !event.exists() {
            return Ok(None);
        }
        fs::write(event.join("filter"), filter).context("set the filter")?;
        fs::write(event.join("enable"), "1")?;
        Ok(Some(trace))
    }

    /// Nothing is recorded any more.
    pub fn stop(&self) -> Result<()> {
        fs::write(self.0.join("tracing_on"), "0").context("stop the trace")
    }

    /// Without an event switched on.
    fn new() -> Result<Trace> {
        let dir = Path::new("/sys/kernel/tracing");
        if !dir.join("instances").exists() {
            let flags = nix::mount::MsFlags::empty();
            let _ = nix::mount::mount(Some("tracefs"), dir, Some("tracefs"), flags, None::<&str>);
        }
        if !dir.join("instances").exists() {
            return skip("the kernel does not trace");
        }
        let trace = Trace(dir.join("instances/rnbd-test"));
        let _ = fs::remove_dir(&trace.0);
        fs::create_dir(&trace.0).context("make a trace instance")?;
        Ok(trace)
    }

    /// Lines of one event.
    pub fn lines(&self, event: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let mark = format!(" {event}: ");
        Ok(text.lines().filter(|line| line.contains(&mark)).map(str::to_owned).collect())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

fn tracepoints(_: &Context) -> Result<()> {
    let server = Server::new(Export::memory(SIZE)?);
    with_attached(&server, Setup::for_server(&server), |_| {
        let trace = Trace::start(&Trace::EVENTS)?;
        round_trip(&open_direct("/dev/nbd0")?, 8192, &[5; 4096])?;
        let mut checks = Checks::default();
        for event in Trace::EVENTS {
            let lines = trace.lines(event)?;
            println!("{event}: {}", lines.first().map_or("none", |line| line.trim()));
            // A write and a read: each of the two is asked and answered once.
            checks.that(&format!("{event} is there twice: {}", lines.len()), lines.len() >= 2);
        }
        checks.done()
    })
}

fn trace_phases(context: &Context) -> Result<()> {
    ours_only(context)?;
    let trace = Trace::start(&["nbd_phase", "nbd_connection_dead"])?;
    let server = Server::new(Export::memory(SIZE)?);
    with_attached(&server, Setup::for_server(&server).connections(2), |_| {
        server.close_one(0);
        wait_for("the connection to close", || server.open_connections() == 1)?;
        wait_for("its mark", || trace.lines("nbd_connection_dead").is_ok_and(|lines| !lines.is_empty()))
    })?;
    let phases = trace.lines("nbd_phase")?;
    println!("{}", phases.join("\n"));
    let mut checks = Checks::default();
    for phase in ["setup", "running", "draining", "idle"] {
        checks.that(&format!("a mark of {phase}"), phases.iter().any(|line| line.contains(phase)));
    }
    checks.done()
}
