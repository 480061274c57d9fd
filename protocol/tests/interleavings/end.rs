// SPDX-License-Identifier: GPL-2.0

//! A generation that netlink has started is ended by a worker: once, and not while the task that
//! started it still brings it up.

use crate::{explore::explore, rules::Rules, transport::Device};

/// It is disconnected at any moment, with a request under way.
fn disconnected(name: &str, preemptions: usize, rules: Rules) {
    explore(name, Some(preemptions), move || {
        let device = Device::make(1, &[&[]], true, rules);
        let worker = device.spawn(|device| device.end_when_asked());
        let other = device.spawn(|device| {
            device.submit(0, 0);
            device.disconnect();
        });
        device.connect();
        other.join().unwrap();
        worker.join().unwrap();
        device.assert_all_ended();
        device.assert_none_lives();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_worker_ends_a_generation_once_and_not_before_it_serves() {
    disconnected("connect, disconnect", 2, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "the next generation is ended with this one")]
fn a_worker_that_every_receiver_wakes_ends_the_next_generation() {
    let rules = Rules {
        ends_once: false,
        ..Rules::DRIVER
    };
    disconnected("woken by all", 2, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a generation is ended while it is brought up")]
fn a_worker_that_does_not_wait_for_the_start_ends_it() {
    let rules = Rules {
        ends_after_start: false,
        ..Rules::DRIVER
    };
    disconnected("not armed", 2, rules);
}
