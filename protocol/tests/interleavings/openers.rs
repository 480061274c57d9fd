// SPDX-License-Identifier: GPL-2.0

//! Openers who come and go while a device is detached and attached anew (invariant G4): no
//! generation meets another's openers, or what those have left in the page cache.

use crate::{
    disk::{Client, Device},
    explore::explore,
    rules::Rules,
};
use loom::thread;
use rnbd_protocol::setup::{
    DiskPlan::{self, Continue, Keep, Replace},
    EndReason,
};
use std::sync::{Arc, Mutex};

const OWNER: Client = Client(1);
const OTHER: Client = Client(2);
const THIRD: Client = Client(3);

/// What was planned in any of the interleavings.
type Plans = Arc<Mutex<Vec<DiskPlan>>>;

fn note(plans: &Plans, plan: DiskPlan) {
    let mut plans = plans.lock().unwrap();
    if !plans.contains(&plan) {
        plans.push(plan);
    }
}

fn assert_planned(plans: &Plans, all: &[DiskPlan]) {
    let plans = plans.lock().unwrap();
    assert!(
        plans.len() == all.len() && all.iter().all(|plan| plans.contains(plan)),
        "not all that may happen has: {plans:?}"
    );
}

/// One who has the device open, writes and closes it; another who opens it, and does so.
fn openers(device: &Arc<Device>, late: bool) -> Vec<thread::JoinHandle<()>> {
    let early = device.open(1).expect("a disk");
    let first = {
        let device = device.clone();
        thread::spawn(move || {
            early.write();
            device.close(1, &early);
        })
    };
    let second = late.then(|| {
        let device = device.clone();
        thread::spawn(move || {
            if let Some(disk) = device.open(2) {
                disk.write();
                device.close(2, &disk);
            }
        })
    });
    [Some(first), second].into_iter().flatten().collect()
}

/// A generation of [`OWNER`] ends for `reason`; it comes back by ioctl, and another comes by netlink,
/// at once. One of them has the device then.
fn contended(
    name: &str,
    preemptions: usize,
    late: bool,
    reason: EndReason,
    rules: Rules,
    all: &[DiskPlan],
) {
    let plans = Plans::default();
    let noted = plans.clone();
    explore(name, Some(preemptions), move || {
        let device = Device::new(rules);
        device.start(OWNER).unwrap();
        let openers = openers(&device, late);
        let ended = device.retire(reason);
        let contender = {
            let device = device.clone();
            thread::spawn(move || device.connect(OTHER).ok())
        };
        device.drain(&ended);
        let back = device.start(OWNER);
        let other = contender.join().unwrap();
        assert!(
            back.is_ok() != other.is_some(),
            "one of two is attached, and one alone"
        );
        note(&noted, back.ok().or(other).unwrap());
        for opener in openers {
            opener.join().unwrap();
        }
        device.assert_closed();
    });
    assert_planned(&plans, all);
}

/// A generation ends, another's comes and ends, and a third. The second's disk stays open.
fn replaced(name: &str, preemptions: usize, rules: Rules) {
    let (second, third) = (Plans::default(), Plans::default());
    let (noted_second, noted_third) = (second.clone(), third.clone());
    explore(name, Some(preemptions), move || {
        let device = Device::new(rules);
        device.start(OWNER).unwrap();
        let openers = openers(&device, false);
        device.drain(&device.retire(EndReason::Disconnected));
        note(&noted_second, device.connect(OTHER).unwrap());
        let held = device.open(3).expect("a disk");
        device.drain(&device.retire(EndReason::Disconnected));
        note(&noted_third, device.connect(THIRD).unwrap());
        device.close(3, &held);
        for opener in openers {
            opener.join().unwrap();
        }
        device.assert_closed();
    });
    assert_planned(&second, &[Keep, Replace]);
    assert_planned(&third, &[Replace]);
}

/// A generation is lost and goes on, and when that has ended another's comes.
fn continued(name: &str, preemptions: usize, late: bool, rules: Rules) {
    let (went_on, came) = (Plans::default(), Plans::default());
    let (noted_on, noted) = (went_on.clone(), came.clone());
    explore(name, Some(preemptions), move || {
        let device = Device::new(rules);
        device.start(OWNER).unwrap();
        let openers = openers(&device, late);
        device.drain(&device.retire(EndReason::ConnectionsLost));
        note(&noted_on, device.start(OWNER).unwrap());
        device.drain(&device.retire(EndReason::ConnectionsLost));
        note(&noted, device.connect(THIRD).unwrap());
        for opener in openers {
            opener.join().unwrap();
        }
        device.assert_closed();
    });
    assert_planned(&went_on, &[Keep, Continue]);
    assert_planned(&came, &[Keep, Replace]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn no_generation_meets_anothers_openers_or_pages() {
    let ends = EndReason::Disconnected;
    let all = &[Keep, Replace];
    contended("opener, contender", 3, false, ends, Rules::DRIVER, all);
    contended("openers, contender", 2, true, ends, Rules::DRIVER, all);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_close_of_a_disk_that_is_gone_does_not_clean_the_next() {
    replaced("opener of a disk that is gone", 3, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn only_who_was_lost_meets_them() {
    let ends = EndReason::ConnectionsLost;
    let all = &[Keep, Continue, Replace];
    contended(
        "openers, lost, contender",
        2,
        true,
        ends,
        Rules::DRIVER,
        all,
    );
    continued("openers, lost twice", 3, true, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a generation starts on a disk that holds pages of another")]
fn to_clean_what_seems_not_to_be_open_leaves_pages() {
    let rules = Rules {
        cleans_under_open_lock: false,
        ..Rules::DRIVER
    };
    let ends = EndReason::Disconnected;
    contended("cleaned without the lock", 2, false, ends, rules, &[]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a generation starts on a disk that holds pages of another")]
fn to_keep_what_seems_not_to_be_open_leaves_pages() {
    let rules = Rules {
        keeps_what_is_clean: false,
        ..Rules::DRIVER
    };
    let ends = EndReason::Disconnected;
    contended("kept without being clean", 2, false, ends, rules, &[]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "the partitions of a generation that is being started are dropped")]
fn to_clean_while_a_generation_is_started_takes_its_partitions() {
    let rules = Rules {
        cleans_outside_of_starts: false,
        ..Rules::DRIVER
    };
    continued("cleaned amid a start", 3, false, rules);
}
