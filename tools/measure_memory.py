#!/usr/bin/env python3
"""Prints the table of docs/reliability.md that says how much memory each command takes.

    cargo build -p bigsmall-io --features cli,hub
    python3 tools/measure_memory.py

The inputs are extreme files, made on the spot in a temporary folder (`--dir` says where): most of
their bytes are holes. Restoring the largest writes 8 GB; beside it is another file of 3 GB, which
`index` copies. Each cell is the peak of the resident memory of one run in MiB. A run that fails
shows its exit code.
"""

import argparse
import hashlib
import http.server
import json
import os
import shutil
import struct
import subprocess
import tempfile
import threading
import traceback

COMMANDS = ["compress", "restore", "verify", "inspect", "inspect --json", "inspect --html",
            "estimate", "transcode", "index --original"]
N_REMOTE = 2000


def entries(tensors):
    """The JSON of a header, piece by piece, from pairs of a name and a shape of U8."""
    at = 0
    for i, (name, shape) in enumerate(tensors):
        n = 1
        for dim in shape:
            n *= dim
        yield "%s%s:{\"dtype\":\"U8\",\"shape\":%s,\"data_offsets\":[%d,%d]}" % (
            "," if i else "{", json.dumps(name), json.dumps(shape,
                                                            separators=(",", ":")), at, at + n)
        at += n


def write_file(path, tensors, data=None, metadata=()):
    """A safetensors file of these tensors; the data are zeros, as a hole, unless given."""
    data_len = 0
    with open(path, "wb") as f:
        f.write(bytes(8))
        for entry in entries(tensors()):
            f.write(entry.encode())
        if metadata:
            f.write(b",\"__metadata__\":" + json.dumps(metadata).encode())
        f.write(b"}")
        header_len = f.tell() - 8
        f.write(b" " * (-header_len % 8))
        header_len = f.tell() - 8
        for _, shape in tensors():
            n = 1
            for dim in shape:
                n *= dim
            data_len += n
        if data is None:
            f.truncate(8 + header_len + data_len)
        else:
            for i, (_, shape) in enumerate(tensors()):
                f.write(data(i))
        f.seek(0)
        f.write(struct.pack("<Q", header_len))


def distinct(i):
    """Bytes that no other tensor has."""
    return struct.pack("<Q", i)


def shape_of_rank_64(i):
    """A shape with 64 dimensions, another one for each i."""
    return [1] * 60 + [1 + (i >> j & 1) for j in range(4)]


INPUTS = {
    "100,000 tensors": lambda path: write_file(
        path, lambda: ((f"layers.{i}.weight", [8]) for i in range(100_000)), distinct),
    "2^20 tensors": lambda path: write_file(
        path, lambda: ((f"t{i}", [8]) for i in range(1 << 20)), distinct),
    "2^20 equal tensors": lambda path: write_file(
        path, lambda: ((f"t{i}", [1]) for i in range(1 << 20))),
    "a header of 80 MB": lambda path: write_file(
        path, lambda: ((f"{i:0>60000}", [8]) for i in range(1_330)), distinct),
    "rank 64, 80 MB": lambda path: write_file(
        path, lambda: ((f"t{i}", shape_of_rank_64(i)) for i in range(400_000))),
    "long owner, 20,000 sharers": lambda path: write_file(
        path, lambda: (("n" * 65_536 if i == 0 else f"t{i}", [1]) for i in range(20_001))),
    "2^20 keys of metadata": lambda path: write_file(
        path, lambda: iter([("w", [8])]),
        metadata={f"{i:020}": f"{i:040}" for i in range(1 << 20)}),
    "8 GB in one tensor": lambda path: write_file(path, lambda: iter([("w", [8 << 30])])),
}


def forked(work):
    """Runs `work` in a process of its own, so that its memory is not counted as a command's."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("an input could not be made")


def peak(args, refused=False):
    """The peak of the resident memory of a command in MiB, or its exit code if that is wrong."""
    with open(os.devnull, "w") as nothing:
        process = subprocess.Popen(args, stdout=nothing, stderr=subprocess.PIPE)
        error = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if (process.returncode != 0) != refused:
        print(f"{' '.join(args)[:200]}: {process.returncode}: {error[:500]}", flush=True)
        return f"exit {process.returncode}"
    return f"{usage.ru_maxrss / 1024:.0f}"


def measure_file(command, name, make, folder):
    """The cells of one input, in the order of COMMANDS."""
    original, shards = os.path.join(folder, "original"), os.path.join(folder, "shards")
    os.mkdir(original)
    os.mkdir(shards)
    plain = os.path.join(original, "model.safetensors")
    shard = os.path.join(shards, "model.bs")
    out = os.path.join(folder, "out")
    forked(lambda: make(plain))
    runs = {
        "compress": ["compress", plain, "-o", shard],
        "restore": ["restore", shard, "-o", out],
        "verify": ["verify", shard],
        "inspect": ["inspect", shard],
        "inspect --json": ["inspect", shard, "--json"],
        "inspect --html": ["inspect", shard, "--html", out],
        "estimate": ["estimate", plain],
        "transcode": ["transcode", shard, "-o", out, "--encoding", "raw"],
        "index --original": ["index", shards, "--original", original],
    }
    cells = []
    for job in COMMANDS:
        cells.append(peak([command, *runs[job]]))
        if os.path.exists(out):
            os.remove(out)
    return cells


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and ranges of them."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            f = open(self.translate_path(self.path), "rb")
        except OSError:
            return self.send_error(404)
        with f:
            byte_len = f.seek(0, os.SEEK_END)
            wanted = self.headers.get("Range", "")
            status, first, last = 200, 0, byte_len - 1
            if wanted.startswith("bytes="):
                status = 206
                begin, end = wanted[6:].split("-")
                first = int(begin) if begin else max(0, byte_len - int(end))
                last = min(int(end), last) if begin and end else last
            f.seek(first)
            data = f.read(last + 1 - first)
        self.send_response(status)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", "\"x\"")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{byte_len}")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Hub(Ranges):
    """A Hub with one repository, o/n: the files of the current folder."""

    def do_GET(self):
        if not self.path.startswith("/api/"):
            self.path = self.path.split("/resolve/main/")[-1]
            return super().do_GET()
        files = [{"rfilename": name, "lfs": {"sha256": digest(name)}} for name in os.listdir()]
        body = json.dumps({"sha": "main", "siblings": files}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def digest(name):
    with open(name, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def measure_hub(command, folder):
    """The cells of a model of the Hub in one file."""
    repository, out = os.path.join(folder, "repository"), os.path.join(folder, "out")
    os.mkdir(repository)
    # What does not shrink.
    forked(lambda: write_file(os.path.join(repository, "model.safetensors"),
                              lambda: ((f"t{n}", [1 << 24]) for n in range(64)),
                              lambda _: os.urandom(1 << 24)))
    os.chdir(repository)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    os.environ["HF_HUB_CACHE"] = os.path.join(folder, "cache")
    runs = {
        "compress": ["compress", "hf://o/n", "-o", out],
        "estimate": ["estimate", "hf://o/n"],
    }
    cells = [peak([command, *runs[name]]) if name in runs else "" for name in COMMANDS]
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return cells


def measure_index(command, folder):
    """The cells of a folder whose index file is as long as it may be, and says too much."""
    original, shards = os.path.join(folder, "original"), os.path.join(folder, "shards")
    out = os.path.join(folder, "out")
    os.mkdir(original)
    os.mkdir(shards)
    plain = os.path.join(original, "model.safetensors")
    forked(lambda: write_file(plain, lambda: iter([("w", [8])])))
    shard = os.path.join(shards, "model.bs")
    subprocess.run([command, "compress", plain, "-o", shard], check=True,
                   stdout=subprocess.DEVNULL)

    def make(path, name):
        with open(path, "w") as f:
            f.write("{\"weight_map\":{\"w\":\"%s\"" % name)
            while f.tell() < 99_000_000:
                at = f.tell()
                f.write("".join(",\"%x\":\"%s\"" % (at + n, name) for n in range(10_000)))
            f.write("}}")

    forked(lambda: make(os.path.join(original, "model.safetensors.index.json"), "a.safetensors"))
    forked(lambda: make(os.path.join(shards, "model.bs.index.json"), "a.bs"))
    runs = {
        "compress": ["compress", original, "-o", out],
        "restore": ["restore", shards, "-o", out],
        "verify": ["verify", shards],
        "inspect": ["inspect", shards],
        "inspect --json": ["inspect", shards, "--json"],
    }
    return [peak([command, *runs[name]], refused=name != "compress") if name in runs else ""
            for name in COMMANDS]


def measure_remote(command, folder):
    """The cells of a model in many shards on a server."""
    original, shards = os.path.join(folder, "original"), os.path.join(folder, "shards")

    def make():
        os.mkdir(original)
        places = {}
        for n in range(N_REMOTE):
            name = f"model-{n + 1:05}-of-{N_REMOTE:05}.safetensors"
            places[f"t{n}"] = name
            # What does not shrink: every shard is longer than the part that opening reads.
            write_file(os.path.join(original, name), lambda: iter([(f"t{n}", [300_000])]),
                       lambda _: os.urandom(300_000))
        with open(os.path.join(original, "model.safetensors.index.json"), "w") as f:
            json.dump({"metadata": {}, "weight_map": places}, f)
        args = [command, "compress", original, "-o", shards]
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL)

    forked(make)
    os.chdir(shards)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    # A process of its own: a command's count begins with the memory of what started it.
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    url = f"http://127.0.0.1:{server.server_port}/model.bs.index.json"
    out = os.path.join(folder, "out")
    runs = {
        "restore": ["restore", url, "-o", out],
        "verify": ["verify", url],
        "inspect": ["inspect", url],
        "inspect --json": ["inspect", url, "--json"],
        "inspect --html": ["inspect", url, "--html", out],
        "index --original": ["index", shards, "--original", original],
    }
    cells = [peak([command, *runs[name]]) if name in runs else "" for name in COMMANDS]
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", default="target/debug/bigsmall")
    parser.add_argument("--dir", help="where to make the temporary folder")
    parser.add_argument("--only", help="only the inputs whose names contain this")
    args = parser.parse_args()
    command = os.path.abspath(args.command)
    print("| input |", " | ".join(f"`{name}`" for name in COMMANDS), "|")
    print("|---" * (len(COMMANDS) + 1) + "|", flush=True)
    remote = f"{N_REMOTE:,} remote shards"
    hub = "1 GB on the Hub"
    index = "an index file of 99 MB"
    for name in [*INPUTS, index, remote, hub]:
        if args.only and args.only not in name:
            continue
        folder = tempfile.mkdtemp(prefix="bigsmall-memory-", dir=args.dir)
        try:
            if name == remote:
                cells = measure_remote(command, folder)
            elif name == hub:
                cells = measure_hub(command, folder)
            elif name == index:
                cells = measure_index(command, folder)
            else:
                cells = measure_file(command, name, INPUTS[name], folder)
        finally:
            os.chdir("/")
            shutil.rmtree(folder)
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
