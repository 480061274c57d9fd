// SPDX-License-Identifier: GPL-2.0

//! Requests on a connection that dies, or to a server that misbehaves, at any moment: each is
//! completed exactly once, and none is lost.

use crate::{
    block::Status,
    explore::explore,
    socket::Event::{
        self, Answer, AnswerEarlier, AnswerTwice, Close, Signal, SignalAndAnswer, Silence,
    },
    transport::Device,
};

/// One request on one connection that is killed at any moment; there is no drain. The task that
/// meets the death has to see to the request: the sender that looks again after the send, or the
/// receiver.
fn killed(name: &str, preemptions: usize, event: Event) {
    explore(name, Some(preemptions), move || {
        let device = Device::running(1, &[&[event]]);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.kill(0);
        sender.join().unwrap();
        device.join_receivers();
        device.assert_all_ended();
        device.assert_counted();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_request_survives_the_death_of_its_connection_at_any_moment() {
    killed("killed, no reply", 3, Silence);
    killed("killed, reply", 2, Answer);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_server_that_closes_or_misbehaves_ends_its_own_connection() {
    for (name, event) in [
        ("server closes", Close),
        ("server answers twice", AnswerTwice),
        ("server answers an earlier use", AnswerEarlier),
    ] {
        explore(name, Some(3), move || {
            // Twice over the same tag, so that the second reply may meet the next use of it.
            let device = Device::running(1, &[&[event, Silence]]);
            let sender = device.spawn(|device| {
                device.submit(0, 0);
                device.submit(0, 0);
            });
            device.join_receivers();
            sender.join().unwrap();
            device.assert_all_ended();
        });
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_silent_servers_request_ends_by_its_time_out() {
    explore("time-out", Some(3), || {
        let device = Device::running(1, &[&[Silence]]);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.time_out();
        sender.join().unwrap();
        // The block layer looks again and again: a request that was young then is old now.
        device.time_out();
        device.layer.wait(0);
        device.kill(0);
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn what_a_dead_connection_owes_goes_over_another() {
    for (name, event) in [
        ("requeue after silence", Silence),
        ("requeue after reply", Answer),
    ] {
        explore(name, Some(1), move || {
            let device = Device::running(1, &[&[event], &[]]);
            let sender = device.spawn(|device| device.submit(0, 0));
            device.kill(0);
            // Nothing but the death of all connections is a reason for an error.
            assert_eq!(device.layer.wait(0), Status::Ok, "a request failed");
            device.kill(1);
            sender.join().unwrap();
            device.join_receivers();
            device.assert_all_ended();
        });
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn draining_ends_every_request_at_any_moment() {
    for (name, event, bound) in [("drain, reply", Answer, 2), ("drain, no reply", Silence, 2)] {
        explore(name, Some(bound), move || {
            let device = Device::running(1, &[&[event]]);
            let sender = device.spawn(|device| device.submit(0, 0));
            device.drain();
            sender.join().unwrap();
            device.assert_all_ended();
        });
    }
    explore("drain, two senders", Some(1), || {
        let device = Device::running(2, &[&[Silence]]);
        let first = device.spawn(|device| device.submit(0, 0));
        let second = device.spawn(|device| device.submit(1, 0));
        device.drain();
        first.join().unwrap();
        second.join().unwrap();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn draining_ends_what_waits_to_be_sent_again() {
    explore("drain, two connections", Some(1), || {
        let device = Device::running(1, &[&[Close], &[Silence]]);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.drain();
        sender.join().unwrap();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn an_interrupted_send_is_finished_by_a_worker_or_fails() {
    explore("interrupted, killed", Some(2), || {
        let device = Device::running(1, &[&[Signal, Silence]]);
        let worker = device.sender(0);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.kill(0);
        sender.join().unwrap();
        device.stop_sender(0);
        worker.join().unwrap();
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn an_interrupted_send_is_finished_by_the_next_sender_or_the_worker() {
    explore("interrupted, next sender", Some(1), || {
        let device = Device::running(2, &[&[Signal]]);
        let worker = device.sender(0);
        let next = device.spawn(|device| device.submit(1, 0));
        device.submit(0, 0);
        next.join().unwrap();
        // The connection lives, and the server answers what is whole: so was every send.
        assert_eq!(device.layer.wait(0), Status::Ok, "a request failed");
        assert_eq!(device.layer.wait(1), Status::Ok, "a request failed");
        device.kill(0);
        device.stop_sender(0);
        worker.join().unwrap();
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn an_answer_to_a_part_spares_the_next_use_of_the_request() {
    explore("a part is answered", Some(1), || {
        let device = Device::running(1, &[&[SignalAndAnswer, Silence]]);
        let worker = device.sender(0);
        let sender = device.spawn(|device| {
            device.submit(0, 0);
            device.submit(0, 0);
        });
        sender.join().unwrap();
        device.stop_sender(0);
        worker.join().unwrap();
        device.kill(0);
        device.join_receivers();
        device.assert_all_ended();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn draining_ends_what_no_receiver_awaits() {
    // The attachment is in place before its receivers are, and one of those could not be started.
    explore("drain, no receiver", Some(3), || {
        let device = Device::new(1, &[&[Silence]]);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.drain();
        sender.join().unwrap();
        device.assert_all_ended();
    });
}
