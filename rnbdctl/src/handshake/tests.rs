// SPDX-License-Identifier: GPL-2.0
//! A server that follows a script, well behaved or not, at the other end of a socket pair.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::wire::{self, OPTION_MAGIC, REPLY_MAGIC};
use super::{BlockSizes, Error, Export, TransmissionFlags, negotiate};

const SIZE: u64 = 64 << 20;
/// NBD_FLAG_HAS_FLAGS, SEND_FLUSH, CAN_MULTI_CONN.
const FLAGS: u16 = 1 | (1 << 2) | (1 << 8);

/// One thing that a server does.
enum Step {
    Say(Vec<u8>),
    /// Reads what the client must say here.
    Expect(Vec<u8>),
    /// Does nothing until the client goes.
    Wait,
}
use Step::{Expect, Say, Wait};

fn greeting(flags: u16) -> Step {
    Say([&b"NBDMAGIC"[..], &OPTION_MAGIC, &flags.to_be_bytes()].concat())
}

fn client_flags(flags: u32) -> Step {
    Expect(flags.to_be_bytes().to_vec())
}

fn go(name: &str) -> Step {
    // Written out, so that it is not the code's own idea of it.
    let mut bytes = [&b"IHAVEOPT"[..], &7_u32.to_be_bytes()].concat();
    bytes.extend((4 + name.len() as u32 + 2 + 2).to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend([0, 1, 0, 3]);
    Expect(bytes)
}

fn by_name(name: &str) -> Step {
    let length = (name.len() as u32).to_be_bytes();
    Expect([&b"IHAVEOPT"[..], &1_u32.to_be_bytes(), &length, name.as_bytes()].concat())
}

fn reply(kind: u32, data: &[u8]) -> Step {
    reply_to(7, kind, data.len() as u32, data)
}

fn reply_to(option: u32, kind: u32, length: u32, data: &[u8]) -> Step {
    let magic = REPLY_MAGIC.to_be_bytes();
    Say([&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat())
}

fn export(size: u64, flags: u16) -> Step {
    reply(3, &[&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat())
}

fn sizes(minimum: u32, preferred: u32, maximum: u32) -> Step {
    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
    reply(3, &[&[0, 3][..], &sizes].concat())
}

fn ack() -> Step {
    reply(1, &[])
}

/// What comes before the option, of the usual server.
fn opening(name: &str) -> Vec<Step> {
    vec![greeting(3), client_flags(3), go(name)]
}

fn after_opening(steps: Vec<Step>) -> Vec<Step> {
    opening("disk").into_iter().chain(steps).collect()
}

/// What the client makes of a server, and what is left in the stream when it is done.
fn shake_hands(steps: Vec<Step>) -> (Result<Export, Error>, Vec<u8>) {
    shake_hands_within(Duration::from_secs(60), steps)
}

fn shake_hands_within(patience: Duration, steps: Vec<Step>) -> (Result<Export, Error>, Vec<u8>) {
    let (client, mut server) = UnixStream::pair().unwrap();
    let script = thread::spawn(move || {
        for step in steps {
            match step {
                // The client may have gone, having seen enough.
                Say(bytes) => drop(server.write_all(&bytes)),
                Expect(bytes) => {
                    let mut got = vec![0; bytes.len()];
                    server.read_exact(&mut got).unwrap();
                    assert_eq!(got.escape_ascii().to_string(), bytes.escape_ascii().to_string());
                }
                Wait => drop(server.read_to_end(&mut Vec::new())),
            }
        }
    });
    client.set_read_timeout(Some(patience)).unwrap();
    let result = negotiate(&client, "disk");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    script.join().expect("the client did not say what was expected");
    let mut rest = Vec::new();
    // A server that is gone may reset it; those who look at the rest see that it is not there.
    let _ = (&client).read_to_end(&mut rest);
    (result, rest)
}

fn fails(steps: Vec<Step>) -> String {
    shake_hands(steps).0.expect_err("a server that must be refused was taken").to_string()
}

#[test]
fn an_export_is_granted_and_the_stream_is_where_requests_begin() {
    let steps = vec![sizes(1, 4096, 32 << 20), export(SIZE, FLAGS), ack(), Say(b"next".to_vec())];
    let (export, rest) = shake_hands(after_opening(steps));
    let block_sizes = Some(BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 });
    let flags = TransmissionFlags::from_bits(FLAGS.into());
    assert_eq!(export.unwrap(), Export { size: SIZE, flags, block_sizes });
    assert_eq!(rest, b"next");
}

#[test]
fn informations_that_were_not_asked_for_are_passed_over() {
    let name = reply(3, b"\0\x01disk");
    let future = reply(3, b"\x12\x34whatever it is");
    let (export, _) = shake_hands(after_opening(vec![name, export(SIZE, FLAGS), future, ack()]));
    assert_eq!(export.unwrap().block_sizes, None);
}

#[test]
fn flags_mean_nothing_without_the_flag_that_says_so() {
    let (export, _) = shake_hands(after_opening(vec![export(SIZE, FLAGS & !1), ack()]));
    assert_eq!(export.unwrap().flags, TransmissionFlags::default());
}

#[test]
fn a_server_without_go_is_asked_by_name() {
    let granted = Say([&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), b"next"].concat());
    let (export, rest) =
        shake_hands(after_opening(vec![reply((1 << 31) | 1, &[]), by_name("disk"), granted]));
    assert_eq!(export.unwrap().size, SIZE);
    assert_eq!(rest, b"next");
}

#[test]
fn a_server_that_is_not_fixed_is_asked_by_name_and_pads() {
    let granted = Say([&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), &[0; 124], b"next"].concat());
    let (export, rest) = shake_hands(vec![greeting(0), client_flags(0), by_name("disk"), granted]);
    assert_eq!(export.unwrap().size, SIZE);
    assert_eq!(rest, b"next");
}

#[test]
fn a_server_that_closes_on_a_name_has_no_such_export() {
    let told = fails(vec![greeting(2), client_flags(2), by_name("disk")]);
    assert_eq!(told, "it has no such export");
}

#[test]
fn a_refusal_is_told_with_the_servers_words_made_harmless() {
    let told = fails(after_opening(vec![
        reply((1 << 31) | 6, b"no \x1b[31mdisk"),
        Expect(wire::option(wire::option::ABORT, &[])),
    ]));
    assert_eq!(told, "it has no such export (\"no \\u{1b}[31mdisk\")");
    let told = fails(after_opening(vec![reply((1 << 31) | 2, b"")]));
    assert_eq!(told, "it refuses: its policy forbids it");
    let told = fails(after_opening(vec![reply((1 << 31) | 77, b"?")]));
    assert_eq!(told, "it refuses: error 77 (\"?\")");
}

#[test]
fn tls_is_said_to_be_wanted() {
    assert!(fails(after_opening(vec![reply((1 << 31) | 5, b"")])).contains("it wants TLS"));
}

#[test]
fn what_is_no_nbd_server_is_told() {
    let told = fails(vec![Say(b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec())]);
    assert_eq!(told, "what answers is no NBD server: it begins with \"SSH-2.0-\"");
    let oldstyle = [&b"NBDMAGIC"[..], &0x0000_4202_8186_1253_u64.to_be_bytes(), &[0; 136]].concat();
    assert!(fails(vec![Say(oldstyle)]).contains("oldstyle"));
    let told = fails(vec![Say([&b"NBDMAGIC"[..], b"nonsense", &[0; 2]].concat())]);
    assert!(told.starts_with("it breaks the protocol"), "{told}");
}

#[test]
fn a_server_that_closes_is_told_at_each_step() {
    assert_eq!(fails(vec![]), "it closed the connection instead of its greeting");
    assert_eq!(fails(vec![Say(b"NBDMAG".to_vec())]), "it closed the connection instead of its greeting");
    let told = fails(after_opening(vec![export(SIZE, FLAGS)]));
    assert_eq!(told, "it closed the connection instead of answering the request for an export");
    let told = fails(after_opening(vec![reply_to(7, 3, 12, b"\0\0")]));
    assert_eq!(told, "it closed the connection instead of answering the request for an export");
}

#[test]
fn a_silent_server_is_not_awaited_for_ever() {
    for steps in [vec![Wait], after_opening(vec![export(SIZE, FLAGS), Wait])] {
        let (result, _) = shake_hands_within(Duration::from_millis(500), steps);
        assert_eq!(result.unwrap_err().to_string(), "it does not answer");
    }
}

#[test]
fn malformed_replies_are_refused() {
    let hostile: [(&str, Vec<Step>); 10] = [
        ("a reply begins with 0x0", vec![Say(vec![0; 20])]),
        ("an answer to option 6", vec![reply_to(6, 1, 0, &[])]),
        ("a reply of 4294967295 bytes", vec![reply_to(7, 3, u32::MAX, &[])]),
        ("a reply of 65537 bytes", vec![reply_to(7, 3, 65537, &[])]),
        ("an information of 0 bytes", vec![reply(3, &[])]),
        ("an information of 11 bytes", vec![reply(3, &[0; 11])]),
        ("an information of 13 bytes", vec![reply(3, &[0; 13])]),
        ("an information of 6 bytes", vec![reply(3, &[0, 3, 0, 0, 2, 0])]),
        ("it grants the export and does not describe it", vec![sizes(1, 512, 512), ack()]),
        ("reply 2 to NBD_OPT_GO", vec![reply(2, &[0; 4])]),
    ];
    for (want, steps) in hostile {
        let told = fails(after_opening(steps));
        assert!(told.contains(want), "{told:?}, and not {want:?}");
    }
}

#[test]
fn informations_without_end_are_refused() {
    let many = (0..65).map(|_| reply(3, b"\0\x01disk")).collect();
    assert!(fails(after_opening(many)).contains("more than 64 replies"));
}

#[test]
fn impossible_exports_are_refused() {
    assert!(fails(after_opening(vec![export(0, FLAGS), ack()])).contains("no bytes"));
    assert!(fails(after_opening(vec![export(1 << 63, FLAGS), ack()])).contains("more than a disk can have"));
}

#[test]
fn impossible_block_sizes_are_refused() {
    let bad = [
        (0, 512, 4096),
        (3, 512, 4096),
        (1024, 512, 4096),
        (1, 513, 4096),
        (512, 4096, 1024),
        (512, 512, 1025),
        (1 << 17, 1 << 17, 1 << 20),
    ];
    for (minimum, preferred, maximum) in bad {
        let told = fails(after_opening(vec![sizes(minimum, preferred, maximum), export(SIZE, FLAGS), ack()]));
        assert!(told.contains("block sizes"), "{minimum} {preferred} {maximum}: {told:?}");
    }
    let (export, _) = shake_hands(after_opening(vec![sizes(1, 512, u32::MAX), export(SIZE, FLAGS), ack()]));
    assert!(export.is_ok());
}

#[test]
fn a_name_that_is_too_long_is_not_sent() {
    let (client, server) = UnixStream::pair().unwrap();
    drop(server);
    let told = negotiate(&client, &"x".repeat(4097)).unwrap_err().to_string();
    assert!(told.contains("at most 4096 bytes"), "{told}");
}
