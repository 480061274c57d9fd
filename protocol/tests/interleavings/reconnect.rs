// SPDX-License-Identifier: GPL-2.0

//! Connections that die at any moment and get another socket at any moment: each request is
//! completed exactly once, those that wait for a connection go on, and none fails for it.
//!
//! Where a test takes a rule away ([`Rules`]), its exploration must tell.

use crate::{
    block::Status,
    explore::explore,
    replace::Scope,
    rules::Rules,
    socket::Event::{self, Answer, Close, Closed, Signal, Silence},
    transport::Device,
};
use std::sync::Arc;

/// A generation of one connection. Its requests wait for another when that is dead.
fn waiting(event: Event, rules: Rules) -> Arc<Device> {
    let device = Device::make(1, &[&[event]], true, rules);
    device.bring_up();
    device
}

/// The dead connection has got another socket, or gets it now, to a good server: the
/// request is answered.
fn assert_goes_on(device: &Arc<Device>, taken: usize) {
    if taken == 0 {
        // It was not dead yet.
        let link = device.connections[0].link();
        device.kill(0);
        device.connections[0].await_change(&link);
        let taken = device.replace(&[&[]], Scope::Dead).unwrap();
        assert_eq!(taken, 1, "a dead connection gets no socket");
    }
    // What was parked just after those that waited were sent is tried again a little later.
    device.hand_out(true);
    assert_eq!(device.layer.wait(0), Status::Ok, "a request failed");
    device.assert_counted();
    device.kill(0);
    device.join_receivers();
    device.assert_all_ended();
    device.assert_none_lives();
}

/// The connection dies while a request comes; then there is another socket.
fn revived(name: &str, preemptions: usize, event: Event, rules: Rules) {
    explore(name, Some(preemptions), move || {
        let device = waiting(event, rules);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.kill(0);
        let taken = device.replace(&[&[]], Scope::Dead).unwrap();
        sender.join().unwrap();
        assert_goes_on(&device, taken);
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_request_survives_death_and_reconnect_at_any_moment() {
    revived("reconnect, no reply", 2, Silence, Rules::DRIVER);
    revived("reconnect, reply", 1, Answer, Rules::DRIVER);
    revived("reconnect, server closes", 1, Close, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request failed")]
fn a_death_counted_before_its_time_is_noted_fails_a_request() {
    let rules = Rules {
        notes_before_counting: false,
        ..Rules::DRIVER
    };
    revived("noted late", 2, Silence, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "deadlock")]
fn a_sender_that_does_not_look_again_loses_a_request() {
    let rules = Rules {
        looks_again: false,
        ..Rules::DRIVER
    };
    revived("not looked again", 2, Silence, rules);
}

/// The request waits already when the socket comes.
fn parked(rules: Rules) {
    explore("reconnect, parked", Some(2), move || {
        let device = waiting(Silence, rules);
        device.kill(0);
        // The old receiver looks at all requests, and so might keep this one for a moment.
        device.wait_for_receivers();
        device.submit(0, 0);
        device.replace(&[&[]], Scope::Dead).unwrap();
        // At once: there is no second try.
        assert_eq!(device.layer.wait(0), Status::Ok, "a request failed");
        device.kill(0);
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_request_that_waits_goes_on_at_once() {
    parked(Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "deadlock")]
fn a_request_that_waits_and_is_not_kicked_stays() {
    parked(Rules {
        kicks: false,
        ..Rules::DRIVER
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_reconnect_meets_the_death_itself() {
    explore("reconnect amid a death", Some(1), || {
        let device = waiting(Silence, Rules::DRIVER);
        let sender = device.spawn(|device| device.submit(0, 0));
        let killer = device.spawn(|device| device.kill(0));
        let taken = device.replace(&[&[]], Scope::Dead).unwrap();
        sender.join().unwrap();
        killer.join().unwrap();
        // The new link may be what was killed.
        let lives = !device.connections[0].is_dead();
        assert_goes_on(&device, if lives { taken } else { 0 });
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_reconnect_meets_a_time_out() {
    explore("reconnect amid a time-out", Some(1), || {
        let device = waiting(Silence, Rules::DRIVER);
        let sender = device.spawn(|device| device.submit(0, 0));
        let watch = device.spawn(|device| device.time_out());
        let taken = device.replace(&[&[]], Scope::Dead).unwrap();
        sender.join().unwrap();
        watch.join().unwrap();
        let lives = !device.connections[0].is_dead();
        assert_goes_on(&device, if lives { taken } else { 0 });
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_part_is_sent_anew_after_a_reconnect() {
    explore("reconnect, interrupted", Some(1), || {
        let device = waiting(Signal, Rules::DRIVER);
        let worker = device.sender(0);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.kill(0);
        let taken = device.replace(&[&[]], Scope::Dead).unwrap();
        sender.join().unwrap();
        device.stop_sender(0);
        worker.join().unwrap();
        assert_goes_on(&device, taken);
    });
}

/// The server at the new socket has closed it before it was given to the driver.
fn stillborn(rules: Rules, requests: bool) {
    explore("reconnect to a closed socket", Some(2), move || {
        let device = waiting(Silence, rules);
        device.kill(0);
        let sender = requests.then(|| device.spawn(|device| device.submit(0, 0)));
        device.replace(&[&[Closed]], Scope::Dead).unwrap();
        if let Some(sender) = sender {
            sender.join().unwrap();
        }
        device.join_receivers();
        device.assert_counted();
        // Nothing answers; a drain ends what waits.
        device.kill_all();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_socket_that_was_closed_already_is_a_dead_connection() {
    stillborn(Rules::DRIVER, true);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
// Senders would choose it, find its link dead, and choose again, for ever.
#[should_panic(expected = "a connection is not what its link is, dead or alive")]
fn a_socket_that_was_closed_already_counts_if_nobody_looks() {
    let rules = Rules {
        finds_stillborn: false,
        ..Rules::DRIVER
    };
    stillborn(rules, false);
}

/// The generation ends meanwhile.
fn drained(name: &str, scope: Scope, rules: Rules) {
    explore(name, Some(1), move || {
        let device = waiting(Silence, rules);
        let sender = device.spawn(|device| device.submit(0, 0));
        let replacing = device.spawn(move |device| drop(device.replace(&[&[]], scope)));
        if scope == Scope::Dead {
            device.kill(0);
        }
        device.drain();
        sender.join().unwrap();
        replacing.join().unwrap();
        device.assert_all_ended();
        device.assert_none_lives();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_drain_ends_what_is_being_replaced() {
    drained("drain amid a reconnect", Scope::Dead, Rules::DRIVER);
    drained("drain amid a handover", Scope::All, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "deadlock")]
fn a_link_put_without_looking_for_the_end_lives_on() {
    let rules = Rules {
        sees_the_end: false,
        ..Rules::DRIVER
    };
    drained("the end not looked for", Scope::Dead, rules);
}
