// SPDX-License-Identifier: GPL-2.0

//! Requests that come at once, or meet at a connection: they are sent together, or left to the
//! connection's sender; none is left behind, and each is completed exactly once.

use crate::{
    block::Status,
    explore::explore,
    rules::Rules,
    socket::Event::{self, Answer, Close, Signal, SignalAndAnswer, Silence},
    transport::Device,
};

/// Two at once on a connection that is killed at any moment.
fn killed(name: &str, events: &'static [Event]) {
    explore(name, Some(2), move || {
        let device = Device::running(2, &[events]);
        let submitter = device.spawn(|device| device.submit_all(&[0, 1], 0));
        device.kill(0);
        submitter.join().unwrap();
        device.join_receivers();
        device.assert_all_ended();
        device.assert_counted();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn requests_sent_together_survive_the_death_of_their_connection() {
    killed("together, no reply", &[Silence, Silence]);
    killed("together, replies", &[Answer, Answer]);
    killed("together, server closes", &[Silence, Close]);
    killed("together, interrupted", &[Signal, Silence]);
    killed("together, a part is answered", &[SignalAndAnswer, Silence]);
}

/// Two submitters; one may find the other sending.
fn met(name: &str, rules: Rules) {
    explore(name, Some(2), move || {
        let device = Device::make(2, &[&[]], false, rules);
        device.bring_up();
        let other = device.spawn(|device| device.submit(1, 0));
        device.submit(0, 0);
        other.join().unwrap();
        for connection in &device.connections {
            assert!(
                connection.outbox.is_empty(),
                "a request was left in an outbox"
            );
        }
        for tag in [0, 1] {
            assert_eq!(device.layer.wait(tag), Status::Ok, "a request failed");
        }
        device.kill(0);
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn who_finds_another_sending_has_his_request_sent() {
    met("two submitters", Rules::DRIVER);
    explore("two submitters and a sender", Some(1), || {
        let device = Device::running(2, &[&[]]);
        let sender = device.sender(0);
        let other = device.spawn(|device| device.submit(1, 0));
        device.submit(0, 0);
        other.join().unwrap();
        for tag in [0, 1] {
            assert_eq!(device.layer.wait(tag), Status::Ok, "a request failed");
        }
        device.drain();
        sender.join().unwrap();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request was left in an outbox")]
fn who_does_not_call_the_sender_leaves_his_request() {
    met(
        "sender not called",
        Rules {
            commits: false,
            ..Rules::DRIVER
        },
    );
}

/// Two at once; the connection of the first dies before the second comes.
fn parted(name: &str, preemptions: usize, rules: Rules) {
    explore(name, Some(preemptions), move || {
        let device = Device::make(2, &[&[], &[]], false, rules);
        device.bring_up();
        let submitter = device.spawn(|device| device.submit_all(&[0, 1], 0));
        device.kill(0);
        submitter.join().unwrap();
        for tag in [0, 1] {
            assert_eq!(device.layer.wait(tag), Status::Ok, "a request failed");
        }
        device.kill(1);
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn requests_that_come_at_once_may_go_over_two_connections() {
    parted("parted", 1, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "deadlock")]
fn who_goes_elsewhere_and_forgets_what_came_before_leaves_it() {
    parted(
        "parted, forgotten",
        2,
        Rules {
            commits_what_came_before: false,
            ..Rules::DRIVER
        },
    );
}

/// The generation ends while two requests come at once.
fn drained(name: &str, rules: Rules) {
    explore(name, Some(2), move || {
        let device = Device::make(2, &[&[Silence, Silence]], false, rules);
        device.bring_up();
        let submitter = device.spawn(|device| device.submit_all(&[0, 1], 0));
        device.drain();
        submitter.join().unwrap();
        device.assert_all_ended();
        device.assert_none_lives();
    });
}

/// The second of two fails: the drain is the last that could see to the first.
const FORGETFUL: Rules = Rules {
    commits_what_came_before: false,
    ..Rules::DRIVER
};

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_drain_gives_back_what_waits_to_be_sent() {
    drained("drain, together", Rules::DRIVER);
    drained("drain, what came before forgotten", FORGETFUL);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request was left in an outbox")]
fn a_drain_that_does_not_look_into_outboxes_leaves_a_request() {
    drained(
        "drain, outboxes not looked into",
        Rules {
            gives_back_what_is_left: false,
            ..FORGETFUL
        },
    );
}

/// The keeper asks why the last connection died.
fn asked_why(name: &str, rules: Rules) {
    explore(name, Some(2), move || {
        let device = Device::make(1, &[&[Silence]], false, rules);
        device.bring_up();
        device.submit(0, 0);
        let watch = device.spawn(|device| device.time_out());
        device.wait_for_receivers();
        assert!(
            device.timed_out.is_set(),
            "a generation does not know why it ended"
        );
        device.drain();
        watch.join().unwrap();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_generation_knows_that_it_timed_out() {
    asked_why("asked why", Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a generation does not know why it ended")]
fn a_death_counted_after_the_shutdown_is_told_too_late() {
    asked_why(
        "counted late",
        Rules {
            counts_before_shutdown: false,
            ..Rules::DRIVER
        },
    );
}
