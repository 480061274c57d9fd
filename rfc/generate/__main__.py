# SPDX-License-Identifier: GPL-2.0
"""Makes commits of the project's sources in a kernel tree, as rfc/series says, and patches of them:

    python3 rfc/generate PROJECT TREE PATCHES NAME EMAIL DATE

TREE is a git tree of the kernel, with nothing changed. The patches go to the directory PATCHES, and are signed off by NAME
and EMAIL. They are of DATE (YYYY-MM-DD), so that the same sources give the same patches.
"""

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import helpers
import kernel
import rust
import series
from series import Wrong

# Where the crate of the driver is, and the text files that are as in the tree.
DRIVER = "drivers/block/rust_nbd"
ROOT = f"{DRIVER}/rnbd_main.rs"
SOURCES = ("abstractions", "bindings", "driver", "kunit", "protocol")


class Generator:
    """The state of the tree, patch by patch."""

    def __init__(self, project, tree, author, day):
        self.project, self.tree, self.author, self.day = project, tree, author, day
        self.series = series.read(project / "rfc/series")
        files = [path for folder in SOURCES for path in sorted((project / folder).rglob("*")) if path.is_file()]
        self.files = ["rnbd.rs"] + [str(path.relative_to(project)) for path in files]
        self.copied = {source for patch in self.series.patches for source, _ in patch.copies}
        self.sources = [file for file in self.files if file.endswith(".rs") and not self.series.is_left_out(file)
                        and file not in self.series.kernel_has]
        self.check()
        self.places = rust.Places(self.series, self.sources, DRIVER)
        self.helpers = helpers.Helpers((project / "bindings/helpers.c").read_text())
        self.constants = helpers.Constants((project / "bindings/bindings_helper.h").read_text())
        self.there = set()
        self.edits = {}

    def check(self):
        """Each file has its place."""
        lost = [file for file in self.files if not (
            self.series.is_left_out(file) or file in self.copied or file in self.series.kernel_has
            or self.series.rust_row(file) and file.endswith(".rs"))]
        for file in self.series.kernel_has:
            text = (self.project / file).read_text()
            code = re.sub(r"^(//.*|#!\[.*|pub\(crate\) mod \w+;)?\n", "", text, flags=re.MULTILINE)
            if code:
                raise Wrong(f"{file} holds more than a list of modules, but the table says `kernel-has`")
        if lost:
            raise Wrong(f"rfc/series has no patch for {', '.join(lost)}")

    def text_of(self, source):
        """A source, as it is in the tree by now."""
        target = self.places.targets[source]
        translator = rust.Translator(self.places, source)
        text = translator.translate((self.project / source).read_text())
        later = translator.needs - self.there - {None}
        # The root of a crate comes with the first patch that is built, and what is not built may refer to it.
        if later - {"rnbd.rs"}:
            raise Wrong(f"{source} uses {', '.join(sorted(later))}, which a later patch brings")
        folder = Path(target).parent if target == ROOT else Path(target.removesuffix(".rs"))
        there = {self.places.targets[file] for file in self.there}
        text = rust.keep_children(text, lambda name: f"{folder}/{name}.rs" in there)
        for old, new in self.edits.get(target, []):
            text = kernel.replaced(target, text, old, new)
        return text

    def add_rust(self, patch):
        """The patch's Rust files, and the lines that declare them as modules."""
        new = [source for source in self.sources if self.series.rust_row(source)[0] is patch]
        self.there |= set(new)
        by_target = {self.places.targets[source]: source for source in self.sources}
        pending = list(new)
        for source in pending:
            parent = self.parent(self.places.targets[source])
            if parent in by_target:
                # What declares a module changes with it; but the root of the driver's crate comes with the driver.
                if by_target[parent] not in pending and (by_target[parent] in self.there or parent != ROOT):
                    pending.append(by_target[parent])
                    self.there.add(by_target[parent])
            elif parent:
                kernel.declare_module(self.tree / parent, Path(self.places.targets[source]).stem,
                                      self.series.rust_row(source)[1].config)
        for source in pending:
            path = self.tree / self.places.targets[source]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text_of(source))
        return new, [self.places.targets[source] for source in pending]

    def parent(self, target):
        """The file that declares the module `target`."""
        folder = Path(target).parent
        if str(folder) == "rust/kernel":
            return "rust/kernel/lib.rs"
        if str(folder) == DRIVER:
            return None if target == ROOT else ROOT
        inside = f"{folder}/mod.rs"
        return inside if (self.tree / inside).exists() else f"{folder}.rs"

    def add_c(self, patch, new):
        """Helpers and constants that the patch's Rust files are the first to use."""
        text = "\n".join((self.project / source).read_text() for source in new)
        used = set(re.findall(r"\bextra::(?:rnbd_helper_)?(\w+)", text))
        helpers.add(self.tree, patch, self.helpers.take(used))
        self.constants.add(self.tree, used)
        for header in patch.headers:
            helpers.include(self.tree / "rust/bindings/bindings_helper.h", f"<{header}>")

    def apply(self, patch):
        """Makes a patch's commit."""
        for target, old, text in patch.edits:
            self.edits.setdefault(target, []).append((old, text))
        new, changed = self.add_rust(patch)
        self.add_c(patch, new)
        for source, target in patch.copies:
            for path in self.below(source):
                to = self.tree / target
                to = to if path == self.project / source else to / path.relative_to(self.project / source)
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_text(self.filled_in(path.read_text()))
        for target, line, text in patch.inserts:
            kernel.insert(self.tree / target, line, text)
        for target, source in patch.appends:
            with (self.tree / target).open("a") as file:
                file.write((self.project / source).read_text())
        if patch.maintainers:
            kernel.add_maintainers(self.tree, self.filled_in((self.project / "rfc/MAINTAINERS").read_text()))
        if changed:
            self.run("rustfmt", "--edition", "2021", "--config-path", ".rustfmt.toml", *changed)
        self.commit(patch)

    def filled_in(self, text):
        """A text with what is not known before."""
        version, level, sub = (
            re.search(rf"^{name} = (\d+)$", (self.tree / "Makefile").read_text(), re.MULTILINE)[1]
            for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
        number = {patch.name: str(index) for index, patch in enumerate(self.series.patches, 1)}
        values = {"AUTHOR": f"{self.author[0]} <{self.author[1]}>", "MONTH": f"{self.day:%B %Y}",
                  "VERSION": f"{version}.{level}.{sub}", "NEXT_VERSION": f"{version}.{int(level) + 1}",
                  "LAST_ABSTRACTION": str(int(number["protocol"]) - 1), "DOCUMENTATION": number["documentation"]}
        return re.sub(r"@(\w+)@", lambda match: values.get(match[1], match[0]), text)

    def below(self, source):
        """A file, or all below a folder."""
        path = self.project / source
        return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]

    def commit(self, patch):
        """Commits all that has changed."""
        message = self.project / "rfc/messages" / patch.name
        if not message.is_file():
            raise Wrong(f"the patch {patch.name} has no message: {message}")
        self.run("git", "add", "--all", "--force", ".")
        if not subprocess.run(["git", "diff", "--cached", "--quiet"], cwd=self.tree, check=False).returncode:
            raise Wrong(f"the patch {patch.name} changes nothing")
        self.run("git", "commit", "--quiet", "--signoff", "--file", str(message))
        print(f"{patch.name}: {self.run('git', 'diff', '--shortstat', 'HEAD^').strip()}", flush=True)

    def run(self, *command):
        """Runs a program in the tree, and returns what it printed."""
        result = subprocess.run(command, cwd=self.tree, check=False, text=True, stdout=subprocess.PIPE, env=self.environment())
        if result.returncode:
            raise Wrong(f"{' '.join(command[:3])}: exit status {result.returncode}")
        return result.stdout

    def environment(self):
        """Who commits."""
        name, email = self.author
        who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
               for what, value in (("NAME", name), ("EMAIL", email), ("DATE", f"{self.day}T00:00:00Z"))}
        return os.environ | who

    def write(self, patches):
        """Writes the commits as patches, with a cover letter."""
        self.run("git", "format-patch", "--quiet", "--rfc", "--cover-letter", "--output-directory", str(patches),
                 f"HEAD~{len(self.series.patches)}")
        letter = patches / "0000-cover-letter.patch"
        subject, _, body = self.filled_in((self.project / "rfc/messages/cover").read_text()).partition("\n\n")
        text = letter.read_text().replace("*** SUBJECT HERE ***", subject)
        letter.write_text(text.replace("*** BLURB HERE ***", body.rstrip()))

    def all(self):
        """All commits."""
        for patch in self.series.patches:
            self.apply(patch)
        if self.helpers.left:
            raise Wrong(f"no patch uses the helpers {', '.join(sorted(self.helpers.left))}")
        if self.constants.left:
            raise Wrong(f"no patch uses the constants {', '.join(sorted(self.constants.left))}")


def main():
    """Reads the command line."""
    project, tree, patches, name, email, day = sys.argv[1:]
    try:
        generator = Generator(Path(project), Path(tree), (name, email), date.fromisoformat(day))
        generator.all()
        generator.write(Path(patches))
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
