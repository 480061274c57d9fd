// SPDX-License-Identifier: GPL-2.0

//! Requests and replies on the wire.
//!
//! * [`link`]: one socket, from when it is taken to its death. [`connection`]: a place in an
//!   attachment, with the link that it has now. [`journal`]: where a device keeps what went wrong.
//! * [`outbox`]: requests that wait to be sent. [`header`], [`batch`]: how they go out together.
//!   [`send`]: sending them, and what follows from how that went. [`sender`]: the thread that sends
//!   what submitters leave.
//! * [`inbox`]: bytes that have come. [`receive`]: the thread that reads replies.
//! * [`overseer`]: what this room asks of the attachment that the connections belong to.

pub(crate) mod batch;
pub(crate) mod connection;
pub(crate) mod header;
pub(crate) mod inbox;
pub(crate) mod journal;
pub(crate) mod link;
pub(crate) mod outbox;
pub(crate) mod overseer;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod sender;
