# SPDX-License-Identifier: GPL-2.0
"""Helpers and constants of bindings/, as rust/helpers/ and rust/bindings/bindings_helper.h have them."""

import fnmatch
import re

from series import Wrong

NAME = re.compile(r"\brnbd_helper_(\w+)\(")


class Helpers:
    """The blocks of bindings/helpers.c, each with the helpers in it."""

    def __init__(self, text):
        self.blocks = []
        block, depth = [], 0
        # What comes before the last include is of the file as a whole.
        for line in re.split(r"^#include .*\n", text, flags=re.MULTILINE)[-1].splitlines():
            depth += line.startswith("#if")
            if not line and not block:
                continue
            block.append(line)
            depth -= line.startswith("#endif")
            if depth == 0 and (line.startswith("}") or line.startswith("#endif")):
                names = {match[1] for line in block for match in NAME.finditer(line) if line[0].isalpha()}
                if names:
                    self.blocks.append((names, "\n".join(block)))
                    block = []
        self.left = {name for names, _ in self.blocks for name in names}

    def take(self, used):
        """The blocks with helpers that are used, and in no patch so far: names and text."""
        for names, text in self.blocks:
            if names & used & self.left:
                self.left -= names
                yield names, text


def in_tree(block):
    """A block as rust/helpers/ has it."""
    block = re.sub(r"^(?=[a-z][\w \*]*\brnbd_helper_)", "__rust_helper ", block, flags=re.MULTILINE)
    block = block.replace("rnbd_helper_", "rust_helper_").replace("rnbd_", "rust_")
    return "\n".join(wrap(line) for line in block.splitlines())


def wrap(line):
    """A declaration that has become too long, as the kernel breaks one."""
    if len(line) <= 100 or not line.startswith("__rust_helper "):
        return line
    return line.replace("__rust_helper ", "__rust_helper\n", 1)


def add(tree, patch, blocks):
    """Adds blocks to the files that the patch's table names for them."""
    for names, block in blocks:
        if all(re.search(rf"\brust_helper_{name}\(", text) for name in names for text in [existing(tree)]):
            continue
        name = min(names)
        row = next((row for row in patch.helpers if fnmatch.fnmatch(name, row.names)), None)
        if not row:
            raise Wrong(f"the helper {name} is used by the patch {patch.name}, which has no `helpers` line for it")
        path = tree / row.target
        if path.exists():
            text = path.read_text()
        else:
            body = f"\n#ifdef {row.config}\n\n#endif\n" if row.config else ""
            text = "// SPDX-License-Identifier: GPL-2.0\n" + body
            include(tree / "rust/helpers/helpers.c", f'"{row.target.removeprefix("rust/helpers/")}"')
        for header in row.headers:
            text = with_include(text, f"<{header}>")
        block = in_tree(block)
        if text.rstrip().endswith("#endif"):
            head, _, tail = text.rpartition("#endif")
            text = f"{head.rstrip()}\n\n{block}\n\n#endif{tail}"
        else:
            text = f"{text.rstrip()}\n\n{block}\n"
        path.write_text(text)


def existing(tree):
    """All helpers that the kernel has."""
    return "\n".join(path.read_text() for path in sorted((tree / "rust/helpers").rglob("*.c")))


def with_include(text, header):
    """`text` with an `#include`, in its place among the others."""
    wanted = f"#include {header}"
    lines = text.splitlines()
    if wanted in lines:
        return text
    # The longest run of such includes, in which they are sorted.
    runs = [[]]
    for number, line in enumerate(lines):
        if line.startswith(f"#include {header[0]}"):
            runs[-1].append(number)
        elif runs[-1] and not line.startswith("#"):
            runs.append([])
    run = max(runs, key=len)
    at = max((number for number in run if lines[number] < wanted), default=run[0] - 1 if run else None)
    if at is None:
        # No include so far: behind the comment at the top.
        at = next(number for number, line in enumerate(lines) if line.startswith("//") or line.startswith(" */"))
        lines.insert(at + 1, "")
        at += 1
    lines.insert(at + 1, wanted)
    return "\n".join(lines) + "\n"


def include(path, header):
    """Adds an `#include` to a file."""
    path.write_text(with_include(path.read_text(), header))


class Constants:
    """The constants of bindings/bindings_helper.h."""

    def __init__(self, text):
        self.left = {}
        for match in re.finditer(r"^RNBD_CONST\((\w+), (\w+)\);", text, re.MULTILINE):
            self.left[match[2]] = (match[1], match[2])
        for match in re.finditer(r"^const (\w+) RNBD_CONST_(\w+) = (\w+);", text, re.MULTILINE):
            self.left[match[2]] = (match[1], match[3])

    def add(self, tree, used):
        """Adds those that are used, and not there so far, to the kernel's header, each beside what it resembles."""
        path = tree / "rust/bindings/bindings_helper.h"
        for name in [name for name in self.left if name in used]:
            kind, value = self.left.pop(name)
            lines = path.read_text().splitlines()
            have = {}
            for number, line in enumerate(lines):
                match = re.match(r"const \w+ RUST_CONST_HELPER_(\w+) = \w+;", line)
                if match:
                    have[match[1]] = number
            if name in have:
                continue
            likeness = {other: len(common(name, other)) for other in have if not other.startswith("VM_")}
            nearest = max(likeness, key=lambda other: (likeness[other], have[other]))
            if likeness[nearest] < 4:
                nearest = max((other for other in likeness if not other.startswith("XA_")), key=have.get)
            lines.insert(have[nearest] + 1, f"const {kind} RUST_CONST_HELPER_{name} = {value};")
            path.write_text("\n".join(lines) + "\n")


def common(one, other):
    """What two names begin with."""
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]
