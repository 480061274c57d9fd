// SPDX-License-Identifier: GPL-2.0

//! Pages to be sent without another copy (`abstractions/net/staging.rs`).

use super::socket_pair::sockets;
use crate::abstractions::{
    bvec::{Buffer, BvecArray},
    compat::error::code::ENOBUFS,
    net::{
        socket::{More, Socket, Wait},
        staging::Staging,
    },
};
use kernel::{
    bindings,
    page::{Page, PAGE_SIZE},
    prelude::*,
};

/// Sends what was put there, and makes room for more.
fn send(socket: &Socket, staging: &mut Staging) -> (usize, Result) {
    let result = socket.send(staging, More::Ends, Wait::Allowed);
    staging.clear();
    result
}

fn receive(socket: &Socket, bytes: usize) -> Result<Buffer> {
    let (mut buffer, mut room) = (Buffer::new(bytes)?, BvecArray::new(1)?);
    let mut list = room.list();
    list.push_bytes_mut(&mut buffer, 0..bytes)
        .map_err(|_| ENOBUFS)?;
    socket.receive(&mut list).1?;
    Ok(buffer)
}

/// A page that is full of a byte.
fn page_of(byte: u8) -> Result<Page> {
    let page = Page::alloc_page(GFP_KERNEL)?;
    let bytes = KVec::from_elem(byte, PAGE_SIZE, GFP_KERNEL)?;
    // SAFETY: The bytes are as many as the page has, and the page is not used elsewhere.
    unsafe { page.write_raw(bytes.as_ptr(), 0, PAGE_SIZE) }?;
    Ok(page)
}

/// Puts bytes of a page there. `None` if there is no room.
fn put(staging: &mut Staging, page: &Page, from: usize, len: usize) -> Option<usize> {
    let segment = bindings::bio_vec {
        bv_page: page.as_ptr(),
        bv_len: len as u32,
        bv_offset: from as u32,
    };
    // SAFETY: That is part of the page, which is borrowed.
    unsafe { staging.push_segment(&segment) }.ok()
}

#[kunit_tests(rnbd_staging)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_not_used_again_before_it_was_read() -> Result {
        let (one, other) = sockets()?;
        let mut staging = Staging::new(1)?;
        for byte in 1..4 {
            let (first, second) = (page_of(byte)?, page_of(byte + 100)?);
            assert!(put(&mut staging, &first, 0, PAGE_SIZE) == Some(PAGE_SIZE));
            // The one page there may be is about to be sent.
            assert!(put(&mut staging, &second, 0, PAGE_SIZE).is_none());
            assert!(send(&one, &mut staging) == (PAGE_SIZE, Ok(())));
            // Now it is to be read.
            assert!(put(&mut staging, &second, 0, PAGE_SIZE).is_none());
            assert!(staging.is_empty());
            let came = receive(&other, PAGE_SIZE)?;
            assert!(came.bytes().iter().all(|came| *came == byte));
        }
        Ok(())
    }

    #[test]
    fn what_is_sent_is_what_was_copied() -> Result {
        let (one, other) = sockets()?;
        let mut staging = Staging::new(2)?;
        let page = page_of(7)?;
        assert!(put(&mut staging, &page, 0, PAGE_SIZE) == Some(PAGE_SIZE));
        assert!(send(&one, &mut staging) == (PAGE_SIZE, Ok(())));
        // Its owner goes on with it before it was read.
        let new = KVec::from_elem(8, PAGE_SIZE, GFP_KERNEL)?;
        // SAFETY: The bytes are as many as the page has, and the page is not used elsewhere.
        unsafe { page.write_raw(new.as_ptr(), 0, PAGE_SIZE) }?;
        let came = receive(&other, PAGE_SIZE)?;
        assert!(came.bytes().iter().all(|came| *came == 7));
        Ok(())
    }

    #[test]
    fn small_pieces_share_a_page() -> Result {
        let (one, other) = sockets()?;
        let mut staging = Staging::new(1)?;
        let page = page_of(9)?;
        for round in 0..3 {
            // What went before lies in the same page, and is not read yet.
            assert!(staging.push_bytes(&[round; 28]).is_ok());
            assert!(put(&mut staging, &page, 100, 512) == Some(512));
            assert!(send(&one, &mut staging) == (540, Ok(())));
        }
        for round in 0..3 {
            let came = receive(&other, 540)?;
            let (header, data) = came.bytes().split_at_checked(28).ok_or(EINVAL)?;
            assert!(header.iter().all(|byte| *byte == round));
            assert!(data.iter().all(|byte| *byte == 9));
        }
        Ok(())
    }

    #[test]
    fn a_full_page_takes_the_only_one_from_small_pieces() -> Result {
        let (one, other) = sockets()?;
        let mut staging = Staging::new(1)?;
        assert!(staging.push_bytes(&[1; 28]).is_ok());
        assert!(send(&one, &mut staging) == (28, Ok(())));
        drop(receive(&other, 28)?);
        let page = page_of(9)?;
        assert!(put(&mut staging, &page, 0, PAGE_SIZE) == Some(PAGE_SIZE));
        // There is no room for it but in the page that is listed.
        assert!(staging.push_bytes(&[2; 28]).is_err());
        assert!(send(&one, &mut staging) == (PAGE_SIZE, Ok(())));
        let came = receive(&other, PAGE_SIZE)?;
        assert!(came.bytes().iter().all(|byte| *byte == 9));
        Ok(())
    }

    #[test]
    fn pieces_come_in_their_order_however_the_pages_are_used() -> Result {
        let (one, other) = sockets()?;
        let mut staging = Staging::new(4)?;
        let pages = [page_of(20)?, page_of(21)?];
        for round in 0..9_u8 {
            assert!(staging.push_bytes(&[round; 28]).is_ok());
            for page in &pages {
                assert!(put(&mut staging, page, 0, PAGE_SIZE) == Some(PAGE_SIZE));
            }
            let bytes = 28 + 2 * PAGE_SIZE;
            assert!(send(&one, &mut staging) == (bytes, Ok(())));
            let came = receive(&other, bytes)?;
            let (header, data) = came.bytes().split_at_checked(28).ok_or(EINVAL)?;
            assert!(header.iter().all(|byte| *byte == round));
            let (first, second) = data.split_at_checked(PAGE_SIZE).ok_or(EINVAL)?;
            assert!(first.iter().all(|byte| *byte == 20));
            assert!(second.iter().all(|byte| *byte == 21));
        }
        Ok(())
    }

    #[test]
    fn of_a_segment_of_several_pages_one_is_taken_at_a_time() -> Result {
        let mut staging = Staging::new(3)?;
        let page = page_of(1)?;
        // As if more pages followed: these are not looked at.
        assert!(put(&mut staging, &page, 1000, 3 * PAGE_SIZE) == Some(PAGE_SIZE - 1000));
        Ok(())
    }
}
