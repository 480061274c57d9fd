# SPDX-License-Identifier: GPL-2.0
"""The table of patches, rfc/series, which explains itself."""

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path


class Wrong(Exception):
    """Something does not fit; said to whoever called."""


@dataclass
class Rust:
    """Rust sources, a file or all below a folder, and where they go."""

    source: str
    target: str
    config: str | None


@dataclass
class Helpers:
    """Helpers whose names match go to a file of rust/helpers/."""

    names: str
    target: str
    headers: list
    config: str | None


@dataclass
class Patch:
    """A patch: what it adds, and what it changes of the kernel's own files."""

    name: str
    rust: list = field(default_factory=list)
    helpers: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    copies: list = field(default_factory=list)
    inserts: list = field(default_factory=list)
    appends: list = field(default_factory=list)
    edits: list = field(default_factory=list)
    maintainers: bool = False


@dataclass
class Series:
    """All patches in order, and what belongs to none."""

    patches: list = field(default_factory=list)
    kernel_has: dict = field(default_factory=dict)
    stands_for: dict = field(default_factory=dict)
    left_out: list = field(default_factory=list)

    def rust_row(self, source):
        """The row that says most precisely where a source file goes, and its patch."""
        best = None
        for patch in self.patches:
            for row in patch.rust:
                if source == row.source or source.startswith(row.source + "/"):
                    if best is None or len(row.source) > len(best[1].source):
                        best = (patch, row)
        return best

    def is_left_out(self, source):
        """Whether the table says that a file is in no patch."""
        return any(fnmatch.fnmatch(source, pattern) for pattern in self.left_out)


def read(path):
    """Reads the table."""
    series = Series()
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            row(series, words[0], words[1:], line.strip())
        except (IndexError, ValueError) as error:
            raise Wrong(f"{path}:{number}: not understood: {line.strip()}") from error
    return series


def unescaped(text):
    """Text with its newlines, tabs and leading spaces."""
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\\s", " ")


def split_config(words):
    """Words with the CONFIG_ option taken out that they may name."""
    config = [word for word in words if word.startswith("CONFIG_")]
    return [word for word in words if word not in config], config[0] if config else None


def row(series, verb, words, line):
    """One line of the table."""
    if verb == "patch":
        (name,) = words
        series.patches.append(Patch(name))
        return
    if verb == "kernel-has":
        source, target = words
        series.kernel_has[source] = target
        return
    if verb == "stands-for":
        source, target = words
        series.stands_for[source] = target
        series.left_out.append(source + "/*")
        return
    if verb == "left-out":
        series.left_out += words
        return
    patch = series.patches[-1]
    if verb == "rust":
        (source, target), config = split_config(words)
        patch.rust.append(Rust(source, target, config))
    elif verb == "helpers":
        (names, target, *headers), config = split_config(words)
        patch.helpers.append(Helpers(names, target, headers, config))
    elif verb == "headers":
        patch.headers += words
    elif verb == "copy":
        source, target = words
        patch.copies.append((source, target))
    elif verb == "append":
        target, source = words
        patch.appends.append((target, source))
    elif verb == "after":
        target, place, text = [part.strip() for part in line[len(verb):].split(" | ")]
        patch.inserts.append((target, place, unescaped(text)))
    elif verb == "edit":
        target, old, new = [part.strip() for part in line[len(verb):].split(" | ")]
        patch.edits.append((target, unescaped(old), unescaped(new)))
    elif verb == "maintainers":
        patch.maintainers = True
    else:
        raise ValueError(verb)
