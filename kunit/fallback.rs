// SPDX-License-Identifier: GPL-2.0

//! Which connection a request goes over when others are dead (`protocol/fallback.rs`).

use crate::protocol::fallback::{choose, disposition, own, Disposition};
use kernel::prelude::*;

const PLACES: [u32; 4] = [0, 1, 2, 3];

#[kunit_tests(rnbd_fallback)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_keeps_its_own_connection_while_that_lives() {
        for queue in 0..12 {
            let want = Some(&PLACES[queue as usize % 4]);
            assert!(own(&PLACES, queue) == want);
            assert!(choose(&PLACES, queue, |_| true) == want);
            // Others may be dead.
            assert!(choose(&PLACES, queue, |place| *place == queue % 4) == want);
        }
    }

    #[test]
    fn the_next_that_lives_takes_a_dead_ones_place() {
        for dead in 0_u32..16 {
            let lives = |place: u32| dead & (1 << place) == 0;
            for queue in 0..4 {
                let mut want = None;
                for step in (0..4).rev() {
                    let place = (queue + step) % 4;
                    if lives(place) {
                        want = Some(place);
                    }
                }
                let got = choose(&PLACES, queue, |place| lives(*place)).copied();
                assert!(got == want);
            }
        }
    }

    #[test]
    fn without_a_connection_there_is_none() {
        let none: [u32; 0] = [];
        assert!(own(&none, 3).is_none());
        assert!(choose(&none, 3, |_| true).is_none());
    }

    #[test]
    fn what_none_can_serve_waits_or_fails() {
        assert!(disposition(false, 1, || false) == Disposition::Retry);
        assert!(disposition(false, 0, || true) == Disposition::Wait);
        assert!(disposition(false, 0, || false) == Disposition::Fail);
        assert!(disposition(true, 1, || true) == Disposition::Fail);
    }
}
