"""The command: `python -m bigsmall_rs COMMAND`; `--help` names the commands."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import bigsmall_rs


def _size(n: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} B"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bigsmall_rs",
        description="Lossless compression of neural-network weights: every bit back.",
    )
    parser.add_argument("--version", action="version", version=bigsmall_rs.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    compress = commands.add_parser("compress", help="compress a safetensors file or a model folder")
    restore = commands.add_parser("restore", help="restore the identical file or folder")
    verify = commands.add_parser("verify", help="check every byte")
    inspect = commands.add_parser("inspect", help="show what is in a shard or folder of shards")
    transcode = commands.add_parser("transcode", help="rewrite a shard in another encoding")
    rebase = commands.add_parser("rebase", help="rewrite a shard as differences from another base")
    estimate = commands.add_parser("estimate", help="what compress would make, from samples")
    index = commands.add_parser("index", help="make one model from shards of several machines")
    for command in (compress, restore, verify, inspect, transcode, rebase, estimate, index):
        command.add_argument("input")
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (compress, transcode, rebase, estimate):
        command.add_argument("--encoding", choices=["ans", "raw", "tbe3", "tbe4"], default="ans")
        command.add_argument("--level", choices=["fast", "default", "small"], default="default")
    rebase.add_argument("--onto", required=True, help="the new base")
    for command in (compress, restore, transcode, rebase):
        command.add_argument("-o", "--output", required=True)
    index.add_argument("--original", help="the folder that the shards were made from")
    for command in (compress, restore, transcode, rebase, index):
        command.add_argument(
            "--force", action="store_true", dest="replace", help="replace what exists"
        )
    for command in (compress, verify, transcode, rebase):
        command.add_argument("--md5", action="store_true", help="MD5 of every tensor")
    for command in (restore, verify, transcode, rebase):
        command.add_argument("--max-expansion", type=int, help="refuse a shard that grows so much")
    restore.add_argument("--ignore-free-space", action="store_true", help="begin without enough")
    for command in (compress, restore, verify, transcode, rebase):
        command.add_argument("--base", action="append", default=[], help="a base; more than once")
    for command in (compress, restore, verify, estimate, index):
        command.add_argument("--hidden", action="store_true", help="hidden files, too")
        command.add_argument("--max-files", type=int, help="the most files of a folder")
        command.add_argument("--max-depth", type=int, help="the most folders in one another")
    return parser


def _run(a: argparse.Namespace, bar: bool) -> Any:
    options = vars(a).copy()
    del options["json"]
    function = getattr(bigsmall_rs, options.pop("command"))
    paths = [options.pop(name) for name in ("input", "output") if name in options]
    if a.command not in ("inspect", "index"):  # which are quick
        options["progress"] = bar
    return function(*paths, **options)


def _show(command: str, report: Any, seconds: float) -> None:
    if command == "inspect":
        print(f"{'original':>12} {'stored':>12}  {'as':<5} {'dtype':<8} name, shape")
        for t in report["tensors"]:
            encoding = t["encoding"] if t["shares"] is None else f"as {t['shares']!a}"
            if t["base"] is not None and t["base"]["blocks"] == t["base"]["same_blocks"]:
                encoding = "base"
            sizes = f"{t['original_bytes']:>12} {t['compressed_bytes']:>12}"
            print(f"{sizes}  {encoding:<5} {t['dtype']:<8} {t['name']!a} {list(t['shape'])}")
        for base in (base for f in report["files"] for base in f["bases"]):
            print(f"base sha256 {base['sha256']} {base['hint']!a}")
    elif command != "estimate":
        for f in report["files"]:
            print(f"{f['name']!a}  sha256 {f['sha256']}")
            for name, md5 in f["md5"].items():
                print(f"  {name!a}  md5 {md5}")
        if report["left_out"]:
            names = ", ".join(f"{name!a}" for name in report["left_out"][:3])
            more = len(report["left_out"]) - 3
            names += f" and {more} more" if more > 0 else ""
            print(f"left out {names} (--hidden takes hidden files, but no .git)")
        for name, to in report["links_out"]:
            print(f"{name!a} is a link out of the folder, to {to!a}")
    original, compressed = _size(report["original_bytes"]), _size(report["compressed_bytes"])
    ratio = 100 * report["ratio"]
    if command == "estimate":
        print(f"{original} -> about {compressed}: {ratio:.1f} % in about {report['seconds']:.1f} s")
    else:
        print(f"{original} <-> {compressed}: {ratio:.2f} % in {seconds:.2f} s")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    a = _parser().parse_args(arguments)
    begin = time.perf_counter()
    try:
        report = _run(a, sys.stderr.isatty() and not a.json)
    except bigsmall_rs.BigsmallError as error:
        hint = " (--force replaces it)" if error.rule == "OutputExists" else ""
        print(f"bigsmall: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bigsmall: interrupted", file=sys.stderr)
        return 130
    try:
        if a.json:
            print(json.dumps(report))
        else:
            _show(a.command, report, time.perf_counter() - begin)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough, as `head` does. Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
