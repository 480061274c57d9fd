// SPDX-License-Identifier: GPL-2.0

//! Every interleaving, under loom, of what may happen to a request (invariant G5) and to a setup
//! (invariants G1 to G3), and to a device's disk (G4).
//!
//! The logic is the module's own: [`rnbd_protocol::request`] and [`rnbd_protocol::setup`]. What
//! the driver does around it cannot run here, for it needs a kernel; [`block`], [`connection`],
//! [`outbox`], [`transmit`], [`transport`], [`replace`], [`keeper`], [`rnbd`], [`netlink`], [`disk`]
//! and [`gendisk`] retell it, function by function and in the same order: change them with it.
//! [`nbd_ko`] does the same for the C driver's rules, and [`rules`] takes single rules of ours away,
//! to show that the harness sees what is wrong then.
//!
//! Time is not part of it: what the driver waits for no longer than so many seconds is over here
//! at any moment.
//!
//! Bounds: a test says how many preemptions it explores (loom's `preemption_bound`; `None` is
//! all), [`explore`] prints how many interleavings those were (`cargo test -- --nocapture`). loom
//! itself bounds threads to five. Weak memory is part of it: a relaxed load may give any value
//! that the memory model allows.
//!
//! Quick only when optimised: `cargo test --release`; without, these tests are ignored.

#![cfg(not(miri))]

mod attach;
mod block;
mod close;
mod connection;
mod device;
mod disk;
mod end;
mod explore;
mod gendisk;
mod handover;
mod keeper;
mod nbd_ko;
mod netlink;
mod openers;
mod outbox;
mod reconnect;
mod replace;
mod request;
mod rnbd;
mod rules;
mod setup;
mod socket;
mod together;
mod transmit;
mod transport;
mod word;
