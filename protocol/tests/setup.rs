// SPDX-License-Identifier: GPL-2.0

//! Phases, owner and connections: the rules one by one.

mod world;

use rnbd_protocol::{
    flags::TransmissionFlags,
    geometry::ExportSize,
    setup::{Configured, DiskUse, EndReason, Failure, Lifecycle, Phase, Refusal, Retired},
};
use world::{
    add, count, idle, next_disk, resize, running, set_up, start, start_under, Process, World,
};

fn draining(owner: &Process) -> Lifecycle<World> {
    let mut life = running(owner);
    assert!(matches!(
        life.retire(EndReason::Cleared),
        Retired::Stopped(_)
    ));
    life
}

#[test]
fn the_first_socket_starts_a_generation() {
    let owner = Process::new();
    let mut life = idle();
    assert_eq!(life.generation(), 0);
    assert!(add(&mut life, &owner, 7).unwrap().is_none());
    assert_eq!(life.generation(), 1);
    assert!(life.owner() == Some(&owner));
}

#[test]
fn settings_may_come_before_the_socket() {
    let owner = Process::new();
    let mut life = idle();
    let _ = resize(&mut life, &owner, 4096).unwrap();
    add(&mut life, &owner, 7).unwrap();
    assert_eq!(life.generation(), 1);
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!(setup.config.size.bytes(), 4096);
    assert_eq!(count(setup), 1);
}

#[test]
fn a_living_owners_setup_is_protected() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = set_up(&owner);
    assert_eq!(life.may_add(&other, DiskUse::Shared), Err(Refusal::Owned));
    assert_eq!(
        add(&mut life, &other, 8).err(),
        Some(Failure::Refused(Refusal::Owned))
    );
    assert_eq!(
        resize(&mut life, &other, 512).err(),
        Some(Failure::Refused(Refusal::Owned))
    );
    assert_eq!(
        start(&mut life, &other).err(),
        Some(Failure::Refused(Refusal::Owned))
    );
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!((count(setup), setup.config.size.bytes()), (1, 0));
}

#[test]
fn an_orphan_is_replaced_whole_by_a_new_generation() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = set_up(&owner);
    let _ = resize(&mut life, &owner, 4096).unwrap();
    owner.die();
    let orphan = add(&mut life, &other, 8).unwrap().expect("an orphan");
    assert_eq!(orphan.0, [1]);
    assert_eq!(life.generation(), 2);
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!(setup.connections.0, [8]);
    assert_eq!(
        setup.config.size.bytes(),
        0,
        "settings of the orphan mixed in"
    );
}

#[test]
fn settings_replace_an_orphan_too() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = set_up(&owner);
    owner.die();
    let Ok(Configured::Setup(Some(orphan))) = resize(&mut life, &other, 512) else {
        panic!("the orphan was not given up")
    };
    assert_eq!(orphan.0, [1]);
    assert_eq!(life.generation(), 2);
}

#[test]
fn an_orphan_is_adopted_by_whoever_starts_it() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = set_up(&owner);
    owner.die();
    assert_eq!(start(&mut life, &other), Ok(vec![1]));
    assert!(life.owner() == Some(&other));
    assert_eq!(life.generation(), 1);
}

#[test]
fn a_child_starts_what_its_living_parent_set_up() {
    let owner = Process::new();
    let child = owner.fork();
    let mut life = set_up(&owner);
    world::as_caller(&child, || {
        assert_eq!(start(&mut life, &child), Ok(vec![1]));
    });
    assert!(life.owner() == Some(&child));
}

#[test]
fn nothing_starts_without_a_socket() {
    let owner = Process::new();
    let mut life = idle();
    assert_eq!(
        start(&mut life, &owner).err(),
        Some(Failure::Refused(Refusal::NoConnection))
    );
    let _ = resize(&mut life, &owner, 512).unwrap();
    assert_eq!(
        start(&mut life, &owner).err(),
        Some(Failure::Refused(Refusal::NoConnection))
    );
}

#[test]
fn several_sockets_need_the_servers_word() {
    let owner = Process::new();
    let mut life = set_up(&owner);
    add(&mut life, &owner, 2).unwrap();
    assert_eq!(
        start(&mut life, &owner).err(),
        Some(Failure::Refused(Refusal::NotMultiConn))
    );
    let configured = life.configure(owner.clone(), |config| {
        config.flags = TransmissionFlags::CAN_MULTI_CONN;
        Ok::<(), ()>(())
    });
    assert!(configured.is_ok());
    assert_eq!(start(&mut life, &owner), Ok(vec![1, 2]));
}

#[test]
fn nothing_is_added_to_what_runs_or_drains() {
    let owner = Process::new();
    for (mut life, refusal) in [
        (running(&owner), Refusal::Running),
        (draining(&owner), Refusal::Draining),
    ] {
        assert_eq!(life.may_add(&owner, DiskUse::Shared), Err(refusal));
        assert_eq!(
            add(&mut life, &owner, 9).err(),
            Some(Failure::Refused(refusal))
        );
        assert_eq!(
            start(&mut life, &owner).err(),
            Some(Failure::Refused(refusal))
        );
    }
}

#[test]
fn what_runs_may_be_resized_by_anyone() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = running(&owner);
    let Ok(Configured::Live(attachment)) = resize(&mut life, &other, 8192) else {
        panic!("refused")
    };
    assert_eq!(attachment, [1]);
    let Phase::Running { config, .. } = life.phase() else {
        panic!("not running")
    };
    assert_eq!(config.size, ExportSize::from_bytes(8192).unwrap());
}

#[test]
fn a_bad_setting_changes_nothing() {
    let owner = Process::new();
    let mut life = idle();
    let bad =
        |life: &mut Lifecycle<World>| life.configure(owner.clone(), |_| Err::<(), _>("bad")).err();
    assert_eq!(bad(&mut life), Some(Failure::Step("bad")));
    assert_eq!(life.generation(), 0);
    assert!(matches!(life.phase(), Phase::Idle));
    let mut life = running(&owner);
    assert_eq!(bad(&mut life), Some(Failure::Step("bad")));
}

#[test]
fn a_start_that_fails_leaves_the_setup() {
    let owner = Process::new();
    let mut life = set_up(&owner);
    next_disk(&mut life.disk);
    let failed = life.start(owner.clone(), DiskUse::Shared, |_, _| {
        Err::<Vec<u32>, _>("no memory")
    });
    assert_eq!(failed, Err(Failure::Step("no memory")));
    assert_eq!(start(&mut life, &owner), Ok(vec![1]));
}

#[test]
fn the_first_reason_for_an_end_stands() {
    let owner = Process::new();
    let mut life = running(&owner);
    assert!(matches!(
        life.retire(EndReason::TimedOut),
        Retired::Stopped(_)
    ));
    assert!(matches!(
        life.retire(EndReason::Cleared),
        Retired::AlreadyDraining(_)
    ));
    assert_eq!(life.drained(), Some(EndReason::TimedOut));
    assert!(matches!(life.phase(), Phase::Idle));
    assert_eq!(life.drained(), None);
}

#[test]
fn a_setup_that_is_retired_is_handed_out() {
    let owner = Process::new();
    let mut life = set_up(&owner);
    let Retired::Setup(connections) = life.retire(EndReason::Cleared) else {
        panic!("no setup")
    };
    assert_eq!(connections.0, [1]);
    assert!(matches!(life.retire(EndReason::Cleared), Retired::Nothing));
}

#[test]
fn only_a_setup_is_abandoned() {
    let owner = Process::new();
    assert!(idle().abandon_setup().is_none());
    assert!(running(&owner).abandon_setup().is_none());
    assert!(draining(&owner).abandon_setup().is_none());
    assert!(set_up(&owner).abandon_setup().is_some());
}

#[test]
fn an_idle_device_is_set_up_again_at_once() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = draining(&owner);
    life.drained();
    add(&mut life, &other, 5).unwrap();
    assert_eq!(life.generation(), 2);
    assert_eq!(start(&mut life, &other), Ok(vec![5]));
}

#[test]
fn an_owner_that_clears_starts_over_with_its_settings() {
    let owner = Process::new();
    let mut life = set_up(&owner);
    let _ = resize(&mut life, &owner, 4096).unwrap();
    let Retired::Setup(connections) = life.clear(&owner) else {
        panic!("no setup")
    };
    assert_eq!(connections.0, [1]);
    assert_eq!(life.generation(), 2);
    add(&mut life, &owner, 9).unwrap();
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!((setup.config.size.bytes(), count(setup)), (4096, 1));
}

#[test]
fn anyone_else_who_clears_ends_the_setup() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = set_up(&owner);
    assert!(matches!(life.clear(&other), Retired::Setup(_)));
    assert!(matches!(life.phase(), Phase::Idle));
    let mut life = running(&owner);
    assert!(matches!(life.clear(&owner), Retired::Stopped(_)));
}

/// Whether `caller` may attach an export of `bytes` to a disk that has an exclusive holder,
/// after `owner` had one of 4096, which ended for `reason`.
fn may_return(
    owner: &Process,
    reason: EndReason,
    caller: &Process,
    bytes: u64,
) -> Result<(), Failure<()>> {
    let mut life = idle();
    let _ = resize(&mut life, owner, 4096).unwrap();
    add(&mut life, owner, 1).unwrap();
    start(&mut life, owner).unwrap();
    let _ = life.retire(reason);
    life.drained();
    let _ = resize(&mut life, caller, bytes).unwrap();
    let (_, added) = life.add(caller.clone(), DiskUse::Exclusive, |_, connections| {
        connections.0.push(2);
        Ok(())
    });
    added?;
    start_under(&mut life, caller, DiskUse::Exclusive).map(|_| ())
}

#[test]
fn only_the_last_owner_comes_back_under_an_exclusive_user_and_to_the_same_size() {
    let (owner, other) = (Process::new(), Process::new());
    let held = Err(Failure::Refused(Refusal::Held));
    let lost = EndReason::ConnectionsLost;
    assert_eq!(may_return(&owner, lost, &owner, 4096), Ok(()));
    assert_eq!(may_return(&owner, lost, &owner, 8192), held);
    assert_eq!(may_return(&owner, lost, &other, 4096), held);
}

#[test]
fn nobody_comes_back_under_an_exclusive_user_to_what_was_ended_on_request() {
    let owner = Process::new();
    for reason in [EndReason::ConnectionsLost, EndReason::TimedOut] {
        assert_eq!(may_return(&owner, reason, &owner, 4096), Ok(()));
    }
    for reason in [
        EndReason::Disconnected,
        EndReason::Cleared,
        EndReason::Interrupted,
        EndReason::StartFailed,
    ] {
        let held = Err(Failure::Refused(Refusal::Held));
        assert_eq!(may_return(&owner, reason, &owner, 4096), held, "{reason:?}");
    }
}

#[test]
fn a_disk_that_was_never_attached_is_not_taken_from_its_exclusive_user() {
    let owner = Process::new();
    assert_eq!(
        idle().may_add(&owner, DiskUse::Exclusive),
        Err(Refusal::Held)
    );
}

#[test]
fn who_clears_after_his_own_end_does_not_hit_the_next_owner() {
    let (first, second) = (Process::new(), Process::new());
    let ended = || {
        let mut life = running(&first);
        let _ = life.retire(EndReason::Disconnected);
        life.drained();
        life
    };
    for run in [false, true] {
        let mut life = ended();
        add(&mut life, &second, 2).unwrap();
        if run {
            start(&mut life, &second).unwrap();
        }
        assert!(matches!(life.clear(&first), Retired::Nothing));
        // That was for its own. The next time it ends what is there, as for any caller.
        assert!(!matches!(life.clear(&first), Retired::Nothing));
    }
    let mut life = ended();
    add(&mut life, &second, 2).unwrap();
    assert!(matches!(life.clear(&Process::new()), Retired::Setup(_)));
    let mut life = ended();
    add(&mut life, &second, 2).unwrap();
    second.die();
    assert!(matches!(life.clear(&first), Retired::Setup(_)));
}
