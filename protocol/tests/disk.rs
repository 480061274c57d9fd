// SPDX-License-Identifier: GPL-2.0

//! Which disk a generation gets (invariant G4): the rules one by one.

mod world;

use rnbd_protocol::{
    geometry::{BlockSize, ExportSize},
    setup::{
        Connections, DiskPlan, DiskState, DiskUse, EndReason, Failure, Lifecycle, Refusal, Setup,
    },
};
use world::{add, connect, next_disk, start, start_under, Numbers, Process, World};

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 1024;

/// Sets up an export with a socket.
fn set_up(life: &mut Lifecycle<World>, caller: &Process, bytes: u64, block: u64) {
    let configured = life.configure(caller.clone(), |config| {
        config.size = ExportSize::from_bytes(bytes).map_err(|_| ())?;
        config.block_size = BlockSize::new(block, 4096).map_err(|_| ())?;
        Ok::<(), ()>(())
    });
    assert!(configured.is_ok());
    add(life, caller, 1).unwrap();
}

/// A device on which `owner` has a generation that runs, and the name of its disk.
fn running(owner: &Process) -> (Lifecycle<World>, u64) {
    let mut life = Lifecycle::default();
    let serial = next_disk(&mut life.disk);
    set_up(&mut life, owner, SIZE, BLOCK);
    start(&mut life, owner).unwrap();
    (life, serial)
}

/// A device on which `owner` had a generation that ended for `reason`, and the name of its disk.
fn ended(owner: &Process, reason: EndReason) -> (Lifecycle<World>, u64) {
    let (mut life, serial) = running(owner);
    let _ = life.retire(reason);
    assert_eq!(life.drained(), Some(reason));
    (life, serial)
}

/// What `caller` needs to attach an export like the last one.
fn plan(life: &mut Lifecycle<World>, caller: &Process) -> DiskPlan {
    set_up(life, caller, SIZE, BLOCK);
    life.plan_start(caller, DiskUse::Shared).unwrap().0
}

/// A setup of an export like the last one, to be connected by netlink.
fn wanted(caller: &Process) -> Setup<World> {
    let mut setup = Setup::new(caller.clone());
    setup.config.size = ExportSize::from_bytes(SIZE).unwrap();
    setup.connections = Numbers(vec![2]);
    setup
}

fn start_as_it_is(life: &mut Lifecycle<World>, caller: &Process) -> Result<Vec<u32>, Failure<()>> {
    life.start(caller.clone(), DiskUse::Shared, |_, setup| {
        Ok(std::mem::take(&mut setup.connections.0))
    })
}

#[test]
fn a_device_without_a_disk_needs_one() {
    let owner = Process::new();
    let mut life = Lifecycle::default();
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
    let needs = Err(Refusal::NeedsDisk.into());
    assert_eq!(start_as_it_is(&mut life, &owner), needs);
    // It was given up, and the next is not there yet.
    let serial = life.disk.replace().unwrap();
    assert!(!life.disk.is_current(serial));
    assert_eq!(start_as_it_is(&mut life, &owner), needs);
    life.disk.added(serial);
    assert!(life.disk.is_current(serial));
    assert_eq!(start_as_it_is(&mut life, &owner), Ok(vec![1]));
}

#[test]
fn netlink_needs_a_disk_as_well() {
    let owner = Process::new();
    let mut life = Lifecycle::<World>::default();
    let plan = life.plan_connect(&wanted(&owner), DiskUse::Shared);
    assert_eq!(plan, Ok(DiskPlan::Replace));
    let attach = |_, _: &mut Setup<World>| Ok::<_, ()>(vec![]);
    let Err((failure, setup)) = life.connect(wanted(&owner), DiskUse::Shared, attach) else {
        panic!("connected without a disk")
    };
    assert_eq!(failure, Refusal::NeedsDisk.into());
    assert_eq!((setup.connections.0, life.generation()), (vec![2], 0));
}

#[test]
fn a_new_disk_serves_whoever_comes() {
    let owner = Process::new();
    let mut life = Lifecycle::<World>::default();
    next_disk(&mut life.disk);
    // Who opened it early has nothing of a generation: there was none.
    life.disk.opened();
    assert_eq!(plan(&mut life, &owner), DiskPlan::Keep);
    let _ = life.retire(EndReason::Cleared);
    let plan = life.plan_connect(&wanted(&owner), DiskUse::Shared);
    assert_eq!(plan, Ok(DiskPlan::Keep));
}

#[test]
fn a_start_that_fails_leaves_the_disk_as_it_was() {
    let owner = Process::new();
    let mut life = Lifecycle::<World>::default();
    next_disk(&mut life.disk);
    set_up(&mut life, &owner, SIZE, BLOCK);
    let failed = life.start(owner.clone(), DiskUse::Shared, |_, _| Err("no memory"));
    assert_eq!(failed, Err(Failure::Step("no memory")));
    let (plan, setup) = life.plan_start(&owner, DiskUse::Shared).unwrap();
    assert_eq!((plan, setup.connections.count()), (DiskPlan::Keep, 1));
}

#[test]
fn a_disk_that_stayed_open_is_not_kept_for_another() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = running(&owner);
    life.disk.opened();
    let _ = life.retire(EndReason::ConnectionsLost);
    life.drained();
    assert_eq!(plan(&mut life, &other), DiskPlan::Replace);
    assert_eq!(
        start_as_it_is(&mut life, &other),
        Err(Refusal::NeedsDisk.into())
    );
    start(&mut life, &other).unwrap();
    assert!(!life.disk.is_current(serial));
}

#[test]
fn a_disk_that_was_closed_for_a_moment_after_the_end_is_kept() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = ended(&owner, EndReason::ConnectionsLost);
    assert!(life.disk.may_clean(serial));
    life.disk.cleaned(serial);
    assert!(!life.disk.may_clean(serial));
    // And may be open again.
    life.disk.opened();
    assert_eq!(plan(&mut life, &other), DiskPlan::Keep);
    start_as_it_is(&mut life, &other).unwrap();
    assert!(life.disk.is_current(serial));
}

#[test]
fn the_moment_may_come_before_the_generation_counts_as_gone() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = running(&owner);
    let _ = life.retire(EndReason::Disconnected);
    life.disk.detached();
    life.disk.cleaned(serial);
    life.drained();
    assert_eq!(plan(&mut life, &other), DiskPlan::Keep);
}

#[test]
fn to_close_before_the_end_does_not_count() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = running(&owner);
    life.disk.opened();
    life.disk.closed();
    assert!(!life.disk.may_clean(serial));
    life.disk.cleaned(serial);
    let _ = life.retire(EndReason::Disconnected);
    // It has ended, and its requests are still under way.
    assert!(!life.disk.may_clean(serial));
    life.disk.cleaned(serial);
    life.drained();
    assert_eq!(plan(&mut life, &other), DiskPlan::Replace);
}

#[test]
fn only_what_was_lost_goes_on_with_its_disk() {
    for (reason, plans) in [
        (EndReason::ConnectionsLost, DiskPlan::Continue),
        (EndReason::TimedOut, DiskPlan::Continue),
        (EndReason::Disconnected, DiskPlan::Replace),
        (EndReason::Cleared, DiskPlan::Replace),
        (EndReason::Interrupted, DiskPlan::Replace),
        (EndReason::StartFailed, DiskPlan::Replace),
    ] {
        let owner = Process::new();
        let (mut life, _) = ended(&owner, reason);
        assert_eq!(plan(&mut life, &owner), plans, "{reason:?}");
        assert_eq!(reason.is_loss(), plans == DiskPlan::Continue);
    }
}

#[test]
fn what_could_not_be_started_again_may_be_tried_once_more() {
    let owner = Process::new();
    let (mut life, _) = ended(&owner, EndReason::ConnectionsLost);
    for _ in 0..2 {
        assert_eq!(plan(&mut life, &owner), DiskPlan::Continue);
        start_as_it_is(&mut life, &owner).unwrap();
        let _ = life.retire(EndReason::StartFailed);
        life.drained();
    }
    // But not after an end that was asked for.
    assert_eq!(plan(&mut life, &owner), DiskPlan::Continue);
    start_as_it_is(&mut life, &owner).unwrap();
    let _ = life.retire(EndReason::Cleared);
    life.drained();
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
}

#[test]
fn only_the_same_owner_and_geometry_go_on_with_the_disk() {
    let (owner, other) = (Process::new(), Process::new());
    let plan_of = |caller: &Process, bytes, block| {
        let (mut life, _) = ended(&owner, EndReason::ConnectionsLost);
        set_up(&mut life, caller, bytes, block);
        life.plan_start(caller, DiskUse::Shared).unwrap().0
    };
    assert_eq!(plan_of(&owner, SIZE, BLOCK), DiskPlan::Continue);
    assert_eq!(plan_of(&other, SIZE, BLOCK), DiskPlan::Replace);
    assert_eq!(plan_of(&owner, SIZE * 2, BLOCK), DiskPlan::Replace);
    assert_eq!(plan_of(&owner, SIZE, BLOCK * 2), DiskPlan::Replace);
    // Nor does a child, though it may start what its parent sets up.
    let child = owner.fork();
    world::as_caller(&child, || {
        let (mut life, _) = ended(&owner, EndReason::ConnectionsLost);
        set_up(&mut life, &owner, SIZE, BLOCK);
        let (plan, _) = life.plan_start(&child, DiskUse::Shared).unwrap();
        assert_eq!(plan, DiskPlan::Replace);
    });
}

#[test]
fn what_counts_is_the_geometry_at_the_end() {
    let owner = Process::new();
    for (bytes, plans) in [(SIZE, DiskPlan::Replace), (SIZE * 2, DiskPlan::Continue)] {
        let (mut life, _) = running(&owner);
        let _ = world::resize(&mut life, &owner, SIZE * 2).unwrap();
        let _ = life.retire(EndReason::TimedOut);
        life.drained();
        set_up(&mut life, &owner, bytes, BLOCK);
        let (plan, _) = life.plan_start(&owner, DiskUse::Shared).unwrap();
        assert_eq!(plan, plans);
    }
}

#[test]
fn netlink_goes_on_with_no_disk() {
    let owner = Process::new();
    let (life, _) = ended(&owner, EndReason::ConnectionsLost);
    let plan = life.plan_connect(&wanted(&owner), DiskUse::Shared);
    assert_eq!(plan, Ok(DiskPlan::Replace));
    // Though who comes by ioctl goes on with what netlink had attached.
    let mut life = Lifecycle::<World>::default();
    connect(&mut life, wanted(&owner), DiskUse::Shared).unwrap();
    let _ = life.retire(EndReason::ConnectionsLost);
    life.drained();
    assert_eq!(self::plan(&mut life, &owner), DiskPlan::Continue);
}

#[test]
fn what_goes_on_may_be_lost_and_go_on_again() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = ended(&owner, EndReason::ConnectionsLost);
    life.disk.opened();
    for _ in 0..3 {
        assert_eq!(plan(&mut life, &owner), DiskPlan::Continue);
        start_as_it_is(&mut life, &owner).unwrap();
        let _ = life.retire(EndReason::ConnectionsLost);
        life.drained();
    }
    assert!(life.disk.is_current(serial));
    // Whoever had it open in the first has it open still.
    assert_eq!(plan(&mut life, &other), DiskPlan::Replace);
}

#[test]
fn a_lost_generation_does_not_go_on_once_another_has_run() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, _) = ended(&owner, EndReason::ConnectionsLost);
    set_up(&mut life, &other, SIZE, BLOCK);
    start(&mut life, &other).unwrap();
    let _ = life.retire(EndReason::ConnectionsLost);
    life.drained();
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
}

#[test]
fn what_goes_on_finds_a_clean_disk_if_nobody_had_it_open() {
    let owner = Process::new();
    let (mut life, serial) = ended(&owner, EndReason::ConnectionsLost);
    life.disk.cleaned(serial);
    assert_eq!(plan(&mut life, &owner), DiskPlan::Keep);
}

#[test]
fn what_goes_on_without_its_disk_gets_another() {
    let owner = Process::new();
    let (mut life, _) = ended(&owner, EndReason::ConnectionsLost);
    life.disk.replace().unwrap();
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
}

#[test]
fn under_an_exclusive_user_no_disk_is_replaced_or_kept_for_another() {
    let (owner, other) = (Process::new(), Process::new());
    for clean in [false, true] {
        let (mut life, serial) = ended(&owner, EndReason::ConnectionsLost);
        if clean {
            life.disk.cleaned(serial);
        }
        let held = life.plan_connect(&wanted(&owner), DiskUse::Exclusive);
        assert_eq!(held, Err(Refusal::Held));
        set_up(&mut life, &other, SIZE, BLOCK);
        let held = start_under(&mut life, &other, DiskUse::Exclusive);
        assert_eq!(held, Err(Refusal::Held.into()));
        assert!(life.disk.is_current(serial));
    }
}

#[test]
fn a_cleaning_that_comes_after_the_next_start_changes_nothing() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = ended(&owner, EndReason::ConnectionsLost);
    set_up(&mut life, &owner, SIZE, BLOCK);
    start(&mut life, &owner).unwrap();
    assert!(!life.disk.may_clean(serial));
    life.disk.cleaned(serial);
    let _ = life.retire(EndReason::ConnectionsLost);
    life.drained();
    assert_eq!(plan(&mut life, &other), DiskPlan::Replace);
}

#[test]
fn a_cleaning_of_a_disk_that_is_gone_changes_nothing() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, gone) = ended(&owner, EndReason::Disconnected);
    set_up(&mut life, &other, SIZE, BLOCK);
    start(&mut life, &other).unwrap();
    let _ = life.retire(EndReason::Disconnected);
    life.drained();
    assert!(!life.disk.may_clean(gone));
    life.disk.cleaned(gone);
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
    // Nor while there is none.
    life.disk.replace().unwrap();
    life.disk.cleaned(gone);
    let (plan, _) = life.plan_start(&owner, DiskUse::Shared).unwrap();
    assert_eq!(plan, DiskPlan::Replace);
}

#[test]
fn closes_of_a_disk_that_is_gone_do_not_count_for_the_one_that_is_there() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, gone) = running(&owner);
    life.disk.opened();
    let _ = life.retire(EndReason::Disconnected);
    life.drained();
    set_up(&mut life, &other, SIZE, BLOCK);
    start(&mut life, &other).unwrap();
    // Both are open, and both count as such.
    life.disk.opened();
    assert_eq!(life.disk.opens(), 2);
    let _ = life.retire(EndReason::Disconnected);
    life.drained();
    // The last close of the one that is gone.
    life.disk.closed();
    life.disk.cleaned(gone);
    assert_eq!(life.disk.opens(), 1);
    assert_eq!(plan(&mut life, &owner), DiskPlan::Replace);
}

#[test]
fn a_disk_that_is_attached_is_not_given_up() {
    let owner = Process::new();
    let (mut life, serial) = running(&owner);
    assert_eq!(life.disk.replace(), None);
    let _ = life.retire(EndReason::Disconnected);
    assert_eq!(life.disk.replace(), None);
    assert!(life.disk.is_current(serial));
    life.drained();
    assert!(life.disk.replace().is_some());
    assert!(!life.disk.is_current(serial));
}

#[test]
fn a_disk_that_comes_after_another_was_asked_for_is_not_it() {
    let mut disk = DiskState::default();
    // The first of two failed to come in time.
    let late = disk.replace().unwrap();
    let serial = disk.replace().unwrap();
    assert_ne!(late, serial);
    disk.added(late);
    assert!(!disk.is_current(late) && !disk.is_current(serial));
    disk.added(serial);
    assert!(disk.is_current(serial) && !disk.is_current(late));
}

#[test]
fn a_disk_that_is_added_twice_is_not_clean_for_it() {
    let (owner, other) = (Process::new(), Process::new());
    let (mut life, serial) = ended(&owner, EndReason::Disconnected);
    life.disk.added(serial);
    assert_eq!(plan(&mut life, &other), DiskPlan::Replace);
}

#[test]
fn a_close_too_many_is_not_counted() {
    let mut disk = DiskState::default();
    disk.closed();
    disk.opened();
    assert_eq!(disk.opens(), 1);
}
