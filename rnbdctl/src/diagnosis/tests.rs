// SPDX-License-Identifier: GPL-2.0
//! Devices in each state, and what is said of them.

use std::path::PathBuf;

use super::*;
use crate::device::Device;
use crate::process::Owner;
use crate::tables::{Connection, Request};
use crate::users::Opener;

/// An idle device of rnbd's.
fn details() -> Details {
    Details {
        device: Device {
            index: 3,
            device: "/dev/nbd3".into(),
            driver: Driver::Rnbd,
            state: State::Idle,
            generation: Some(7),
            owner: None,
            connections: Some(Connections { live: 0, all: 0 }),
            size: 0,
            requests: 0,
            oldest_request_ms: None,
            last_error: None,
        },
        read_only: false,
        block_size: 512,
        backend: None,
        by_netlink: false,
        timeout_s: None,
        flags: None,
        connection_table: None,
        request_table: None,
        users: Vec::new(),
        openers: Vec::new(),
        unreadable: Vec::new(),
    }
}

fn owner(alive: Option<bool>) -> Option<Owner> {
    Some(Owner { pid: 4711, comm: "qemu-nbd".to_owned(), alive })
}

fn in_setup(alive: Option<bool>) -> Details {
    let mut details = details();
    details.device.state = State::Setup;
    details.device.owner = owner(alive);
    details.device.connections = Some(Connections { live: 2, all: 2 });
    details
}

fn attached(by_netlink: bool, live: u32, all: u32) -> Details {
    let mut details = details();
    details.device.state = State::Running;
    details.device.owner = owner(Some(!by_netlink));
    details.device.connections = Some(Connections { live, all });
    details.by_netlink = by_netlink;
    details.connection_table = Some((0..all).map(|index| connection(index, index < live)).collect());
    details
}

fn connection(index: u32, live: bool) -> Connection {
    Connection {
        index,
        family: "tcp4".to_owned(),
        local: "10.0.0.1:40000".to_owned(),
        peer: "10.0.0.2:10809".to_owned(),
        live,
        dead_ms: (!live).then_some(1200),
        epoch: 0,
        owner: 4711,
        in_flight: 0,
        sent: 0,
        received: 0,
        reason: (!live).then(|| "the server closed it".to_owned()),
    }
}

fn mounted() -> User {
    User::Mount {
        node: "nbd3p1".to_owned(),
        filesystem: "ext4".to_owned(),
        at: PathBuf::from("/srv"),
        namespace_of: None,
    }
}

/// The main thing that is said, and what to do.
fn said(details: &Details) -> (String, String) {
    let first = of(details).remove(0);
    (first.what, first.to_do.unwrap_or_default())
}

#[track_caller]
fn has(text: &str, wanted: &str) {
    assert!(text.contains(wanted), "{wanted:?} is not in {text:?}");
}

#[test]
fn a_free_device_is_free_whoever_has_it_open() {
    let mut details = details();
    details.openers.push(Opener { pid: 12, comm: "blkid".to_owned(), node: "nbd3".to_owned() });
    let advice = of(&details);
    has(&advice[0].what, "It is free: rnbdctl connect --device nbd3");
    has(&advice[1].what, "Open in 12 (blkid); that does not keep it from being attached.");
    details.device.driver = Driver::Nbd;
    has(&of(&details)[1].what, "with nbd.ko that keeps netlink from attaching it");
}

#[test]
fn an_exclusive_user_of_an_idle_device_is_named_with_the_way_out() {
    let mut details = details();
    details.users = vec![
        mounted(),
        User::Swap { node: "nbd3".to_owned() },
        User::Loop { node: "nbd3".to_owned(), name: "loop0".to_owned() },
    ];
    let (what, to_do) = said(&details);
    has(&what, "refused to all but the last owner");
    has(&what, "ext4 of /dev/nbd3p1, mounted at /srv; swap on /dev/nbd3");
    assert!(!what.contains("loop0"), "a loop device keeps nobody out");
    assert_eq!(to_do, "umount /srv; swapoff /dev/nbd3; then it is free.");
}

#[test]
fn a_living_owners_setup_is_protected() {
    let (what, to_do) = said(&in_setup(Some(true)));
    has(&what, "4711 (qemu-nbd) is setting it up, with 2 sockets so far. Others get EBUSY");
    has(&to_do, "rnbdctl disconnect nbd3");
}

#[test]
fn an_owner_that_cannot_be_seen_is_not_called_dead() {
    let (what, _) = said(&in_setup(None));
    has(&what, "unless that is dead, which cannot be seen from here");
}

#[test]
fn an_orphaned_setup_refuses_nobody() {
    let (what, to_do) = said(&in_setup(Some(false)));
    has(&what, "an orphan: 4711 (qemu-nbd) began it, with 2 sockets, and is gone. It refuses nobody");
    has(&to_do, "Attach it anew");
}

#[test]
fn all_is_well_with_live_connections() {
    let advice = of(&attached(true, 1, 1));
    assert_eq!(advice.len(), 1);
    has(
        &advice[0].what,
        "by netlink; 4711 (qemu-nbd) did it, which has ended since, as it may. Its connection is live.",
    );
    assert_eq!(advice[0].to_do, None);
    let (what, _) = said(&attached(false, 4, 4));
    assert_eq!(what, "It is attached, as long as 4711 (qemu-nbd) runs. All 4 connections are live.");
}

#[test]
fn a_dead_connection_among_others_can_be_replaced() {
    let (what, to_do) = said(&attached(true, 3, 4));
    has(&what, "1 of 4 connections is dead (the server closed it); the others serve it.");
    has(&to_do, "rnbdctl reconfigure nbd3 SERVER");
    let (_, to_do) = said(&attached(false, 2, 4));
    has(&to_do, "by ioctl");
}

#[test]
fn requests_that_wait_for_a_connection_are_told_with_both_ways_out() {
    let mut details = attached(true, 0, 2);
    has(&said(&details).0, "nothing waits for it at the moment");
    details.device.requests = 3;
    let (what, to_do) = said(&details);
    has(&what, "All 2 connections are dead (the server closed it); 3 requests wait for a new one.");
    has(&to_do, "rnbdctl reconfigure nbd3 SERVER");
    has(&to_do, "rnbdctl disconnect nbd3");
    has(&to_do, "dead connection time-out");
    details.device.requests = 1;
    has(&said(&details).0, "1 request waits for a new one");
}

#[test]
fn a_server_that_does_not_answer_is_told_with_what_waits() {
    let mut details = attached(true, 1, 1);
    let request =
        |age_ms| Request { age_ms, operation: "read".to_owned(), sector: 8, bytes: 4096, connection: 0 };
    details.request_table = Some(vec![request(Some(400)), request(Some(75_000))]);
    details.device.oldest_request_ms = Some(75_000);
    let advice = of(&details);
    has(
        &advice[1].what,
        "a read of 4096 bytes waits on connection 0 (10.0.0.2:10809) for 1m 15s; there is no time-out",
    );
    has(advice[1].to_do.as_deref().unwrap(), "rnbdctl handover nbd3 SERVER");
    details.timeout_s = Some(90);
    has(&of(&details)[1].what, "after 1m 30s");
    details.device.oldest_request_ms = Some(9_999);
    assert_eq!(of(&details).len(), 1, "a young request is nothing to speak of");
}

#[test]
fn draining_ends_by_itself_and_names_who_loses_the_device() {
    let mut details = attached(true, 0, 1);
    details.device.state = State::Draining;
    details.users.push(mounted());
    let advice = of(&details);
    has(&advice[0].what, "It is being detached");
    has(&advice[1].what, "It is detached under ext4 of /dev/nbd3p1, mounted at /srv");
    assert_eq!(advice[1].to_do.as_deref(), Some("umount /srv."));
}

#[test]
fn the_incident_on_nbd_ko_is_told_with_who_keeps_the_device() {
    let mut details = attached(false, 1, 1);
    details.device.driver = Driver::Nbd;
    details.device.connections = None;
    details.openers.push(Opener { pid: 12, comm: "blkid".to_owned(), node: "nbd3".to_owned() });
    has(&said(&details).0, "It is attached, as long as 4711 (qemu-nbd) runs.");
    details.device.owner = Some(Owner { pid: 4711, comm: String::new(), alive: Some(false) });
    let (what, to_do) = said(&details);
    has(&what, "process 4711, which did that by ioctl, is gone");
    has(&what, "fails with EBUSY. It is open in 12 (blkid).");
    has(&to_do, "End the processes that have it open");
    details.users.push(mounted());
    has(&said(&details).1, "umount /srv, then");
    // Who attaches by netlink may go.
    details.by_netlink = true;
    has(&said(&details).0, "It is attached, by netlink");
}

#[test]
fn what_nbd_ko_holds_is_explained_with_who_has_it_open() {
    let mut details = details();
    details.device.driver = Driver::Nbd;
    details.device.state = State::Held;
    details.device.connections = None;
    details.openers.push(Opener { pid: 12, comm: "blkid".to_owned(), node: "nbd3".to_owned() });
    let (what, to_do) = said(&details);
    has(&what, "It is open in 12 (blkid)");
    has(&what, "Device being setup by another task");
    has(&to_do, "End the processes that have it open");
    details.openers.clear();
    has(&said(&details).0, "no process that can be seen from here");
}

#[test]
fn the_last_error_comes_last() {
    let mut details = details();
    details.device.last_error = Some("generation 6, connection 0: the server closed it".to_owned());
    let advice = of(&details);
    assert_eq!(
        advice.last().unwrap().what,
        "The last thing that went wrong: generation 6, connection 0: the server closed it."
    );
}

#[test]
fn a_state_of_the_future_is_shown_as_it_is() {
    let mut details = details();
    details.device.state = State::Other("resting".to_owned());
    has(&said(&details).0, "\"resting\" is unknown");
}
