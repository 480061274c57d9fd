// SPDX-License-Identifier: GPL-2.0
//! Does an I/O cost more, or attaching take longer, the more there is of something else?

use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::job::{Extent, Job, Kind, Serves};
use super::latency::{self, Latencies, until};
use super::line::Line;
use super::memory::Memory;
use super::server::{Server, Transport};
use super::{Subject, load, unload};
use crate::device::{self, node};
use crate::netlink;

/// Of what there is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Devices, all of them busy.
    Devices,
    /// Connections of the one device.
    Connections,
    /// Those who have the device open.
    Openers,
}

impl Axis {
    /// Whether that can be measured: nbd.ko attaches nothing that somebody has open.
    pub fn suits(self, subject: Subject) -> bool {
        subject.driver().is_some() && (self, subject) != (Axis::Openers, Subject::Nbd)
    }

    /// How many of it.
    pub fn counts(self, extent: Extent) -> &'static [u32] {
        match (self, extent) {
            (Axis::Devices, Extent::Full) => &[1, 16, 64],
            (Axis::Connections, Extent::Full) => &[1, 4, 16],
            (Axis::Openers, Extent::Full) => &[1, 16, 256],
            (Axis::Devices, _) => &[1, 16],
            (Axis::Connections, _) => &[1, 16],
            (Axis::Openers, _) => &[1, 256],
        }
    }

    /// What each device has to do. With many of them each has less on the way: else it would be the depth that differs.
    fn job(self, count: u32) -> Job {
        let depth = if self == Axis::Devices { 4 } else { 32 };
        let connections = if self == Axis::Connections { count as usize } else { 1 };
        let (transport, serves) = (Transport::Unix, Serves::Memory);
        Job { kind: Kind::RandomRead, block: 4 << 10, depth, connections, transport, serves, longer: 1 }
    }
}

/// One measurement.
pub struct Point<'a> {
    pub round: usize,
    pub subject: Subject,
    pub axis: Axis,
    pub count: u32,
    pub seed: u64,
    pub memory: &'a Arc<Memory>,
}

/// How often a device is attached and detached for each point.
const ATTACHES: usize = 5;

impl Point<'_> {
    /// Loads the driver, measures, and unloads it.
    pub fn measure(&self, modules: &std::path::Path) -> Result<()> {
        let driver = self.subject.driver().context("no driver has that")?;
        load(driver, modules)?;
        self.on_driver().with_context(|| format!("{:?} {}", self.axis, self.count))?;
        unload(driver)
    }

    fn on_driver(&self) -> Result<()> {
        let devices = if self.axis == Axis::Devices { self.count } else { 1 };
        let openers = if self.axis == Axis::Openers { self.count } else { 0 };
        let job = self.axis.job(self.count);
        let held = (0..openers).map(|_| File::open(node(0))).collect::<Result<Vec<_>, _>>()?;
        let (connect, disconnect) = self.attach_one_more(devices, job.connections)?;
        let meter = Arc::new(job.meter_on(u64::from(devices)));
        let client = netlink::Client::open()?;
        let server = |index| {
            let server = Server::new(job.transport, job.connections, self.memory, &meter)?;
            latency::connect(&client, index, &server, job.connections)?;
            Ok(server)
        };
        let servers = (0..devices).map(server).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = (0..devices).map(|index| format!("nbd{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let done = job.run(&names, self.seed, &[]);
        for index in 0..devices {
            latency::disconnect(&client, index)?;
            until("the device to be idle", || !device::attached(index))?;
        }
        done?;
        servers.into_iter().try_for_each(|server| server.ended().map(drop))?;
        drop(held);
        let (round, subject, axis, count) = (self.round, self.subject, self.axis, self.count);
        let figures = (&meter.measured()?).into();
        Line::Scaling { round, subject, axis, count, block: job.block, figures, connect, disconnect }.print()
    }

    /// How long it takes to attach and to detach the last one, when the others are there already.
    fn attach_one_more(&self, devices: u32, connections: usize) -> Result<(Vec<u64>, Vec<u64>)> {
        let client = netlink::Client::open()?;
        let others = 0..devices - 1;
        let attach = |index| {
            let server = latency::server(self.memory, 1)?;
            latency::connect(&client, index, &server, 1)?;
            Ok(server)
        };
        let servers = others.clone().map(attach).collect::<Result<Vec<_>>>()?;
        let mut found = Latencies::default();
        for _ in 0..ATTACHES {
            found.once_by_netlink(&client, devices - 1, connections, self.memory, || Ok(()))?;
        }
        others.clone().try_for_each(|index| latency::disconnect(&client, index).map(drop))?;
        servers.into_iter().try_for_each(|server| server.ended().map(drop))?;
        for index in others {
            until("the device to be idle", || !device::attached(index))?;
        }
        Ok((found.connect, found.disconnect))
    }
}
