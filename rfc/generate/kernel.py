# SPDX-License-Identifier: GPL-2.0
"""Changes of the kernel's own files: a line or two, each at its place."""

import re

from series import Wrong


def declare_module(path, name, config):
    """`pub mod name;` in a file of the kernel crate."""
    text = path.read_text()
    if re.search(rf"^pub mod {name};", text, re.MULTILINE):
        return
    new = (f"#[cfg({config})]\n" if config else "") + f"pub mod {name};\n"
    at = None
    for match in re.finditer(r"^(?:#\[[^\n]*\]\n)*(?:pub )?mod (\w+);\n", text, re.MULTILINE):
        if match[1] > name:
            at = match.start()
            break
        at = match.end()
    if at is None:
        # The first one: behind what the file says of itself.
        docs = list(re.finditer(r"^//![^\n]*\n", text, re.MULTILINE))
        at = docs[-1].end()
        new = "\n" + new
    path.write_text(text[:at] + new + text[at:])


def insert(path, line, new):
    """Adds `new` behind the only line that is `line`."""
    text = path.read_text()
    lines = text.splitlines()
    places = [number for number, found in enumerate(lines) if " ".join(found.split()) == " ".join(line.split())]
    if len(places) != 1:
        raise Wrong(f"{path}: `{line}` stands there {len(places)} times, not once")
    lines[places[0] + 1:places[0] + 1] = new.splitlines()
    path.write_text("\n".join(lines) + "\n")


def replaced(name, text, old, new):
    """`text` with `new` in the place of `old`, which must be there once."""
    if text.count(old) != 1:
        raise Wrong(f"{name}: `{old}` stands there {text.count(old)} times, not once")
    return text.replace(old, new)


def add_maintainers(tree, entry):
    """An entry of MAINTAINERS, where its title belongs."""
    path = tree / "MAINTAINERS"
    text = path.read_text()
    title = entry.splitlines()[0]
    # The list begins with `3C59X`; entries are apart by an empty line.
    start = text.index("\n3C59X NETWORK DRIVER\n")
    for match in re.finditer(r"\n\n([0-9A-Z][^\n]*)\n", text[start:]):
        if match[1].upper() > title.upper() and match[1] != "THE REST":
            at = start + match.start() + 2
            path.write_text(text[:at] + entry + "\n" + text[at:])
            return
    raise Wrong(f"MAINTAINERS has no place for {title}")
