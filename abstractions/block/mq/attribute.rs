// SPDX-License-Identifier: GPL-2.0

//! Files in a disk's sysfs directory.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::{Disk, Operations};
use crate::bindings as extra;
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi,
    fmt::Write as _,
    page::PAGE_SIZE,
    prelude::*,
    str::{as_char_ptr_in_const_context, Formatter},
    sync::aref::ARef,
};

/// A read-only file, one value, in the directory of a disk of `T`.
pub(crate) trait Attribute<T: Operations>: 'static {
    /// The file's name.
    const NAME: &'static CStr;

    /// Writes the value, without a newline. May sleep, but not for what removes the file.
    fn show(disk: &Disk<T>, to: &mut Formatter<'_>) -> Result;
}

/// An [`Attribute`]'s file, in sysfs until this is dropped. Dropping waits for readers.
///
/// # Invariants
///
/// The file was created, and is removed by this value alone.
pub(crate) struct AttributeFile<T: Operations, A: Attribute<T>> {
    disk: ARef<Disk<T>>,
    _attribute: PhantomData<fn() -> A>,
}

impl<T: Operations, A: Attribute<T>> AttributeFile<T, A> {
    // With lock debugging there are more fields.
    #[allow(clippy::needless_update)]
    const ATTRIBUTE: bindings::device_attribute = bindings::device_attribute {
        attr: bindings::attribute {
            name: as_char_ptr_in_const_context(A::NAME),
            mode: 0o444,
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show),
        },
        ..pin_init::zeroed()
    };

    /// Creates the file. Sleeps.
    pub(crate) fn create(disk: &Disk<T>) -> Result<Self> {
        // SAFETY: The disk has its device; the attribute lives for ever.
        to_result(unsafe {
            bindings::device_create_file(
                extra::rnbd_helper_disk_to_dev(disk.as_raw()),
                &Self::ATTRIBUTE,
            )
        })?;
        Ok(Self {
            disk: disk.get(),
            _attribute: PhantomData,
        })
    }

    /// # Safety
    ///
    /// Only for sysfs to call, through [`Self::ATTRIBUTE`].
    unsafe extern "C" fn show(
        dev: *mut bindings::device,
        _attr: *mut bindings::device_attribute,
        buf: *mut ffi::c_char,
    ) -> isize {
        // SAFETY: The file was created in the directory of a disk of `T`, which is alive.
        let disk = unsafe { Disk::<T>::from_raw(extra::rnbd_helper_dev_to_disk(dev)) };
        // SAFETY: sysfs passes a page to write to.
        let page = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
        from_result(|| {
            let mut to = Formatter::new(page);
            A::show(disk, &mut to)?;
            to.write_str("\n").map_err(|_| EOVERFLOW)?;
            Ok(isize::try_from(to.bytes_written())?)
        })
    }
}

impl<T: Operations, A: Attribute<T>> Drop for AttributeFile<T, A> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe {
            bindings::device_remove_file(
                extra::rnbd_helper_disk_to_dev(self.disk.as_raw()),
                &Self::ATTRIBUTE,
            )
        };
    }
}
