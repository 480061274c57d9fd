// SPDX-License-Identifier: GPL-2.0

//! Requests (`abstractions/block/mq/request.rs`): each ends once, with its last reference.

use super::{
    fixture::{thread, Event},
    test_disk::{read, write, TestDisk, DEPTH},
};
use crate::abstractions::{
    block::mq::{Op, Status},
    compat::error::code::EOPNOTSUPP,
};
use kernel::{prelude::*, sync::atomic::Relaxed};

#[kunit_tests(rnbd_disk_requests)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_and_end_as_the_driver_says() -> Result {
        for (status, want) in [
            (Status::Ok, Ok(())),
            (Status::IoError, Err(EIO)),
            (Status::NoSpace, Err(ENOSPC)),
            (Status::NotSupported, Err(EOPNOTSUPP)),
        ] {
            let test = TestDisk::attached(status)?;
            assert!(read(&test.disk, 0) == want && write(&test.disk, 8) == want);
            assert_eq!(test.disk.data().came.load(Relaxed), 2);
        }
        Ok(())
    }

    #[test]
    fn without_an_attachment_there_is_none() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        assert!(read(&test.disk, 0).is_ok());
        drop(test.disk.freeze().detach());
        assert!(read(&test.disk, 0) == Err(EIO));
        assert_eq!(test.disk.data().came.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    fn only_the_first_outcome_counts() -> Result {
        let test = TestDisk::attached(Status::NoSpace)?;
        assert!(write(&test.disk, 0) == Err(ENOSPC));
        assert!(test.disk.data().once.load(Relaxed));
        Ok(())
    }

    #[test]
    fn a_request_queued_again_comes_again() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        test.disk.data().requeue.store(5, Relaxed);
        assert!(read(&test.disk, 0).is_ok());
        assert_eq!(test.disk.data().came.load(Relaxed), 6);
        assert_eq!(test.disk.data().requeue.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_request_ends_with_its_last_reference() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        let data = test.disk.data();
        data.hold.store(true, Relaxed);
        let (disk, done) = (test.disk.get(), Event::new()?);
        let end = done.clone();
        let writer = thread(move || {
            if write(&disk, 16).is_ok() {
                end.happen();
            }
        })?;
        data.holding.wait();
        let held = data.held.lock().pop().ok_or(ENOENT)?;
        let tag = held.unique_tag();
        assert!(held.op() == Op::Write && (held.sector(), held.bytes()) == (16, 4096));
        // It was finished, and is still there for holders of a reference.
        let found = test.disk.tag_to_rq(tag).ok_or(ENOENT)?;
        assert!(core::ptr::eq(&*found, &*held));
        let mut seen = 0;
        test.disk
            .tagset_busy_iter(|request| seen += u32::from(request.unique_tag() == tag));
        assert_eq!(seen, 1);
        drop(held);
        assert!(!done.has_happened());
        drop(found);
        drop(writer);
        assert!(done.has_happened());
        assert!(test.disk.tag_to_rq(tag).is_none());
        test.disk.tagset_busy_iter(|_| seen += 1);
        assert_eq!(seen, 1);
        Ok(())
    }

    #[test]
    fn tags_from_outside_find_nothing() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        assert!(read(&test.disk, 0).is_ok());
        for tag in [0, 1, 3, 4, 0xffff, 0x1_0000, 0xffff_0000, u32::MAX] {
            assert!(test.disk.tag_to_rq(tag).is_none());
        }
        Ok(())
    }

    #[test]
    fn request_data_is_kept_from_use_to_use() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        for _ in 0..50 * DEPTH {
            assert!(read(&test.disk, 0).is_ok());
        }
        // Some tag was used so often at least.
        assert!(test.disk.data().most_uses.load(Relaxed) >= 50);
        Ok(())
    }

    #[test]
    fn freezing_waits_for_what_is_held() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        let data = test.disk.data();
        data.hold.store(true, Relaxed);
        let disk = test.disk.get();
        let reader = thread(move || {
            let _ = read(&disk, 0);
        })?;
        data.holding.wait();
        let (disk, begun, done) = (test.disk.get(), Event::new()?, Event::new()?);
        let (begin, end) = (begun.clone(), done.clone());
        let freezer = thread(move || {
            begin.happen();
            drop(disk.freeze().detach());
            end.happen();
        })?;
        begun.wait();
        let held = data.held.lock().pop().ok_or(ENOENT)?;
        assert!(!done.has_happened() && test.attachments.alive() == 1);
        drop(held);
        drop(freezer);
        drop(reader);
        assert!(done.has_happened() && test.attachments.alive() == 0);
        Ok(())
    }
}
