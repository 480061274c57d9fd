# SPDX-License-Identifier: GPL-2.0
"""`use` declarations of Rust: read into paths, and written as the kernel wants them, an item a line."""

import re


def parse(text):
    """The paths of what stands between `use` and `;`, each a list of names, with its alias or None."""
    tokens = re.findall(r"\w+|::|[{},*]", re.sub(r"//[^\n]*", "", text))
    position = 0

    def tree(prefix):
        nonlocal position
        if tokens[position] == "{":
            position += 1
            leaves = []
            while tokens[position] != "}":
                leaves += tree(prefix)
                if tokens[position] == ",":
                    position += 1
            position += 1
            return leaves
        path = prefix + [tokens[position]]
        position += 1
        if position < len(tokens) and tokens[position] == "::":
            position += 1
            return tree(path)
        alias = None
        if position < len(tokens) and tokens[position] == "as":
            alias = tokens[position + 1]
            position += 2
        return [(path, alias)]

    leaves = tree([])
    if position != len(tokens):
        raise ValueError(f"this `use` was not understood: {text}")
    return leaves


def rank(name):
    """Where rustfmt puts a name: `self`, modules and functions, types, constants, and the glob last."""
    if name == "self":
        kind = 0
    elif name == "*":
        kind = 4
    elif name.isupper() and len(name) > 1:
        kind = 3
    else:
        kind = 2 if name[0].isupper() else 1
    return kind, name


def lines(leaves, indent):
    """The lines of a list of paths, which share their beginning, up to where they part."""
    groups = {}
    for path, alias in leaves:
        groups.setdefault(path[0], []).append((path[1:], alias))
    items = []
    for name in sorted(groups, key=rank):
        below = [leaf for leaf in groups[name] if leaf[0]]
        itself = [alias for rest, alias in groups[name] if not rest]
        for alias in sorted(set(itself), key=str):
            word = f"{name} as {alias}" if alias else name
            if below and name != "self":
                below.append((["self"], alias))
            else:
                items.append([word])
        if not below:
            continue
        inner = lines(below, indent + 1)
        if len(inner) == 1:
            items.append([f"{name}::{inner[0][0]}"] + inner[0][1:])
        else:
            items.append([f"{name}::{{", *braced(inner, indent + 1), "    " * indent + "}"])
    return items


def braced(items, indent):
    """Items between braces; the last one is marked, so that rustfmt leaves each on a line of its own."""
    result = []
    for number, item in enumerate(items):
        item = ["    " * indent + item[0]] + item[1:]
        item[-1] += ", //" if number == len(items) - 1 else ","
        result += item
    return result


def write(leaves, visibility=""):
    """Declarations of all `leaves`, one for each crate or other beginning that they have."""
    unique = sorted(set((tuple(path), alias) for path, alias in leaves), key=str)
    found = lines([(list(path), alias) for path, alias in unique], 0)
    return ["\n".join([f"{visibility}use {item[0]}"] + item[1:]) + ";" for item in found]
