// SPDX-License-Identifier: GPL-2.0

//! That the numbers are those of the installed headers: the C compiler compares them. (The build of
//! rnbd.ko compares them with the kernel's own.)

// Needs a process.
#![cfg(not(miri))]

use rnbd_protocol::{
    flags::TransmissionFlags,
    netlink::{self, attribute, command, device, socket, ClientFlags},
    wire::{self, Command, CommandFlags},
};
use std::{
    io::Write as _,
    process::{self, Stdio},
};

/// The headers' constants, and what they are here.
fn numbers() -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("NBD_REQUEST_MAGIC", wire::REQUEST_MAGIC.into()),
        ("NBD_REPLY_MAGIC", wire::REPLY_MAGIC.into()),
        ("sizeof(struct nbd_request)", wire::REQUEST_SIZE as u64),
        ("sizeof(struct nbd_reply)", wire::REPLY_SIZE as u64),
        ("NBD_CMD_READ", Command::Read.number().into()),
        ("NBD_CMD_WRITE", Command::Write.number().into()),
        ("NBD_CMD_DISC", Command::Disconnect.number().into()),
        ("NBD_CMD_FLUSH", Command::Flush.number().into()),
        ("NBD_CMD_TRIM", Command::Trim.number().into()),
        ("NBD_CMD_WRITE_ZEROES", Command::WriteZeroes.number().into()),
        ("NBD_CMD_FLAG_FUA >> 16", CommandFlags::FUA.into()),
        ("NBD_CMD_FLAG_NO_HOLE >> 16", CommandFlags::NO_HOLE.into()),
        (
            "NBD_CFLAG_DESTROY_ON_DISCONNECT",
            ClientFlags::DESTROY_ON_DISCONNECT.bits(),
        ),
        (
            "NBD_CFLAG_DISCONNECT_ON_CLOSE",
            ClientFlags::DISCONNECT_ON_CLOSE.bits(),
        ),
        ("NBD_GENL_VERSION", netlink::FAMILY_VERSION.into()),
        ("NBD_CMD_CONNECT", command::CONNECT.into()),
        ("NBD_CMD_DISCONNECT", command::DISCONNECT.into()),
        ("NBD_CMD_RECONFIGURE", command::RECONFIGURE.into()),
        ("NBD_CMD_LINK_DEAD", command::LINK_DEAD.into()),
        ("NBD_CMD_STATUS", command::STATUS.into()),
        ("NBD_ATTR_INDEX", attribute::INDEX.into()),
        ("NBD_ATTR_SIZE_BYTES", attribute::SIZE_BYTES.into()),
        (
            "NBD_ATTR_BLOCK_SIZE_BYTES",
            attribute::BLOCK_SIZE_BYTES.into(),
        ),
        ("NBD_ATTR_TIMEOUT", attribute::TIMEOUT.into()),
        ("NBD_ATTR_SERVER_FLAGS", attribute::SERVER_FLAGS.into()),
        ("NBD_ATTR_CLIENT_FLAGS", attribute::CLIENT_FLAGS.into()),
        ("NBD_ATTR_SOCKETS", attribute::SOCKETS.into()),
        (
            "NBD_ATTR_DEAD_CONN_TIMEOUT",
            attribute::DEAD_CONN_TIMEOUT.into(),
        ),
        ("NBD_ATTR_DEVICE_LIST", attribute::DEVICE_LIST.into()),
        (
            "NBD_ATTR_BACKEND_IDENTIFIER",
            attribute::BACKEND_IDENTIFIER.into(),
        ),
        ("NBD_SOCK_ITEM", socket::ITEM.into()),
        ("NBD_SOCK_FD", socket::FD.into()),
        ("NBD_SOCK_MAX", socket::MAX.into()),
        ("NBD_DEVICE_ITEM", device::ITEM.into()),
        ("NBD_DEVICE_INDEX", device::INDEX.into()),
        ("NBD_DEVICE_CONNECTED", device::CONNECTED.into()),
        ("NBD_DEVICE_ATTR_MAX", device::MAX.into()),
    ];
    let flags = TransmissionFlags::NAMED.map(|(flag, name)| (name, flag.bits().into()));
    all.extend(flags);
    all
}

/// Whether the C compiler accepts these assertions behind the headers, and its messages.
fn compile(assertions: &str) -> (bool, String) {
    let mut cc = process::Command::new("cc")
        .args(["-x", "c", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("there must be a C compiler, as for every Rust program");
    let text = format!(
        "#include <string.h>\n#include <linux/nbd.h>\n#include <linux/nbd-netlink.h>\n{assertions}"
    );
    cc.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = cc.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn numbers_are_those_of_the_installed_headers() {
    let mut assertions = String::new();
    for (name, ours) in numbers() {
        assertions += &format!("_Static_assert(({name}) == {ours}u, \"{name}\");\n");
    }
    let (same, said) = compile(&assertions);
    assert!(same, "{said}");
}

#[test]
fn another_number_is_found_out() {
    let (same, said) = compile("_Static_assert(NBD_CMD_DISC == 3, \"NBD_CMD_DISC\");\n");
    assert!(!same);
    assert!(said.contains("NBD_CMD_DISC"), "{said}");
}

#[test]
fn names_are_those_of_the_installed_headers() {
    for (name, ours) in [
        ("NBD_GENL_FAMILY_NAME", netlink::FAMILY_NAME),
        ("NBD_GENL_MCAST_GROUP_NAME", netlink::MULTICAST_GROUP),
    ] {
        let ours = ours.to_str().unwrap();
        let (same, said) = compile(&format!(
            "_Static_assert(!__builtin_strcmp({name}, \"{ours}\"), \"{name}\");\n"
        ));
        assert!(same, "{said}");
    }
}

#[test]
fn our_own_attributes_are_beyond_those_of_the_headers() {
    let own = attribute::HANDOVER;
    let (beyond, said) = compile(&format!("_Static_assert(NBD_ATTR_MAX < {own}, \"max\");\n"));
    assert!(beyond, "{said}");
}
