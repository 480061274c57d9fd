# SPDX-License-Identifier: GPL-2.0
"""Rust sources as they are in the kernel's tree.

Out of the tree all is one crate, `crate::abstractions` among it, which uses the crate `kernel`. In the tree the
abstractions are part of `kernel`, and the driver is a crate of its own. So each path is looked up in the table.
"""

import re

import uses
from series import Wrong

KERNEL, DRIVER = "kernel", "driver"
PATH = re.compile(r"(?<![\w$:])(crate|kernel|super)((?:::\w+)+)")
MACRO_PATH = re.compile(r"\$crate((?:::\w+)+)")
USE = re.compile(r"^(?P<visibility>pub(?:\([a-z ]+\))? )?use (?P<tree>[^;]*);\n", re.MULTILINE)


def old_module(source):
    """Names of the module that a source file is here: abstractions/net/mod.rs is abstractions::net."""
    parts = source.removesuffix(".rs").split("/")
    if parts[-1] == "mod" or parts == ["rnbd"]:
        parts.pop()
    return parts


class Places:
    """Where each source file goes, and which module it is there."""

    def __init__(self, series, sources, driver):
        self.driver = driver
        self.modules = {}
        self.targets = {}
        self.sources = {}
        for source in sources:
            found = series.rust_row(source)
            if found:
                self.add(source, target_of(source, found[1]))
        for source, target in (series.kernel_has | series.stands_for).items():
            self.modules[tuple(old_module(source))] = self.new_module(target)

    def add(self, source, target):
        """A file goes there."""
        self.targets[source] = target
        self.modules[tuple(old_module(source))] = self.new_module(target)
        self.sources[tuple(old_module(source))] = source

    def source_of(self, names):
        """The file of the module in which `names` leads somewhere; none, if it is the kernel's own."""
        beginnings = (tuple(names[:length]) for length in range(len(names), -1, -1))
        return self.sources.get(next(module for module in beginnings if module in self.modules))

    def new_module(self, target):
        """Crate and names of the module that a file of the kernel's tree is."""
        for crate, folder, roots in ((KERNEL, "rust/kernel/", ("lib",)), (DRIVER, self.driver + "/", ("rnbd_main",))):
            if target.startswith(folder):
                parts = target.removeprefix(folder).removesuffix(".rs").split("/")
                if parts[-1] == "mod" or parts in [[root] for root in roots]:
                    parts.pop()
                return crate, parts
        raise Wrong(f"{target} is of no crate")

    def look_up(self, names):
        """Crate and path in the tree of what is called `names` here."""
        for length in range(len(names), -1, -1):
            module = self.modules.get(tuple(names[:length]))
            if module:
                return module[0], module[1] + names[length:]
        raise Wrong(f"crate::{'::'.join(names)} is in no patch")

    def folder(self, names):
        """Where in the tree what is in abstractions/ here is."""
        crate, found = self.look_up(["abstractions"] + names)
        return "/".join([self.driver if crate == DRIVER else "rust/kernel"] + found)


def target_of(source, found):
    """Where the table's row puts a file. A folder's mod.rs goes beside the folder, as the kernel has it."""
    if source == found.source:
        return found.target
    rest = source.removeprefix(found.source + "/")
    target = f"{found.target}/{rest}"
    return target.removesuffix("/mod.rs") + ".rs" if rest.endswith("mod.rs") else target


class Translator:
    """Turns one source file into what it is in the tree."""

    def __init__(self, places, source):
        self.places = places
        self.source = source
        self.old = old_module(source)
        self.crate, self.new = places.new_module(places.targets[source])
        # Files that this one cannot do without.
        self.needs = set()

    def look_up(self, names, needed):
        """Crate and path of what is called `names` here."""
        if needed:
            self.needs.add(self.places.source_of(names))
        return self.places.look_up(names)

    def path(self, root, names, needed=True):
        """A path, as the tree has it: root and names."""
        if root == "kernel":
            return ("crate" if self.crate == KERNEL else root), names
        if root == "super":
            count = 1
            while names and names[0] == "super":
                count, names = count + 1, names[1:]
            if count > len(self.old):
                return "::".join(["super"] * count), names
            crate, found = self.look_up(self.old[:-count] + names, needed)
            if crate == self.crate and found == self.new[: len(self.new) - count] + names:
                return "::".join(["super"] * count), names
        elif names[:1] == ["bindings"]:
            # Only in the tree: `kernel::bindings` has what is in the project's own.
            return ("crate" if self.crate == KERNEL else "kernel"), names
        else:
            crate, found = self.look_up(names, needed)
        if crate == self.crate:
            return "crate", found
        if self.crate == KERNEL:
            # A macro that is exported is at the root of either crate.
            if len(found) == 1:
                return "crate", found
            raise Wrong(f"{self.source}: the kernel crate would use crate::{'::'.join(names)} of the driver")
        return "kernel", found

    def leaf(self, leaf):
        """A path of a `use`."""
        path, alias = leaf
        if path == ["crate", "bindings"] and alias == "extra":
            alias = None
        if path[0] not in ("crate", "kernel", "super"):
            return path, alias
        root, names = self.path(path[0], path[1:])
        # A module that has another name in the tree keeps its own in the file.
        before, after = [[name for name in found if name != "self"][-1:] for found in (path[1:], names)]
        if before != after and before and not alias:
            alias = before[0]
        return root.split("::") + names, alias

    def uses(self, text):
        """All `use` declarations at the left margin; those without a visibility gathered where the first stands."""
        gathered = []
        for match in USE.finditer(text):
            if not match["visibility"]:
                gathered += [self.leaf(leaf) for leaf in uses.parse(match["tree"])]
        head = {"core": 0, "kernel": 1}
        declarations = uses.write(gathered)
        order = {}
        for declaration in declarations:
            order.setdefault(head.get(re.match(r"use (\w+)", declaration)[1], 2), []).append(declaration)
        block = "\n\n".join("\n".join(order[key]) for key in sorted(order)) + "\n"
        placed = False

        def put(match):
            nonlocal placed
            if match["visibility"]:
                leaves = [self.leaf(leaf) for leaf in uses.parse(match["tree"])]
                return "\n".join(uses.write(leaves, match["visibility"])) + "\n"
            first, placed = not placed, True
            return block if first else ""

        return USE.sub(put, text)

    def other(self, line, in_macro):
        """Paths in a line that is no `use`."""
        comment = line.lstrip().startswith("//")
        if comment:
            line = re.sub(r"\babstractions/([\w/]+)", lambda match: self.places.folder(match[1].split("/")), line)
        if in_macro and not comment and self.crate == KERNEL:
            line = re.sub(r"(?<![\w$:])kernel::", "$crate::", line)

            def macro(match):
                names = match[1].split("::")[1:]
                return match[0] if names[0] != "abstractions" else "$crate::" + "::".join(self.places.look_up(names)[1])

            return MACRO_PATH.sub(macro, line)

        def replace(match):
            root, names = match[1], match[2].split("::")[1:]
            if comment and root == "kernel":
                return match[0]
            root, names = self.path(root, names, not comment)
            return "::".join([root] + names)

        return PATH.sub(replace, line)

    def translate(self, text):
        """The whole file, not yet formatted."""
        result, in_macro, in_use = [], False, False
        for line in text.splitlines(keepends=True):
            if line.startswith("macro_rules! "):
                in_macro = True
            in_use = in_use or re.match(r"(pub(\([a-z ]+\))? )?use ", line) is not None
            if self.crate == KERNEL and not in_macro:
                line = line.replace("pub(crate)", "pub")
            result.append(line if in_use else self.other(line, in_macro))
            in_use = in_use and not line.rstrip().endswith(";")
            if line.startswith("}"):
                in_macro = False
        text = self.uses("".join(result))
        return fold(re.sub(r"\bextra::(rnbd_helper_)?", "bindings::", text))


def fold(text):
    """Comments of no more than 100 columns: words that are too many go to the next line. Tables stay as they are."""
    lines, result = text.splitlines(), []
    while lines:
        line = lines.pop(0)
        match = re.match(r"( *//[/!]? )( *(?:[*-] )?)", line)
        if len(line) <= 100 or not match or line[match.end():].startswith("|"):
            result.append(line)
            continue
        cut = line.rindex(" ", match.end(), 101)
        result.append(line[:cut])
        # Below an item of a list, its text stands where that of its first line does.
        margin = match[1] + " " * len(match[2])
        rest = margin + line[cut + 1:]
        if lines and re.match(re.escape(margin) + r"[^ *|#`-]", lines[0]):
            rest += " " + lines.pop(0)[len(margin):]
        lines.insert(0, rest)
    return "\n".join(result) + "\n"


def keep_children(text, is_there):
    """`text` without `mod name;` and `pub use name::...;` of modules that are not there (yet)."""
    lines, result = text.splitlines(keepends=True), []
    gone = set()
    for line in lines:
        match = re.match(r"(?:pub(?:\([a-z]+\))? )?mod (\w+);", line)
        if match and not is_there(match[1]):
            gone.add(match[1])
            while result and result[-1].strip() and not re.search(r"[;}]\n$", result[-1]):
                result.pop()
            continue
        result.append(line)
    text = "".join(result)
    for name in gone:
        text = re.sub(rf"^(#\[[^\n]*\]\n)*pub(\([a-z]+\))? use {name}::[^;]*;\n", "", text, flags=re.MULTILINE)
    return text
