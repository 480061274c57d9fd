// SPDX-License-Identifier: GPL-2.0

//! What is remembered of processes that do not set the device up: what they have said of an export.

mod world;

use rnbd_protocol::setup::{EndReason, Failure, Phase, Refusal, Retired};
use world::{add, as_caller, idle, resize, running, set_up, start, Process};

#[test]
fn settings_without_a_socket_keep_nobody_out() {
    let (first, second) = (Process::new(), Process::new());
    let mut life = idle();
    let _ = resize(&mut life, &first, 4096).unwrap();
    let _ = resize(&mut life, &second, 8192).unwrap();
    add(&mut life, &second, 7).unwrap();
    // From here on it is as ever.
    assert_eq!(
        resize(&mut life, &first, 512).err(),
        Some(Failure::Refused(Refusal::Owned))
    );
    start(&mut life, &second).unwrap();
    let Phase::Running { config, .. } = life.phase() else {
        panic!("not running")
    };
    assert_eq!(config.size.bytes(), 8192);
}

#[test]
fn each_attaches_what_it_has_said_itself() {
    let (first, second) = (Process::new(), Process::new());
    let mut life = idle();
    let _ = resize(&mut life, &first, 4096).unwrap();
    let _ = resize(&mut life, &second, 8192).unwrap();
    // Whoever brings the first socket, with whatever it said before.
    add(&mut life, &first, 7).unwrap();
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!(setup.config.size.bytes(), 4096);
    assert_eq!(
        add(&mut life, &second, 8).err(),
        Some(Failure::Refused(Refusal::Owned))
    );
}

#[test]
fn who_lost_its_place_clears_nothing_of_anothers() {
    let (first, second) = (Process::new(), Process::new());
    let mut life = idle();
    let _ = resize(&mut life, &first, 4096).unwrap();
    add(&mut life, &second, 7).unwrap();
    // As nbd-client does between its settings and its sockets.
    assert!(matches!(life.clear(&first), Retired::Nothing));
    start(&mut life, &second).unwrap();
    // But whoever asks for it in earnest ends what is attached.
    assert!(matches!(life.clear(&first), Retired::Stopped(_)));
}

#[test]
fn a_cleared_setup_keeps_nobody_out() {
    let (first, second) = (Process::new(), Process::new());
    let mut life = set_up(&first);
    assert!(matches!(life.clear(&first), Retired::Setup(_)));
    add(&mut life, &second, 8).unwrap();
    start(&mut life, &second).unwrap();
}

#[test]
fn a_child_attaches_what_its_parent_has_said() {
    let parent = Process::new();
    let child = parent.fork();
    let mut life = idle();
    let _ = resize(&mut life, &parent, 4096).unwrap();
    as_caller(&child, || {
        add(&mut life, &child, 7).unwrap();
    });
    let Phase::Setup(setup) = life.phase() else {
        panic!("not in setup")
    };
    assert_eq!(setup.config.size.bytes(), 4096);
    assert!(setup.owner == child);
}

#[test]
fn only_its_owner_finds_a_generation_that_runs() {
    let (owner, other) = (Process::new(), Process::new());
    let mut life = running(&owner);
    assert!(life.attached_by(&owner).is_some());
    assert!(life.attached_by(&other).is_none());
    let _ = life.retire(EndReason::Cleared);
    assert!(life.attached_by(&owner).is_none(), "it has ended");
}
