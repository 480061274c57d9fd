// SPDX-License-Identifier: GPL-2.0

//! Live connections that are handed over to another socket at any moment: no request fails, none
//! is answered twice, and no link is left behind.

use crate::{
    block::Status,
    explore::explore,
    replace::Scope::{self, All, AllStuck, Dead},
    rules::Rules,
    socket::Event::{self, Answer, AnswerTwice, Close, Signal, SignalAndAnswer, Silence, Stall},
    transport::Device,
};
use std::sync::Arc;

/// A generation of one connection. When that is dead, requests fail.
fn running(events: &[Event], rules: Rules) -> Arc<Device> {
    let device = Device::make(1, &[events], false, rules);
    device.bring_up();
    device
}

fn assert_served(device: &Arc<Device>) {
    assert_eq!(device.layer.wait(0), Status::Ok, "a request failed");
    device.assert_counted();
    device.kill(0);
    device.join_receivers();
    device.assert_all_ended();
    device.assert_none_lives();
}

/// A request comes meanwhile: it goes over the old socket, where this happens, or over the new.
fn handed_over(name: &str, scope: Scope, event: Event, rules: Rules) {
    explore(name, Some(2), move || {
        let device = running(&[event], rules);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.replace(&[&[]], scope).unwrap();
        sender.join().unwrap();
        assert_served(&device);
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_request_survives_a_handover_at_any_moment() {
    handed_over("handover, reply", All, Answer, Rules::DRIVER);
    handed_over("handover, no reply", All, Silence, Rules::DRIVER);
    handed_over("handover, second reply", All, AnswerTwice, Rules::DRIVER);
    handed_over("handover, sender cut off", AllStuck, Silence, Rules::DRIVER);
    handed_over("handover, stuck sender", AllStuck, Stall, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request failed")]
fn a_handover_that_kills_a_stuck_senders_connection_fails_its_request() {
    let rules = Rules {
        cuts_off: false,
        ..Rules::DRIVER
    };
    handed_over("stuck sender's connection killed", AllStuck, Stall, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request failed")]
fn an_old_links_death_taken_for_the_new_ones_fails_a_request() {
    let rules = Rules {
        minds_epochs: false,
        ..Rules::DRIVER
    };
    handed_over("epochs not minded", All, Silence, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a request failed")]
fn a_receiver_that_takes_the_new_links_requests_fails_them() {
    let rules = Rules {
        releases_its_own: false,
        ..Rules::DRIVER
    };
    handed_over("another link's requests released", All, Silence, rules);
}

/// A part has gone out over the old socket.
fn interrupted(name: &str, event: Event, rules: Rules) {
    explore(name, Some(1), move || {
        let device = running(&[event], rules);
        let worker = device.sender(0);
        let sender = device.spawn(|device| device.submit(0, 0));
        device.replace(&[&[]], All).unwrap();
        sender.join().unwrap();
        device.stop_sender(0);
        worker.join().unwrap();
        // A server that answers a part may have had the old socket killed before its time.
        if event == Signal {
            assert_served(&device);
        } else {
            device.kill(0);
            device.join_receivers();
            device.assert_all_ended();
            device.assert_none_lives();
        }
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_part_is_sent_anew_after_a_handover() {
    interrupted("handover, interrupted", Signal, Rules::DRIVER);
    interrupted("handover, part answered", SignalAndAnswer, Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "deadlock")]
fn a_part_that_is_not_sent_anew_is_lost() {
    let rules = Rules {
        resends_parts: false,
        ..Rules::DRIVER
    };
    interrupted("part not sent anew", Signal, rules);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn an_old_link_dies_amid_its_handover() {
    explore("handover, server closes", Some(2), || {
        let device = Device::waiting(1, &[&[Close]]);
        device.bring_up();
        let sender = device.spawn(|device| device.submit(0, 0));
        device.replace(&[&[]], All).unwrap();
        sender.join().unwrap();
        // It may have died after it was looked for dead ones, and before for live ones.
        if device.connections[0].is_dead() {
            device.replace(&[&[]], Dead).unwrap();
        }
        device.hand_out(true);
        assert_served(&device);
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn handovers_at_once_come_one_after_the_other() {
    explore("two handovers", Some(1), || {
        let device = running(&[Silence], Rules::DRIVER);
        device.submit(0, 0);
        let other = device.spawn(|device| drop(device.replace(&[&[]], All)));
        device.replace(&[&[]], All).unwrap();
        other.join().unwrap();
        assert_served(&device);
    });
}

/// A generation is killed when a handover has overtaken another, which is just finishing.
fn overtaken(rules: Rules) {
    explore("a handover overtakes another", Some(1), move || {
        let device = running(&[], rules);
        let first = device.put_all(&[&[]], All).unwrap();
        let second = device.put_all(&[&[]], All).unwrap();
        let finishing = device.spawn(|device| device.retire(first));
        device.kill_all();
        device.assert_none_lives();
        finishing.join().unwrap();
        device.retire(second);
        device.join_receivers();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_kill_reaches_what_a_handover_has_left() {
    overtaken(Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a link lives that will never be shut down")]
fn a_kill_does_not_reach_what_another_handover_forgets() {
    overtaken(Rules {
        forgets_its_own: false,
        ..Rules::DRIVER
    });
}

/// Links are put in the same place twice, just after the drain has seen the last receiver leave.
fn drained_twice_replaced(rules: Rules) {
    explore("drain amid two handovers", Some(2), move || {
        let device = running(&[], rules);
        device.kill_all();
        device.wait_for_receivers();
        let replacing = device.spawn(|device| {
            // There was no time to finish the first.
            let first = device.put_all(&[&[]], All);
            let second = device.put_all(&[&[]], All);
            for old in [first, second].into_iter().flatten() {
                device.retire(old);
            }
        });
        device.drain();
        replacing.join().unwrap();
        device.assert_none_lives();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_drain_awaits_the_receivers_of_links_that_left() {
    drained_twice_replaced(Rules::DRIVER);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
#[should_panic(expected = "a receiver outlives its generation")]
fn a_drain_that_joins_its_own_receivers_alone_leaves_one() {
    drained_twice_replaced(Rules {
        awaits_all_receivers: false,
        ..Rules::DRIVER
    });
}
