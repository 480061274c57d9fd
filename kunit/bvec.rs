// SPDX-License-Identifier: GPL-2.0

//! Lists of pieces of memory (`abstractions/bvec.rs`), and receiving into them.

use super::socket_pair::sockets;
use crate::abstractions::{
    bvec::{Buffer, BvecArray, NoRoom},
    iov::{Dest, Kvec, Source},
    net::socket::{More, Wait},
};
use kernel::prelude::*;

#[kunit_tests(rnbd_bvec)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_sent_and_received_in_their_order() -> Result {
        let (one, other) = sockets()?;
        // Of more than a page, so that a piece has more than one.
        let mut buffer = Buffer::new(10_000)?;
        for (at, byte) in buffer.bytes_mut().iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        let mut room = BvecArray::new(3)?;
        let mut list = room.list::<Source>();
        for range in [5_000..10_000, 0..0, 0..5_000, 100..101] {
            assert!(list.push_bytes(&buffer, range).is_ok());
        }
        let (sent, result) = one.send(&mut list, More::Ends, Wait::Allowed);
        assert!((sent, result) == (10_001, Ok(())));

        let (mut first, mut second) = (Buffer::new(5_000)?, Buffer::new(6_000)?);
        let mut list = room.list::<Dest>();
        assert!(list.push_bytes_mut(&mut first, 0..5_000).is_ok());
        assert!(list.push_bytes_mut(&mut second, 0..5_001).is_ok());
        assert!(other.receive(&mut list) == (10_001, Ok(())));
        assert!(first.bytes() == buffer.bytes().get(5_000..).ok_or(EINVAL)?);
        assert!(second.bytes().get(..5_000) == buffer.bytes().get(..5_000));
        assert!(second.bytes().get(5_000..5_002) == Some(&[100, 0][..]));
        Ok(())
    }

    #[test]
    fn a_list_takes_no_more_than_there_is_room_for() -> Result {
        let buffer = Buffer::new(16)?;
        let mut room = BvecArray::new(2)?;
        for _ in 0..2 {
            let mut list = room.list::<Source>();
            assert!(list.push_bytes(&buffer, 0..8).is_ok());
            assert!(list.push_bytes(&buffer, 8..16).is_ok());
            assert!(matches!(list.push_bytes(&buffer, 0..1), Err(NoRoom)));
            // What is not there needs no room.
            assert!(list.push_bytes(&buffer, 16..17).is_ok());
        }
        Ok(())
    }

    #[test]
    fn enough_is_enough() -> Result {
        let (one, other) = sockets()?;
        let mut buffer = Buffer::new(64)?;
        let mut room = BvecArray::new(1)?;
        let mut receive = |enough, wait| {
            let mut list = room.list::<Dest>();
            assert!(list.push_bytes_mut(&mut buffer, 0..64).is_ok());
            other.receive_at_least(&mut list, enough, wait)
        };
        assert!(!other.has_data());
        assert!(receive(1, Wait::Never) == (0, Err(EAGAIN)));
        one.send(&mut Kvec::source(b"0123456789"), More::Ends, Wait::Allowed)
            .1?;
        assert!(other.has_data());
        // There is no more, and more is not needed.
        assert!(receive(4, Wait::Allowed) == (10, Ok(())));
        one.send(&mut Kvec::source(b"0123456789"), More::Ends, Wait::Allowed)
            .1?;
        assert!(receive(11, Wait::Never) == (10, Err(EAGAIN)));
        one.shutdown();
        assert!(receive(1, Wait::Allowed) == (0, Err(EPIPE)));
        Ok(())
    }
}
