// SPDX-License-Identifier: GPL-2.0

//! Which connection is taken when others are dead.

use proptest::prelude::*;
use rnbd_protocol::fallback::{choose, disposition, own, Disposition};

#[test]
fn each_queue_has_its_own_connection() {
    let connections = ["a", "b", "c"];
    for (queue, want) in [(0, "a"), (1, "b"), (2, "c"), (3, "a"), (7, "b")] {
        assert_eq!(own(&connections, queue), Some(&want));
        assert_eq!(choose(&connections, queue, |_| true), Some(&want));
    }
}

#[test]
fn without_connections_there_is_none() {
    assert_eq!(own::<u8>(&[], 0), None);
    assert_eq!(choose::<u8>(&[], 5, |_| true), None);
}

#[test]
fn the_next_living_one_is_taken_around_the_end() {
    let lives = [false, true, false, false];
    let places = [0, 1, 2, 3];
    for queue in 0..4 {
        assert_eq!(choose(&places, queue, |place| lives[*place]), Some(&1));
    }
    assert_eq!(choose(&places, 2, |_| false), None);
}

#[test]
fn what_is_asked_decides_in_this_order() {
    // A generation that drains waits for nothing, and is not asked.
    assert_eq!(disposition(true, 3, || panic!("asked")), Disposition::Fail);
    assert_eq!(
        disposition(false, 1, || panic!("asked")),
        Disposition::Retry
    );
    assert_eq!(disposition(false, 0, || true), Disposition::Wait);
    assert_eq!(disposition(false, 0, || false), Disposition::Fail);
}

proptest! {
    #[test]
    fn the_one_taken_lives_and_none_before_it_does(lives in prop::collection::vec(any::<bool>(), 0..40), queue: u32) {
        let places: Vec<usize> = (0..lives.len()).collect();
        let chosen = choose(&places, queue, |place| lives[*place]);
        prop_assert_eq!(chosen.is_some(), lives.contains(&true));
        if let Some(&chosen) = chosen {
            prop_assert!(lives[chosen]);
            let mut place = queue as usize % lives.len();
            while place != chosen {
                prop_assert!(!lives[place]);
                place = (place + 1) % lives.len();
            }
        }
    }
}
