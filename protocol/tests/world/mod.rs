// SPDX-License-Identifier: GPL-2.0

//! Processes and connections to tell a device's life in, without a kernel.

// Each file of tests uses a part of it.
#![allow(dead_code)]

use rnbd_protocol::{
    geometry::ExportSize,
    setup::{
        Configured, Connections, DiskPlan, DiskState, DiskUse, Failure, Kinds, Lifecycle, Owner,
        Setup,
    },
};
use std::{cell::Cell, rc::Rc};

/// Processes that may die; connections that are numbers.
pub enum World {}

impl Kinds for World {
    type Owner = Process;
    type Connections = Numbers;
    type Attachment = Vec<u32>;
}

#[derive(Default)]
pub struct Numbers(pub Vec<u32>);

impl Connections for Numbers {
    fn count(&self) -> usize {
        self.0.len()
    }
}

thread_local! {
    static NEXT: Cell<u32> = const { Cell::new(1) };
    static PARENT_OF_CALLER: Cell<u32> = const { Cell::new(0) };
}

#[derive(Clone)]
pub struct Process {
    id: u32,
    parent: u32,
    alive: Rc<Cell<bool>>,
}

impl Process {
    pub fn new() -> Self {
        Self {
            id: NEXT.replace(NEXT.get() + 1),
            parent: 0,
            alive: Rc::new(Cell::new(true)),
        }
    }

    pub fn fork(&self) -> Self {
        Self {
            parent: self.id,
            ..Self::new()
        }
    }

    pub fn die(&self) {
        self.alive.set(false);
    }
}

/// Runs `step` as `process` would: the kernel looks up the caller's parent.
pub fn as_caller(process: &Process, step: impl FnOnce()) {
    let before = PARENT_OF_CALLER.replace(process.parent);
    step();
    PARENT_OF_CALLER.set(before);
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Owner for Process {
    fn is_alive(&self) -> bool {
        self.alive.get()
    }

    fn is_parent_of_caller(&self) -> bool {
        PARENT_OF_CALLER.get() == self.id
    }
}

/// `NBD_SET_SOCK`; gives the connections of the orphan that was replaced.
pub fn add(
    life: &mut Lifecycle<World>,
    caller: &Process,
    socket: u32,
) -> Result<Option<Numbers>, Failure<()>> {
    let (replaced, added) = life.add(caller.clone(), DiskUse::Shared, |_, connections| {
        connections.0.push(socket);
        Ok(())
    });
    added.map(|()| replaced)
}

/// `NBD_SET_SIZE`.
pub fn resize(
    life: &mut Lifecycle<World>,
    caller: &Process,
    bytes: u64,
) -> Result<Configured<World>, Failure<()>> {
    life.configure(caller.clone(), |config| {
        config.size = ExportSize::from_bytes(bytes).map_err(|_| ())?;
        Ok(())
    })
}

/// Gives the device another disk; gives its name.
pub fn next_disk(disk: &mut DiskState) -> u64 {
    let serial = disk.replace().expect("no generation is attached");
    disk.added(serial);
    serial
}

/// Does with the disk as was planned, as the driver does before it starts a generation.
pub fn fit_disk(disk: &mut DiskState, plan: DiskPlan) {
    if plan == DiskPlan::Replace {
        next_disk(disk);
    }
}

/// `NBD_DO_IT`, with a disk that may have an exclusive user; gives the sockets that are attached.
pub fn start_under(
    life: &mut Lifecycle<World>,
    caller: &Process,
    disk: DiskUse,
) -> Result<Vec<u32>, Failure<()>> {
    let (plan, _) = life.plan_start(caller, disk)?;
    fit_disk(&mut life.disk, plan);
    life.start(caller.clone(), disk, |_, setup| {
        Ok(std::mem::take(&mut setup.connections.0))
    })
}

/// `NBD_DO_IT`; gives the sockets that are attached.
pub fn start(life: &mut Lifecycle<World>, caller: &Process) -> Result<Vec<u32>, Failure<()>> {
    start_under(life, caller, DiskUse::Shared)
}

/// `NBD_CMD_CONNECT`, with a disk that may have an exclusive user; gives the sockets that are
/// attached.
pub fn connect(
    life: &mut Lifecycle<World>,
    setup: Setup<World>,
    disk: DiskUse,
) -> Result<Vec<u32>, Failure<()>> {
    let plan = life.plan_connect(&setup, disk)?;
    fit_disk(&mut life.disk, plan);
    let attach = |_, setup: &mut Setup<World>| Ok(std::mem::take(&mut setup.connections.0));
    match life.connect(setup, disk, attach) {
        Ok(connected) => Ok(connected.attachment),
        Err((failure, _)) => Err(failure),
    }
}

/// How many connections a setup has.
pub fn count(setup: &Setup<World>) -> usize {
    setup.connections.count()
}

/// A device of which nothing is known.
pub fn idle() -> Lifecycle<World> {
    Lifecycle::default()
}

/// A device that `owner` set up with one connection.
pub fn set_up(owner: &Process) -> Lifecycle<World> {
    let mut life = idle();
    add(&mut life, owner, 1).unwrap();
    life
}

/// The same, which runs.
pub fn running(owner: &Process) -> Lifecycle<World> {
    let mut life = set_up(owner);
    start(&mut life, owner).unwrap();
    life
}
