// SPDX-License-Identifier: GPL-2.0

//! Transmission flags against `include/uapi/linux/nbd.h`.

use rnbd_protocol::flags::TransmissionFlags as Flags;

#[test]
fn bits_are_the_interfaces() {
    let bits = [
        (Flags::HAS_FLAGS, 0),
        (Flags::READ_ONLY, 1),
        (Flags::SEND_FLUSH, 2),
        (Flags::SEND_FUA, 3),
        (Flags::ROTATIONAL, 4),
        (Flags::SEND_TRIM, 5),
        (Flags::SEND_WRITE_ZEROES, 6),
        (Flags::CAN_MULTI_CONN, 8),
    ];
    for (flag, bit) in bits {
        assert_eq!(flag.bits(), 1 << bit);
    }
}

#[test]
fn fua_needs_flush() {
    let both = Flags::from_bits(Flags::SEND_FLUSH.bits() | Flags::SEND_FUA.bits());
    assert!(both.write_cache() && both.fua());
    assert!(Flags::SEND_FLUSH.write_cache() && !Flags::SEND_FLUSH.fua());
    assert!(!Flags::SEND_FUA.write_cache() && !Flags::SEND_FUA.fua());
}

#[test]
fn unknown_bits_are_kept() {
    let flags = Flags::from_bits(0xdead_0000 | Flags::READ_ONLY.bits());
    assert_eq!(flags.bits(), 0xdead_0002);
    assert!(flags.contains(Flags::READ_ONLY));
    assert!(!flags.contains(Flags::SEND_TRIM));
}
