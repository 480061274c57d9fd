// SPDX-License-Identifier: GPL-2.0

//! What names a request on the wire (`protocol/cookie.rs`).

use crate::{
    driver::RequestWord,
    protocol::{
        cookie::{Cookie, Sequence},
        request::{Route, Word},
    },
};
use kernel::prelude::*;

type RealWord = Word<RequestWord>;

const HERE: Route = Route {
    connection: 3,
    epoch: 1,
};
const TAG: u32 = 0x0002_0017;

#[kunit_tests(rnbd_cookie)]
mod tests {
    use super::*;

    #[test]
    fn cookies_survive_the_wire() {
        for (sequence, tag) in [
            (0, 0),
            (1, TAG),
            (u32::MAX, 0),
            (0, u32::MAX),
            (u32::MAX, u32::MAX),
        ] {
            let cookie = Cookie::new(sequence, tag);
            let back = Cookie::from_wire(cookie.to_wire());
            assert!(back == cookie && (back.sequence(), back.tag()) == (sequence, tag));
        }
    }

    #[test]
    fn requests_of_a_connection_have_cookies_of_their_own() {
        let (one, other, mut sequence) = (
            RealWord::default(),
            RealWord::default(),
            Sequence::default(),
        );
        let first = one.begin(HERE, &mut sequence).cookie(TAG);
        let second = other.begin(HERE, &mut sequence).cookie(TAG);
        assert!(first != second && first.tag() == second.tag());
    }

    #[test]
    fn a_tag_has_another_cookie_each_time() {
        let (word, mut sequence) = (RealWord::default(), Sequence::default());
        let mut last = Cookie::NONE;
        for _ in 0..1000 {
            let sending = word.begin(HERE, &mut sequence);
            let cookie = sending.cookie(TAG);
            assert!(cookie != last && cookie.tag() == TAG);
            assert!(cookie.sequence() == last.sequence() + 1);
            sending.sent();
            // What was the right one is not any more.
            assert!(word.reply(last, HERE).is_err());
            match word.reply(cookie, HERE) {
                Ok(claim) => claim.answer(),
                Err(_) => assert!(false),
            }
            last = cookie;
        }
    }

    #[test]
    fn the_numbers_go_round() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.advance(), 1);
        assert_eq!(sequence.advance(), 2);
        assert!(Cookie::new(u32::MAX, TAG) != Cookie::new(0, TAG));
        assert!(Cookie::NONE == Cookie::from_wire(0));
    }
}
