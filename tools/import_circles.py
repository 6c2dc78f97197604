#!/usr/bin/env python3
"""Fails if source files of a crate import each other in a circle.

    tools/import_circles.py [CRATE_FOLDER ...]      default: the five published crates

A file A imports a file B if A names an item or a module of B by a path: in a `use`, or in the
middle of the code (`crate::a::f()`, `super::f()`, `child::f()`). Names that a module passes on
with `use` are followed to the file that defines them, so `use crate::Shard` is an import of the
file with `struct Shard`, not of `lib.rs`.

These do not count:
- `mod name;`: a parent has to name its children.
- Files that only declare and pass on (`mod`, `use`): they have no code that could need anything, so
  they import nothing and are not imported.
- Comments, strings, and everything after `#[cfg(test)]`.
- Macros by name, and methods: they name no file.
"""

import re
import sys
from pathlib import Path

CRATES = ["bigsmall-format", "bigsmall-codec", "bigsmall-tbe", "bigsmall-gpu", "bigsmall-io"]
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^\n]{1,8}?|[^'\\])'"""
    r"""|'\w+|r\#\w+|\$?\w+|::|\S""",
    re.S,
)
WORD = re.compile(r"\$?\w+\Z")


def tokens(text):
    """The tokens of `text`, without comments, strings and characters."""
    found = []
    for match in TOKEN.finditer(text):
        token = match.group()
        if token.startswith(("//", "/*")):
            continue
        if token[-1] in "\"'" and len(token) > 1:
            token = '""'
        found.append(token)
    return found


def closing(toks, at):
    """The position after the bracket that closes the one at `at`."""
    depth = 0
    for i in range(at, len(toks)):
        if toks[i] in "([{":
            depth += 1
        elif toks[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
    return len(toks)


def end_of_item(toks, at):
    """The position after the item that begins at `at`."""
    while at < len(toks):
        if toks[at] == ";":
            return at + 1
        if toks[at] == "{":
            return closing(toks, at)
        at = closing(toks, at) if toks[at] in "([" else at + 1
    return at


def use_tree(toks, prefix=()):
    """(name, path) for each name that a `use` imports; the name is `*` for all."""
    path, i = list(prefix), 0
    while i < len(toks):
        if toks[i] == "{":
            inner, part, depth = toks[i + 1 : closing(toks, i) - 1], [], 0
            for token in [*inner, ","]:
                depth += (token == "{") - (token == "}")
                if token == "," and depth == 0:
                    yield from use_tree(part, path)
                    part = []
                else:
                    part.append(token)
            return
        if toks[i] == "as":
            yield toks[i + 1], tuple(path)
            return
        if toks[i] == "*":
            yield "*", tuple(path)
            return
        if toks[i] != "::" and not (toks[i] == "self" and path):
            path.append(toks[i])
        i += 1
    if path:
        yield path[-1], tuple(path)


class Module:
    """A module: the names that it imports, its children, and the paths in its code."""

    def __init__(self, path, file):
        self.path, self.file = path, file
        self.uses, self.globs, self.children, self.mentions = {}, [], set(), []
        self.items = set()


class Crate:
    def __init__(self, root):
        self.modules, self.code = {}, set()
        self.read((), root, root.parent)

    def read(self, path, file, folder):
        module = self.modules[path] = Module(path, file)
        self.scan(module, tokens(file.read_text()), folder)

    def scan(self, module, toks, folder):
        i = 0
        while i < len(toks):
            skip = False
            begin = i
            while i < len(toks) and toks[i] == "#":
                i += 1 + (toks[i + 1] == "!")
                end = closing(toks, i)
                skip |= toks[i : i + 5] == ["[", "cfg", "(", "test", ")"]
                skip |= toks[i : i + 5] == ["[", "cfg", "(", "all", "("] and "test" in toks[i:end]
                i = end
            if skip:
                i = end_of_item(toks, i)
                continue
            if i < len(toks) and toks[i] == "pub":
                i += 1
                if i < len(toks) and toks[i] == "(":
                    i = closing(toks, i)
            if i >= len(toks):
                break
            end = end_of_item(toks, i)
            word = toks[i]
            if word == "use":
                for name, target in use_tree(toks[i + 1 : toks.index(";", i)]):
                    if name == "*":
                        module.globs.append(target)
                    else:
                        module.uses.setdefault(name, target)
                end = toks.index(";", i) + 1
            elif word == "mod":
                name, child = toks[i + 1], (*module.path, toks[i + 1])
                module.children.add(name)
                if toks[i + 2] == "{":
                    inner = self.modules[child] = Module(child, module.file)
                    self.scan(inner, toks[i + 3 : end - 1], folder / name)
                else:
                    files = [folder / f"{name}.rs", folder / name / "mod.rs"]
                    file = next((f for f in files if f.is_file()), None)
                    if file is None:
                        sys.exit(f"{module.file}: there is no file for `mod {name}`")
                    self.read(child, file, folder / name)
            elif word == ";":
                end = i + 1
            else:
                self.code.add(module.file)
                self.mention(module, toks[begin:end])
                end = max(end, i + 1)
                for a, b in zip(toks[i:end], toks[i + 1 : end]):
                    kinds = ("fn", "struct", "enum", "trait", "type", "const", "static", "union")
                    if a in kinds and WORD.match(b):
                        module.items.add(b)
                        break
            i = end

    def mention(self, module, toks):
        """Records every path of two or more parts, also in a `use` inside a function."""
        i = 0
        while i < len(toks):
            if toks[i] == "use" and toks[i + 1] != "<":
                end = toks.index(";", i)
                module.mentions += [path for _, path in use_tree(toks[i + 1 : end])]
                i = end
            elif WORD.match(toks[i]) and toks[i + 1 : i + 2] == ["::"] and toks[i - 1] != "::":
                path = [toks[i]]
                while toks[i + 1 : i + 2] == ["::"] and WORD.match(toks[i + 2]):
                    path.append(toks[i + 2])
                    i += 2
                module.mentions.append(tuple(path))
                i += 1
            else:
                i += 1

    def absolute(self, module, path):
        """The path from the crate's root, or None for another crate's."""
        here = list(module.path)
        first, rest = path[0], list(path[1:])
        if first in ("crate", "$crate"):
            return rest
        if first == "self":
            return here + rest
        if first == "super":
            here.pop()
            while rest and rest[0] == "super":
                here.pop()
                rest.pop(0)
            return here + rest
        if first in module.children or first in module.uses:
            return here + [first] + rest
        return None

    def defined_in(self, path, seen=()):
        """The file that defines what `path` names, counted from the root."""
        module = self.modules[()]
        for i, name in enumerate(path):
            if name in module.children:
                module = self.modules[(*module.path, name)]
                continue
            if (module.path, name) in seen:
                return module.file
            seen = (*seen, (module.path, name))
            if name in module.items:
                return module.file
            if name in module.uses:
                target = self.absolute(module, module.uses[name])
                return target and self.defined_in(target + path[i + 1 :], seen)
            for glob in module.globs:
                target = self.absolute(module, glob)
                found = target is not None and self.defined_in(target + path[i:], seen)
                if found and found != module.file and found in self.code:
                    return found
            return module.file
        return module.file

    def imports(self):
        edges = {}
        for module in self.modules.values():
            paths = [*module.uses.values(), *module.globs, *module.mentions]
            for path in paths:
                full = self.absolute(module, path)
                if full is None:
                    continue
                target = self.defined_in(full)
                if target and target != module.file and {target, module.file} <= self.code:
                    edges.setdefault(module.file, {})[target] = "::".join(path)
        return edges


def circles(edges):
    """The sets of files that reach each other (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def main():
    top = Path(__file__).resolve().parent.parent
    folders = [Path(a) for a in sys.argv[1:]] or [top / name for name in CRATES]
    n_files = n_circles = 0
    for folder in folders:
        roots = [folder / "src" / "lib.rs", *sorted(folder.glob("src/bin/*/main.rs"))]
        if not roots[0].is_file():
            sys.exit(f"{folder}: there is no src/lib.rs")
        for root in roots:
            crate = Crate(root)
            edges = crate.imports()
            n_files += len({m.file for m in crate.modules.values()})
            for circle in circles(edges):
                n_circles += 1
                print(f"{folder.name}: {len(circle)} files in a circle")
                for file in circle:
                    for other in sorted(set(edges[file]) & set(circle)):
                        src = folder / "src"
                        names = file.relative_to(src), other.relative_to(src)
                        print(f"    {names[0]} -> {names[1]}  ({edges[file][other]})")
    print(f"{n_files} files, {n_circles} circles")
    sys.exit(1 if n_circles else 0)


main()
