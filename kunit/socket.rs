// SPDX-License-Identifier: GPL-2.0

//! Sockets (`abstractions/net/socket.rs`).

use super::{
    fixture::{thread, Event},
    socket_pair::{datagrams, pair, settle, sockets, tcp},
};
use crate::abstractions::{
    bvec::{Buffer, BvecArray},
    compat::error::code::ENOBUFS,
    iov::Kvec,
    net::{
        sockaddr::Family,
        socket::{More, Socket, Unusable, Wait},
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::{delay::fsleep, Delta},
};

/// Sends all of `bytes`.
fn send(socket: &Socket, bytes: &[u8]) -> Result {
    let (sent, result) = socket.send(&mut Kvec::source(bytes), More::Ends, Wait::Allowed);
    result?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(EIO)
    }
}

/// Fills `room`.
fn receive(socket: &Socket, room: &mut [u8]) -> (usize, Result) {
    let (mut buffer, mut one) = match (Buffer::new(room.len()), BvecArray::new(1)) {
        (Ok(buffer), Ok(one)) => (buffer, one),
        _ => return (0, Err(ENOMEM)),
    };
    let mut list = one.list();
    if list.push_bytes_mut(&mut buffer, 0..room.len()).is_err() {
        return (0, Err(ENOBUFS));
    }
    let result = socket.receive(&mut list);
    room.copy_from_slice(buffer.bytes());
    result
}

/// Whether the other end has closed, or shut down, and nothing is left to be read.
fn at_end(socket: &Socket) -> bool {
    matches!(receive(socket, &mut [0; 1]), (0, Err(error)) if error == EPIPE)
}

/// Bytes that tell where they belong.
fn pattern(len: usize) -> Result<KVec<u8>> {
    let mut bytes = KVec::with_capacity(len, GFP_KERNEL)?;
    for at in 0..len {
        bytes.push((at / 251 + at) as u8, GFP_KERNEL)?;
    }
    Ok(bytes)
}

/// What a thread that receives has come to.
#[pin_data]
struct Received {
    #[pin]
    outcome: Mutex<Option<(usize, Result)>>,
}

/// A thread that waits for something to receive, and what happens when it does so no longer.
fn reader(socket: &Arc<Socket>) -> Result<(impl Sized, Event)> {
    let (begun, woken) = (Event::new()?, Event::new()?);
    let (begin, wake, socket) = (begun.clone(), woken.clone(), socket.clone());
    let reader = thread(move || {
        begin.happen();
        socket.wait_readable();
        wake.happen();
    })?;
    begun.wait();
    Ok((reader, woken))
}

#[kunit_tests(rnbd_socket)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_descriptor_is_no_socket() {
        let refused = Socket::from_fd(-1).map(|_| ());
        assert!(matches!(refused, Err(Unusable::NotSocket(error)) if error == EBADF));
    }

    #[test]
    fn datagrams_are_refused() -> Result {
        for fd in &datagrams()? {
            let refused = Socket::from_fd(fd.number()).map(|_| ());
            assert!(matches!(refused, Err(Unusable::NotStream)));
        }
        Ok(())
    }

    #[test]
    fn streams_are_taken() -> Result {
        let (one, _other) = pair()?;
        let unix = Socket::from_fd(one.number()).map_err(|_| EINVAL)?;
        assert!(unix.getsockname().family() == Some(Family::Unix));
        let tcp = tcp()?;
        let tcp = Socket::from_fd(tcp.number()).map_err(|_| EINVAL)?;
        assert!(tcp.getsockname().family() == Some(Family::Inet));
        // Not connected.
        assert!(tcp.getpeername().family().is_none());
        Ok(())
    }

    #[test]
    fn a_socket_outlives_its_descriptor_and_ends_when_dropped() -> Result {
        let (one, other) = pair()?;
        let peer = Socket::from_fd(other.number()).map_err(|_| EINVAL)?;
        let first = Socket::from_fd(one.number()).map_err(|_| EINVAL)?;
        let second = Socket::from_fd(one.number()).map_err(|_| EINVAL)?;
        drop(one);
        send(&first, b"here")?;
        drop(first);
        settle();
        send(&second, b"still")?;
        let mut room = [0; 9];
        assert!(receive(&peer, &mut room) == (9, Ok(())));
        assert!(&room == b"herestill");
        drop(second);
        settle();
        assert!(at_end(&peer));
        Ok(())
    }

    #[test]
    fn bytes_arrive_whole_and_in_order() -> Result {
        let (one, other) = sockets()?;
        // More than the buffers of a pair hold: the sender has to wait.
        let sent = pattern(1 << 20)?;
        let want = pattern(1 << 20)?;
        let sender = thread(move || {
            let _ = send(&one, &sent);
        })?;
        let mut room = KVec::from_elem(0_u8, 1 << 20, GFP_KERNEL)?;
        assert!(receive(&other, &mut room) == (1 << 20, Ok(())));
        assert!(room[..] == want[..]);
        drop(sender);
        settle();
        // The sender's end is gone with its thread.
        assert!(at_end(&other));
        Ok(())
    }

    #[test]
    fn a_message_cut_short_says_how_much_came() -> Result {
        let (one, other) = sockets()?;
        send(&one, b"12345")?;
        drop(one);
        settle();
        let mut room = [0; 16];
        assert!(receive(&other, &mut room) == (5, Err(EPIPE)));
        assert!(&room[..5] == b"12345");
        Ok(())
    }

    #[test]
    fn to_send_to_nobody_fails() -> Result {
        let (one, other) = sockets()?;
        drop(other);
        settle();
        assert!(send(&one, b"hello") == Err(EPIPE));
        Ok(())
    }

    #[test]
    fn shutdown_is_seen_at_both_ends() -> Result {
        let (one, other) = sockets()?;
        one.shutdown();
        assert!(at_end(&other) && at_end(&one));
        assert!(send(&one, b"hello") == Err(EPIPE) && send(&other, b"hello") == Err(EPIPE));
        // Once more changes nothing.
        one.shutdown();
        Ok(())
    }

    #[test]
    fn shutdown_wakes_who_receives() -> Result {
        let (one, other) = sockets()?;
        let one = Arc::new(one, GFP_KERNEL)?;
        let received = pin_init!(Received { outcome <- new_mutex!(None) });
        let received = Arc::pin_init(received, GFP_KERNEL)?;
        let (begun, done) = (Event::new()?, Event::new()?);
        let (begin, end) = (begun.clone(), done.clone());
        let (socket, result) = (one.clone(), received.clone());
        let receiver = thread(move || {
            begin.happen();
            *result.outcome.lock() = Some(receive(&socket, &mut [0; 4]));
            end.happen();
        })?;
        begun.wait();
        one.shutdown();
        // To stop a thread would wake it too.
        done.wait();
        drop(receiver);
        let outcome = received.outcome.lock().take();
        assert!(outcome == Some((0, Err(EPIPE))));
        drop(other);
        Ok(())
    }

    #[test]
    fn a_reader_waits_for_bytes_and_not_for_room_to_send() -> Result {
        let (one, other) = sockets()?;
        let one = Arc::new(one, GFP_KERNEL)?;
        send(&one, b"question")?;
        let (reader, woken) = reader(&one)?;
        // Long enough for the reader to be waiting.
        fsleep(Delta::from_millis(50));
        // This makes room at the reader's end, and so does the next.
        assert!(receive(&other, &mut [0; 4]) == (4, Ok(())));
        assert!(receive(&other, &mut [0; 4]) == (4, Ok(())));
        fsleep(Delta::from_millis(50));
        assert!(!woken.has_happened());
        send(&other, b"answer")?;
        woken.wait();
        drop(reader);
        Ok(())
    }

    #[test]
    fn a_reader_does_not_wait_for_what_is_there() -> Result {
        let (one, other) = sockets()?;
        send(&other, b"answer")?;
        one.wait_readable();
        assert!(receive(&one, &mut [0; 6]) == (6, Ok(())));
        other.shutdown();
        one.wait_readable();
        assert!(at_end(&one));
        Ok(())
    }

    #[test]
    fn shutdown_wakes_a_reader() -> Result {
        let (one, other) = sockets()?;
        let one = Arc::new(one, GFP_KERNEL)?;
        let (reader, woken) = reader(&one)?;
        one.shutdown();
        // To stop a thread would wake it too.
        woken.wait();
        drop(reader);
        drop(other);
        Ok(())
    }

    #[test]
    fn who_may_not_wait_is_told_how_much_went() -> Result {
        let (one, other) = sockets()?;
        let bytes = pattern(1 << 20)?;
        let (sent, result) = one.send(&mut Kvec::source(&bytes), More::Ends, Wait::Never);
        assert!(result == Err(EAGAIN) && sent > 0 && sent < bytes.len());
        let mut room = KVec::from_elem(0_u8, sent, GFP_KERNEL)?;
        assert!(receive(&other, &mut room) == (sent, Ok(())));
        assert!(room[..] == bytes[..sent]);
        Ok(())
    }

    #[test]
    fn a_bounded_send_gives_up() -> Result {
        let (one, other) = sockets()?;
        one.set_sndtimeo(1);
        let bytes = pattern(1 << 20)?;
        let (sent, result) = one.send(&mut Kvec::source(&bytes), More::Ends, Wait::Allowed);
        assert!(result == Err(EAGAIN) && sent > 0 && sent < bytes.len());
        drop(other);
        Ok(())
    }

    #[test]
    fn a_socket_readied_for_block_io_still_works() -> Result {
        let (one, other) = sockets()?;
        one.reclassify_locks();
        one.set_memalloc();
        one.set_sndtimeo(0);
        send(&one, b"block")?;
        let mut room = [0; 5];
        assert!(receive(&other, &mut room) == (5, Ok(())) && &room == b"block");
        Ok(())
    }
}
