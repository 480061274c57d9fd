// SPDX-License-Identifier: GPL-2.0

//! The request word: the right to answer, in one thread.

use rnbd_protocol::{
    cookie::{Cookie, Sequence},
    request::{AtomicWord, Route, Word},
};
use std::sync::atomic::{AtomicU64, Ordering};

struct Std(AtomicU64);

impl AtomicWord for Std {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    fn compare_exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| ())
    }
}

const ROUTE: Route = Route {
    connection: 3,
    epoch: 7,
};
const TAG: u32 = 0x0002_0011;

fn word() -> Word<Std> {
    Word::default()
}

fn send(word: &Word<Std>, sequence: &mut Sequence) -> Cookie {
    let sending = word.begin(ROUTE, sequence);
    let cookie = sending.cookie(TAG);
    sending.sent();
    cookie
}

#[test]
fn a_request_is_answered_once() {
    let word = word();
    let cookie = send(&word, &mut Sequence::default());
    assert_eq!(cookie.tag(), TAG);
    let claim = word
        .reply(cookie, ROUTE)
        .unwrap_or_else(|_| panic!("not awaited"));
    assert!(word.reply(cookie, ROUTE).is_err());
    assert!(word.claim().is_none());
    assert!(word.claim_from(ROUTE).is_none());
    claim.answer();
    assert!(word.reply(cookie, ROUTE).is_err());
    assert!(word.claim().is_none());
    assert_eq!(word.route(), None);
}

#[test]
fn a_reply_to_an_earlier_use_of_the_tag_is_stale() {
    let word = word();
    let mut sequence = Sequence::default();
    let first = send(&word, &mut sequence);
    word.claim().unwrap_or_else(|| panic!("not sent")).answer();
    let second = send(&word, &mut sequence);
    assert_ne!(first, second);
    assert!(word.reply(first, ROUTE).is_err());
    assert!(word.reply(second, ROUTE).is_ok());
}

#[test]
fn a_reply_over_another_connection_or_epoch_is_stale() {
    let word = word();
    let cookie = send(&word, &mut Sequence::default());
    for other in [
        Route {
            connection: 4,
            epoch: 7,
        },
        Route {
            connection: 3,
            epoch: 8,
        },
    ] {
        assert!(word.reply(cookie, other).is_err());
        assert!(word.claim_from(other).is_none());
    }
    assert!(word.claim_from(ROUTE).is_some());
}

#[test]
fn a_reply_may_overtake_the_end_of_its_send() {
    let word = word();
    let sending = word.begin(ROUTE, &mut Sequence::default());
    let claim = word
        .reply(sending.cookie(TAG), ROUTE)
        .unwrap_or_else(|_| panic!("refused"));
    sending.sent();
    assert!(word.claim().is_none());
    claim.answer();
    assert_eq!(word.route(), None);
}

#[test]
fn a_sender_cannot_abandon_what_was_replied_to() {
    let word = word();
    let sending = word.begin(ROUTE, &mut Sequence::default());
    let cookie = sending.cookie(TAG);
    let claim = word.reply(cookie, ROUTE);
    assert!(claim.is_ok());
    assert!(sending.abandon().is_none());
}

#[test]
fn nobody_takes_a_request_from_its_sender() {
    let word = word();
    let sending = word.begin(ROUTE, &mut Sequence::default());
    assert!(word.claim().is_none());
    assert!(word.claim_from(ROUTE).is_none());
    assert_eq!(word.route(), Some(ROUTE));
    assert!(sending.abandon().is_some());
}

#[test]
fn an_interrupted_send_is_taken_up_once_and_only_while_it_is_that_send() {
    let word = word();
    let mut sequence = Sequence::default();
    let sending = word.begin(ROUTE, &mut sequence);
    let cookie = sending.cookie(TAG);
    let mark = sending.interrupt();
    let resumed = word.resume(mark).unwrap_or_else(|| panic!("gone"));
    assert_eq!(resumed.cookie(TAG), cookie);
    resumed.sent();
    assert!(word.resume(mark).is_none());
    word.claim().unwrap_or_else(|| panic!("not sent")).answer();
    let _next = word.begin(ROUTE, &mut sequence);
    assert!(word.resume(mark).is_none());
}

#[test]
fn an_interrupted_send_is_not_taken_up_on_another_connection() {
    let word = word();
    let mark = word.begin(ROUTE, &mut Sequence::default()).interrupt();
    word.resume(mark)
        .and_then(|sending| sending.abandon())
        .unwrap_or_else(|| panic!("gone"))
        .answer();
    let elsewhere = Route {
        connection: 4,
        epoch: 7,
    };
    let _next = word.begin(elsewhere, &mut Sequence::default());
    assert!(word.resume(mark).is_none());
}

/// Two requests of the block layer can follow each other under one tag: with an I/O scheduler the
/// tag is the hardware's, and a flush borrows that of another request.
#[test]
fn two_requests_under_one_tag_have_cookies_of_their_own() {
    let (first, second) = (word(), word());
    let mut sequence = Sequence::default();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        for word in [&first, &second] {
            assert!(seen.insert(send(word, &mut sequence).to_wire()));
            word.claim().unwrap_or_else(|| panic!("not sent")).answer();
        }
    }
}

#[test]
fn a_reply_that_is_withheld_is_awaited_again() {
    let word = word();
    let cookie = send(&word, &mut Sequence::default());
    for _ in 0..2 {
        let claim = word
            .reply(cookie, ROUTE)
            .unwrap_or_else(|_| panic!("not awaited"));
        claim.withhold();
        assert_eq!(word.route(), Some(ROUTE));
    }
    // And ends by a time-out.
    word.claim().expect("awaited still").answer();
    assert!(word.reply(cookie, ROUTE).is_err());
    assert_eq!(word.route(), None);
}

#[test]
fn a_reply_that_overtook_its_send_can_be_withheld() {
    let word = word();
    let mut sequence = Sequence::default();
    let sending = word.begin(ROUTE, &mut sequence);
    let cookie = sending.cookie(TAG);
    let claim = word
        .reply(cookie, ROUTE)
        .unwrap_or_else(|_| panic!("not awaited"));
    claim.withhold();
    sending.sent();
    word.claim_from(ROUTE).expect("awaited still").answer();
}
