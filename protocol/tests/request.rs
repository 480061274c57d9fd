// SPDX-License-Identifier: GPL-2.0

//! The request word: who may answer, in one thread.

use rnbd_protocol::{
    cookie::Cookie,
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

fn send(word: &Word<Std>) -> Cookie {
    let sending = word.begin(ROUTE);
    let cookie = sending.cookie(TAG);
    sending.sent();
    cookie
}

#[test]
fn a_request_is_answered_once() {
    let word = word();
    let cookie = send(&word);
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
    let first = send(&word);
    word.claim().unwrap_or_else(|| panic!("not sent")).answer();
    let second = send(&word);
    assert_ne!(first, second);
    assert!(word.reply(first, ROUTE).is_err());
    assert!(word.reply(second, ROUTE).is_ok());
}

#[test]
fn a_reply_over_another_connection_or_epoch_is_stale() {
    let word = word();
    let cookie = send(&word);
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
    let sending = word.begin(ROUTE);
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
    let sending = word.begin(ROUTE);
    let cookie = sending.cookie(TAG);
    let claim = word.reply(cookie, ROUTE);
    assert!(claim.is_ok());
    assert!(sending.abandon().is_none());
}

#[test]
fn nobody_takes_a_request_from_its_sender() {
    let word = word();
    let sending = word.begin(ROUTE);
    assert!(word.claim().is_none());
    assert!(word.claim_from(ROUTE).is_none());
    assert_eq!(word.route(), Some(ROUTE));
    assert!(sending.abandon().is_some());
}

#[test]
fn an_interrupted_send_is_taken_up_once_and_only_while_it_is_that_send() {
    let word = word();
    let sending = word.begin(ROUTE);
    let cookie = sending.cookie(TAG);
    let mark = sending.interrupt();
    let resumed = word.resume(mark).unwrap_or_else(|| panic!("gone"));
    assert_eq!(resumed.cookie(TAG), cookie);
    resumed.sent();
    assert!(word.resume(mark).is_none());
    word.claim().unwrap_or_else(|| panic!("not sent")).answer();
    let _next = word.begin(ROUTE);
    assert!(word.resume(mark).is_none());
}

#[test]
fn each_use_of_a_tag_has_a_cookie_of_its_own() {
    let word = word();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        assert!(seen.insert(send(&word).to_wire()));
        word.claim().unwrap_or_else(|| panic!("not sent")).answer();
    }
}
