// SPDX-License-Identifier: GPL-2.0

//! The request word alone: of those that race, one may answer.

use crate::explore::{explore, RequestWord};
use loom::thread;
use rnbd_protocol::{
    cookie::{Cookie, Sequence},
    request::{Claim, Route, Word},
};
use std::sync::{
    atomic::{AtomicUsize, Ordering::Relaxed},
    Arc,
};

const ROUTE: Route = Route {
    connection: 1,
    epoch: 2,
};
const OTHER_ROUTE: Route = Route {
    connection: 1,
    epoch: 3,
};

struct Shared {
    word: Word<RequestWord>,
    /// How often the present use of the word was answered.
    answers: AtomicUsize,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            word: Word::default(),
            answers: AtomicUsize::new(0),
        })
    }

    fn answer(&self, claim: Claim<'_, RequestWord>) {
        let before = self.answers.fetch_add(1, Relaxed);
        assert_eq!(before, 0, "a request was answered twice");
        claim.answer();
    }

    fn spawn(self: &Arc<Self>, act: impl FnOnce(&Self) + 'static) -> thread::JoinHandle<()> {
        let shared = self.clone();
        thread::spawn(move || act(&shared))
    }

    fn assert_answered(&self) {
        assert_eq!(self.answers.load(Relaxed), 1, "a request was lost");
        assert_eq!(self.word.route(), None);
    }
}

fn reply(shared: &Shared, cookie: Cookie, route: Route) {
    if let Ok(claim) = shared.word.reply(cookie, route) {
        shared.answer(claim);
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn one_of_sender_receivers_and_claimants_answers() {
    explore("word: reply, reply, claim", Some(4), || {
        let shared = Shared::new();
        let sending = shared.word.begin(ROUTE, &mut Sequence::default());
        let cookie = sending.cookie(0);
        let once = shared.spawn(move |shared| reply(shared, cookie, ROUTE));
        let twice = shared.spawn(move |shared| reply(shared, cookie, ROUTE));
        let dead = shared.spawn(|shared| {
            if let Some(claim) = shared.word.claim_from(ROUTE) {
                shared.answer(claim);
            }
        });
        sending.sent();
        for thread in [once, twice, dead] {
            thread.join().unwrap();
        }
        shared.assert_answered();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_failed_send_and_a_reply_do_not_both_answer() {
    explore("word: abandon, reply, claim", None, || {
        let shared = Shared::new();
        let sending = shared.word.begin(ROUTE, &mut Sequence::default());
        let cookie = sending.cookie(0);
        let replied = shared.spawn(move |shared| reply(shared, cookie, ROUTE));
        let drained = shared.spawn(|shared| {
            if let Some(claim) = shared.word.claim() {
                shared.answer(claim);
            }
        });
        if let Some(claim) = sending.abandon() {
            shared.answer(claim);
        }
        replied.join().unwrap();
        drained.join().unwrap();
        shared.assert_answered();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_late_reply_or_claim_does_not_touch_the_next_use() {
    explore("word: next use, stale reply, stale claim", None, || {
        let shared = Shared::new();
        let first = shared.word.begin(ROUTE, &mut Sequence::default());
        let stale = first.cookie(0);
        first.sent();
        // The connection's death and a late reply race for the first use; the second use, over
        // another socket, begins as soon as the first is answered.
        let late = shared.spawn(move |shared| {
            if let Ok(claim) = shared.word.reply(stale, ROUTE) {
                shared.answer(claim);
            }
            assert!(
                shared.word.reply(stale, OTHER_ROUTE).is_err(),
                "a stale cookie was taken"
            );
        });
        let dead = shared.spawn(|shared| {
            if let Some(claim) = shared.word.claim_from(ROUTE) {
                shared.answer(claim);
            }
        });
        let mut second = None;
        if shared.word.route().is_none() {
            assert_eq!(shared.answers.swap(0, Relaxed), 1);
            let sending = shared.word.begin(OTHER_ROUTE, &mut Sequence::default());
            second = Some(sending.cookie(0));
            sending.sent();
        }
        late.join().unwrap();
        dead.join().unwrap();
        if let Some(cookie) = second {
            assert_eq!(
                shared.word.route(),
                Some(OTHER_ROUTE),
                "the next use was answered by the last one's parties"
            );
            reply(&shared, cookie, OTHER_ROUTE);
        }
        shared.assert_answered();
    });
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: cargo test --release")]
fn a_reply_over_another_socket_takes_nothing() {
    explore("word: reply over another route", None, || {
        let shared = Shared::new();
        let sending = shared.word.begin(ROUTE, &mut Sequence::default());
        let cookie = sending.cookie(0);
        let astray = shared.spawn(move |shared| {
            assert!(
                shared.word.reply(cookie, OTHER_ROUTE).is_err(),
                "a reply over another socket was taken"
            );
            assert!(shared.word.claim_from(OTHER_ROUTE).is_none());
        });
        let due = shared.spawn(move |shared| reply(shared, cookie, ROUTE));
        sending.sent();
        astray.join().unwrap();
        due.join().unwrap();
        shared.assert_answered();
    });
}
