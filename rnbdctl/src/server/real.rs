// SPDX-License-Identifier: GPL-2.0
//! The handshake with real servers: nbdkit, which can be told to be of any kind, and qemu-nbd. Where there is none, as
//! outside of the toolchain root, there is nothing to try.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::tests::directory;
use super::*;

const SIZE: u64 = 4 << 20;

/// A server at a UNIX socket, ended when dropped.
struct Real {
    process: Child,
    directory: PathBuf,
}

impl Real {
    /// Starts `program`, with `{}` for the socket. None if there is no such program.
    fn start(program: &str, args: &[&str]) -> Option<Real> {
        let directory = directory();
        let socket = directory.join("socket");
        let args = args.iter().map(|arg| arg.replace("{}", &socket.to_string_lossy()));
        let process = match Command::new(program).args(args).stdin(Stdio::null()).spawn() {
            Ok(process) => process,
            Err(_) => {
                println!("there is no {program}");
                std::fs::remove_dir_all(&directory).unwrap();
                return None;
            }
        };
        let mut real = Real { process, directory };
        let listens = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        while !listens() {
            let ended = real.process.try_wait().unwrap();
            assert!(ended.is_none(), "{program} has ended: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(real)
    }

    fn nbdkit(args: &[&str]) -> Option<Real> {
        // -f stays in the foreground, so that it is ours to end.
        Real::start("nbdkit", &[&["-f", "-U", "{}"], args].concat())
    }

    fn open(&self, export: &str, connections: usize) -> Result<Session> {
        let address = Address::Unix(Path::new(&self.directory).join("socket"));
        Wanted { address: &address, export, connections, patience: Duration::from_secs(60) }.open()
    }

    fn refusal(&self, export: &str) -> String {
        self.open(export, 1).err().expect("the server should refuse").to_string()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn nbdkit_grants_several_connections() {
    let Some(server) = Real::nbdkit(&["memory", "4M"]) else { return };
    let session = server.open("", 4).unwrap();
    assert_eq!(session.export.size, SIZE);
    assert!(session.export.flags.contains(TransmissionFlags::CAN_MULTI_CONN));
    assert_eq!(session.fds().len(), 4);
}

#[test]
fn block_sizes_are_heard() {
    let sizes = ["blocksize-minimum=4096", "blocksize-preferred=8192", "blocksize-maximum=65536"];
    let args = [&["--filter=blocksize-policy", "memory", "4M"], &sizes[..]].concat();
    let Some(server) = Real::nbdkit(&args) else { return };
    let sizes = server.open("", 1).unwrap().export.block_sizes.unwrap();
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (4096, 8192, 65536));
}

#[test]
fn a_server_that_is_not_fixed_is_understood() {
    // Neither fixed newstyle nor without the zeroes.
    let Some(server) = Real::nbdkit(&["--mask-handshake=0", "memory", "4M"]) else { return };
    assert_eq!(server.open("", 1).unwrap().export.size, SIZE);
}

#[test]
fn an_oldstyle_server_is_refused() {
    let Some(server) = Real::nbdkit(&["-o", "memory", "4M"]) else { return };
    assert!(server.refusal("").contains("oldstyle"));
}

#[test]
fn an_export_that_is_not_there_is_told() {
    let names = ["--filter=exportname", "memory", "4M", "exportname=disk", "exportname-strict=true"];
    let Some(server) = Real::nbdkit(&names) else { return };
    assert_eq!(server.open("disk", 1).unwrap().export.size, SIZE);
    assert!(server.refusal("none").contains("export \"none\": it has no such export"));
}

#[test]
fn qemu_nbd_is_understood() {
    let image = directory().join("image");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let path = image.to_string_lossy().into_owned();
    let Some(server) = Real::start("qemu-nbd", &["-t", "-f", "raw", "-r", "-x", "disk", "-k", "{}", &path])
    else {
        return;
    };
    let export = server.open("disk", 1).unwrap().export;
    assert_eq!(export.size, SIZE);
    assert!(export.flags.contains(TransmissionFlags::READ_ONLY));
    assert!(server.refusal("none").contains("no such export"));
    std::fs::remove_dir_all(image.parent().unwrap()).unwrap();
}
