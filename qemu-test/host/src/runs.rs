// SPDX-License-Identifier: GPL-2.0
//! Folders of logs, one a boot, numbered; old ones are removed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// So many are kept.
const KEEP: usize = 20;

/// Makes the next folder, `parent/NNNN-name`.
pub fn next(parent: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    let mut old: Vec<(u32, PathBuf)> = fs::read_dir(parent)?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.split('-').next()?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    old.sort();
    let mut number = old.last().map_or(1, |(number, _)| number + 1);
    for (_, path) in old.iter().rev().skip(KEEP - 1) {
        fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
    }
    loop {
        let path = parent.join(format!("{number:04}-{name}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            // Somebody else's, a moment ago.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_and_old_runs_go() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..=25 {
            let path = next(dir.path(), "test").unwrap();
            assert_eq!(path, dir.path().join(format!("{number:04}-test")));
        }
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, KEEP);
        assert!(!dir.path().join("0005-test").exists() && dir.path().join("0006-test").exists());
    }
}
