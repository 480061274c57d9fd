// SPDX-License-Identifier: GPL-2.0

//! Disks and what hangs on them (`abstractions/block`).

use super::{
    fixture::{thread, Census, Event},
    test_disk::{build, raw, read, TestDisk, MAJOR, SECTORS},
};
use crate::abstractions::block::{
    major::Major,
    mq::{max_block_size, QueueLimits, Status},
};
use kernel::prelude::*;

#[kunit_tests(rnbd_disk)]
mod tests {
    use super::*;

    #[test]
    fn a_major_number_is_taken_once_and_given_back() -> Result {
        for _ in 0..3 {
            let major = Major::register(MAJOR, c"rnbd-kunit")?;
            let again = Major::register(MAJOR, c"rnbd-other").map(|_| ());
            assert!(again == Err(EBUSY));
            drop(major);
        }
        Ok(())
    }

    #[test]
    fn data_stays_as_long_as_a_reference_to_the_disk() -> Result {
        let TestDisk {
            disk,
            major: _major,
            data,
            ..
        } = TestDisk::new()?;
        let kept = disk.get();
        drop(disk);
        assert_eq!(data.alive(), 1);
        assert_eq!(kept.data().came.load(kernel::sync::atomic::Relaxed), 0);
        drop(kept);
        assert_eq!(data.alive(), 0);
        Ok(())
    }

    #[test]
    fn a_disk_that_cannot_be_made_drops_its_data() -> Result {
        let _major = Major::register(MAJOR, c"rnbd-kunit")?;
        let census = Census::new()?;
        let mut limits = QueueLimits::new();
        // No power of two.
        limits.block_size(1000);
        let failed = build(&census, limits).map(|_| ());
        assert!(failed == Err(EINVAL));
        assert_eq!(census.alive(), 0);
        // Nothing of it is in the way.
        drop(build(&census, QueueLimits::new())?);
        assert_eq!(census.alive(), 0);
        Ok(())
    }

    #[test]
    fn one_attachment_at_a_time() -> Result {
        let test = TestDisk::new()?;
        test.attach(Status::Ok)?;
        assert!(test.attach(Status::Ok) == Err(EBUSY));
        // The second one was given back.
        assert_eq!(test.attachments.alive(), 1);
        let taken = test.disk.freeze().detach();
        assert!(taken.is_some() && test.disk.freeze().detach().is_none());
        drop(taken);
        assert_eq!(test.attachments.alive(), 0);
        test.attach(Status::Ok)?;
        Ok(())
    }

    #[test]
    fn what_is_attached_goes_with_the_disk() -> Result {
        let TestDisk {
            disk,
            major: _major,
            data,
            attachments,
        } = TestDisk::attached(Status::Ok)?;
        let kept = disk.get();
        drop(disk);
        assert_eq!((data.alive(), attachments.alive()), (1, 1));
        drop(kept);
        assert_eq!((data.alive(), attachments.alive()), (0, 0));
        Ok(())
    }

    #[test]
    fn capacity_is_what_was_set() -> Result {
        let test = TestDisk::new()?;
        assert_eq!(test.disk.capacity(), 0);
        test.disk.set_capacity_and_notify(SECTORS);
        assert_eq!(test.disk.capacity(), SECTORS);
        test.disk.set_capacity_and_notify(0);
        assert_eq!(test.disk.capacity(), 0);
        Ok(())
    }

    #[test]
    fn limits_change_together_or_not_at_all() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        // SAFETY: The disk has its queue.
        let limits = || unsafe { &(*(*raw(&test.disk)).queue).limits };
        test.disk.update_limits(|limits| {
            limits
                .block_size(4096)
                .max_hw_discard_sectors(64)
                .write_cache(true)
                .fua(true);
        })?;
        let now = limits();
        assert_eq!(
            (now.logical_block_size, now.physical_block_size),
            (4096, 4096)
        );
        assert_eq!(now.max_hw_discard_sectors, 64);
        let wrong = test.disk.update_limits(|limits| {
            limits.block_size(3000).max_hw_discard_sectors(128);
        });
        assert!(wrong == Err(EINVAL));
        let now = limits();
        assert_eq!(
            (now.logical_block_size, now.max_hw_discard_sectors),
            (4096, 64)
        );
        // And the disk still works.
        assert!(read(&test.disk, 0).is_ok());
        let largest = u32::try_from(max_block_size())?;
        test.disk.update_limits(|limits| {
            limits.block_size(largest);
        })?;
        assert_eq!(limits().logical_block_size, largest);
        Ok(())
    }

    #[test]
    fn nobody_reads_while_the_queue_is_frozen() -> Result {
        let test = TestDisk::attached(Status::Ok)?;
        let mut frozen = test.disk.freeze();
        let (disk, begun, done) = (test.disk.get(), Event::new()?, Event::new()?);
        let (begin, end) = (begun.clone(), done.clone());
        let reader = thread(move || {
            begin.happen();
            if read(&disk, 0) == Err(EIO) {
                end.happen();
            }
        })?;
        begun.wait();
        // However far the reader is, it is not served: when it is, the attachment is gone.
        drop(frozen.detach());
        assert_eq!(test.disk.data().came.load(kernel::sync::atomic::Relaxed), 0);
        drop(frozen);
        drop(reader);
        assert!(done.has_happened());
        Ok(())
    }
}
