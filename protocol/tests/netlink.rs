// SPDX-License-Identifier: GPL-2.0

//! Generations that netlink starts: in one step, and not changed by ioctl.

mod world;

use rnbd_protocol::{
    flags::TransmissionFlags,
    geometry::ExportSize,
    setup::{
        Config, DiskUse, EndReason, Failure, Interface, Lifecycle, Phase, Refusal, Retired, Setup,
    },
};
use world::{add, connect, next_disk, resize, start, Numbers, Process, World};

fn wanted(owner: &Process, sockets: &[u32]) -> Setup<World> {
    let mut setup = Setup::new(owner.clone());
    setup.connections = Numbers(sockets.to_vec());
    setup.config.size = ExportSize::from_bytes(1 << 20).unwrap();
    setup
}

fn connected(owner: &Process) -> Lifecycle<World> {
    let mut life = Lifecycle::default();
    connect(&mut life, wanted(owner, &[7]), DiskUse::Shared).unwrap();
    life
}

#[test]
fn a_generation_is_set_up_and_started_in_one_step() {
    let owner = Process::new();
    let life = connected(&owner);
    assert_eq!(life.generation(), 1);
    let Phase::Running {
        interface, config, ..
    } = life.phase()
    else {
        panic!("not running")
    };
    assert_eq!(*interface, Interface::Netlink);
    assert_eq!(config.size.bytes(), 1 << 20);
}

#[test]
fn what_is_refused_comes_back_whole_and_changes_nothing() {
    let owner = Process::new();
    let mut life = connected(&owner);
    let attach = |_, _: &mut Setup<World>| Ok::<_, ()>(vec![]);
    let Err((failure, setup)) = life.connect(wanted(&owner, &[8]), DiskUse::Shared, attach) else {
        panic!("connected twice")
    };
    assert_eq!(failure, Refusal::Running.into());
    assert_eq!(setup.connections.0, [8]);
    assert_eq!(life.generation(), 1);
}

#[test]
fn a_failed_step_leaves_the_device_as_it_was() {
    let owner = Process::new();
    let mut life = Lifecycle::<World>::default();
    next_disk(&mut life.disk);
    let attach = |_, _: &mut Setup<World>| Err("no memory");
    let Err((failure, setup)) = life.connect(wanted(&owner, &[8]), DiskUse::Shared, attach) else {
        panic!("connected without memory")
    };
    assert_eq!(failure, Failure::Step("no memory"));
    assert_eq!(setup.connections.0, [8]);
    assert_eq!(life.generation(), 0);
    assert!(matches!(life.phase(), Phase::Idle));
}

#[test]
fn only_an_orphan_makes_way() {
    let (setter, other) = (Process::new(), Process::new());
    let mut life = Lifecycle::<World>::default();
    add(&mut life, &setter, 1).unwrap();
    let refused = connect(&mut life, wanted(&other, &[2]), DiskUse::Shared);
    assert_eq!(refused, Err(Refusal::Owned.into()));
    // Nor does a setup of the same process: which of the two would it mean?
    let refused = connect(&mut life, wanted(&setter, &[2]), DiskUse::Shared);
    assert_eq!(refused, Err(Refusal::Owned.into()));
    setter.die();
    next_disk(&mut life.disk);
    let attach = |_, setup: &mut Setup<World>| Ok::<_, ()>(setup.connections.0.clone());
    let Ok(connected) = life.connect(wanted(&other, &[2]), DiskUse::Shared, attach) else {
        panic!("an orphan kept the device")
    };
    assert_eq!(connected.replaced.map(|orphan| orphan.0), Some(vec![1]));
    assert_eq!(life.generation(), 2);
}

#[test]
fn nobody_is_connected_under_an_exclusive_user() {
    let owner = Process::new();
    let mut life = connected(&owner);
    assert!(matches!(
        life.retire(EndReason::Disconnected),
        Retired::Stopped(_)
    ));
    let draining = connect(&mut life, wanted(&owner, &[2]), DiskUse::Shared);
    assert_eq!(draining, Err(Refusal::Draining.into()));
    assert_eq!(life.drained(), Some(EndReason::Disconnected));
    let held = connect(&mut life, wanted(&owner, &[2]), DiskUse::Exclusive);
    assert_eq!(held, Err(Refusal::Held.into()));
    assert!(connect(&mut life, wanted(&owner, &[2]), DiskUse::Shared).is_ok());
}

#[test]
fn several_connections_need_a_server_that_can_have_them() {
    let owner = Process::new();
    let mut life = Lifecycle::default();
    let none = connect(&mut life, wanted(&owner, &[]), DiskUse::Shared);
    assert_eq!(none, Err(Refusal::NoConnection.into()));
    let two = connect(&mut life, wanted(&owner, &[1, 2]), DiskUse::Shared);
    assert_eq!(two, Err(Refusal::NotMultiConn.into()));
    let mut setup = wanted(&owner, &[1, 2]);
    setup.config.flags = TransmissionFlags::CAN_MULTI_CONN;
    assert_eq!(connect(&mut life, setup, DiskUse::Shared), Ok(vec![1, 2]));
}

#[test]
fn ioctls_do_not_change_it_but_end_it() {
    let owner = Process::new();
    let mut life = connected(&owner);
    let netlink = || Failure::from(Refusal::Netlink);
    assert_eq!(life.may_ioctl(), Err(Refusal::Netlink));
    assert_eq!(add(&mut life, &owner, 1).map(|_| ()), Err(netlink()));
    assert_eq!(resize(&mut life, &owner, 512).map(|_| ()), Err(netlink()));
    assert_eq!(start(&mut life, &owner), Err(netlink()));
    assert!(matches!(life.clear(&owner), Retired::Stopped(_)));
}

#[test]
fn it_alone_is_reconfigured_by_netlink() {
    let owner = Process::new();
    let change = |config: &mut Config| {
        config.dead_conn_timeout = 30;
        Ok::<(), ()>(())
    };
    let mut life = Lifecycle::<World>::default();
    let refused = life.reconfigure(change);
    assert_eq!(refused, Err(Refusal::NotNetlink.into()));
    add(&mut life, &owner, 1).unwrap();
    start(&mut life, &owner).unwrap();
    assert_eq!(life.reconfigure(change), Err(Refusal::NotNetlink.into()));

    let mut life = connected(&owner);
    life.reconfigure(change).unwrap();
    let failed = life.reconfigure(|config| {
        config.dead_conn_timeout = 60;
        Err("no")
    });
    assert_eq!(failed, Err(Failure::Step("no")));
    let Phase::Running { config, .. } = life.phase() else {
        panic!("not running")
    };
    assert_eq!(config.dead_conn_timeout, 30);
}

#[test]
fn a_device_may_go_with_its_generation() {
    let owner = Process::new();
    let mut life = Lifecycle::default();
    let mut setup = wanted(&owner, &[1]);
    setup.config.destroy_on_disconnect = true;
    connect(&mut life, setup, DiskUse::Shared).unwrap();
    assert!(matches!(
        life.retire(EndReason::Disconnected),
        Retired::Stopped(_)
    ));
    assert_eq!(life.drained(), Some(EndReason::Disconnected));
    assert!(matches!(life.phase(), Phase::Gone));
    // A task that still has it open gets nowhere, and changes nothing.
    let gone = || Failure::from(Refusal::Gone);
    assert_eq!(
        connect(&mut life, wanted(&owner, &[2]), DiskUse::Shared),
        Err(gone())
    );
    assert_eq!(add(&mut life, &owner, 1).map(|_| ()), Err(gone()));
    assert_eq!(resize(&mut life, &owner, 512).map(|_| ()), Err(gone()));
    assert_eq!(start(&mut life, &owner), Err(gone()));
    assert!(matches!(life.clear(&owner), Retired::Nothing));
    assert!(life.drained().is_none());
    assert!(matches!(life.phase(), Phase::Gone));
}
