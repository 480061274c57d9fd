// SPDX-License-Identifier: GPL-2.0

//! A device that is detached by its last close, while it is detached and attached anew by another:
//! the close is not the new generation's, which was not used.

use crate::{
    device::Ledger,
    explore::explore,
    netlink::{Devices, Wish},
    rules::Rules,
};
use loom::thread;
use rnbd_protocol::setup::Phase;
use std::sync::Arc;

fn closed(name: &str, preemptions: usize, rules: Rules) {
    explore(name, Some(preemptions), move || {
        let devices = Devices::new();
        let device = devices.find_or_add().device.clone();
        let people = Arc::<Ledger>::default();
        let worker = {
            let devices = devices.clone();
            thread::spawn(move || devices.work())
        };
        let wish = Wish {
            disconnect_on_close: true,
            rules,
            ..Wish::PLAIN
        };
        let connect = || {
            assert!(
                devices.connect(&people.process(), wish).is_ok(),
                "a device that is free cannot be attached"
            );
        };
        connect();
        device.note_use();
        let user = {
            let device = device.clone();
            thread::spawn(move || device.closed_last(rules))
        };
        devices.disconnect();
        connect();
        user.join().unwrap();
        assert!(
            matches!(device.lock().phase(), Phase::Running { .. }),
            "a close has ended a generation that was not used"
        );
        devices.disconnect();
        devices.stop_work();
        worker.join().unwrap();
        devices.assert_none_left();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_close_ends_what_was_used() {
    closed("last close amid a reattachment", 3, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a close has ended a generation that was not used")]
fn a_close_in_two_steps_ends_the_next_generation() {
    let rules = Rules {
        closes_in_one_step: false,
        ..Rules::DRIVER
    };
    closed("a close in two steps", 3, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a close has ended a generation that was not used")]
fn use_that_is_forgotten_late_is_the_next_generations() {
    let rules = Rules {
        forgets_use_at_once: false,
        ..Rules::DRIVER
    };
    closed("use forgotten late", 3, rules);
}
