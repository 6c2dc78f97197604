"""Work over files and folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, cast

from . import _bigsmall

__all__ = [
    "Estimate",
    "FileReport",
    "Report",
    "compress",
    "estimate",
    "index",
    "inspect",
    "rebase",
    "restore",
    "transcode",
    "verify",
]

Path = str | os.PathLike[str]
Base = Path | Sequence[Path]
Progress = Callable[[int, int], object]
Encoding = Literal["ans", "raw", "tbe3", "tbe4"]
Level = Literal["fast", "default", "small"]


class FileReport(TypedDict):
    """What is known of one safetensors file and its shard."""

    name: str
    original_bytes: int
    compressed_bytes: int
    sha256: str
    """SHA-256 of the safetensors file, in hexadecimal digits."""
    tensors: int
    shared_tensors: int
    """Tensors whose payload is that of another one."""
    delta_tensors: int
    """Tensors that are stored as differences from a base."""
    inherited_tensors: int
    """Tensors that are equal to those of a base, and have no payload."""
    md5: dict[str, str]
    """MD5 of the tensors' values, where asked for."""


class Report(TypedDict):
    """What a job found out. Sizes are in bytes."""

    original_bytes: int
    compressed_bytes: int
    ratio: float
    """Compressed over original; smaller is better."""
    files: list[FileReport]
    left_out: list[str]
    """Files and folders of the input that are not in the output: hidden ones, and every `.git`."""
    links_out: list[tuple[str, str]]
    """Symbolic links out of the input folder, and where each leads. What they lead to is in the
    output."""


class Estimate(TypedDict):
    """What `compress` would make of an input. Sizes are in bytes."""

    original_bytes: int
    compressed_bytes: int
    ratio: float
    """Compressed over original; smaller is better."""
    seconds: float
    """How long `compress` would take on this machine."""


class _Bar:
    """A bar of tqdm as a progress callback."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self._what, total=total, unit="B", unit_scale=True)
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Shown:
    """The callback behind `progress=`, as a context: `True` means a bar of tqdm."""

    def __init__(self, what: str, progress: Progress | bool | None) -> None:
        self._bar = None
        self.callback: Progress | None = None
        if progress is True:
            try:
                import tqdm  # noqa: F401
            except ImportError:
                return
            self.callback = self._bar = _Bar(what)
        elif progress is not None and progress is not False:
            self.callback = progress

    def __enter__(self) -> Progress | None:
        return self.callback

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def paths(base: Base) -> Sequence[Path]:
    """One or several paths as several."""
    return [base] if isinstance(base, (str, os.PathLike)) else base


def compress(
    input: Path,
    output: Path,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
    base: Base = (),
    md5: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    hidden: bool = False,
    max_files: int | None = None,
    max_depth: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Compresses a safetensors file to a shard, or a model folder to a folder of shards.

    What was written is read again and compared with the original before it is renamed. `output`
    is absent, as it was, or complete, also after Ctrl-C. Memory: at most 256 MiB.

    Args:
        input: A safetensors file, or a folder. Other files of a folder are copied.
        output: The shard, or the folder to make.
        encoding: `"ans"` is the smallest; `"tbe3"` and `"tbe4"` decode faster; `"raw"` stores.
        level: How hard `"ans"` tries.
        base: A file, a folder or shards from which the input differs little. Differences from it
            are stored where that is smaller, and it is needed to restore. If it has a base itself,
            the bases in order.
        md5: Keep an MD5 of every tensor.
        replace: Replace an existing output.
        dry_run: Do all the work but write nothing.
        hidden: Take also files and folders whose name begins with a dot, but never a `.git`.
        max_files: The most files that a folder may have; `None` for 1,048,576.
        max_depth: The most folders in one another; `None` for 100.
        progress: `progress(done, total)`, called about 20 times a second with original bytes; what
            it raises stops the job. `True` shows a bar of tqdm where tqdm is installed.

    Raises:
        BigsmallError: The input is not a valid safetensors file, the output exists, reading or
            writing failed.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    folder = hidden, max_files, max_depth
    with Shown("compress", progress) as callback:
        report = _bigsmall.compress(
            input, output, encoding, level, paths(base), md5, replace, dry_run, folder, callback
        )
    return cast(Report, report)


def restore(
    input: Path,
    output: Path,
    *,
    base: Base = (),
    replace: bool = False,
    max_expansion: int | None = None,
    ignore_free_space: bool = False,
    hidden: bool = False,
    max_files: int | None = None,
    max_depth: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Restores the safetensors file or the model folder that `input` was made from.

    The SHA-256 of every file is compared with that of the original. Memory: at most 256 MiB. A
    `UserWarning` says if the output is a gigabyte or more and a hundred times the input.

    Args:
        input: A shard, or a folder of shards.
        output: The safetensors file, or the folder to make.
        base: The bases of shards that are stored as differences, and the bases of those: files,
            folders or shards in any order.
        replace: Replace an existing output.
        max_expansion: Refuse a shard that restores to this many times its bytes, or more; `None`
            for 1,048,576.
        ignore_free_space: Begin even if the file system says that it has too little free space.
        hidden: As in `compress`.
        max_files: As in `compress`.
        max_depth: As in `compress`.
        progress: As in `compress`.

    Raises:
        BigsmallError: The shard is damaged, a base is missing (rule `"BaseMissing"`) or another one
            (`"BaseMismatch"`), the output exists, reading or writing failed.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    folder = hidden, max_files, max_depth
    with Shown("restore", progress) as callback:
        report = _bigsmall.restore(
            input,
            output,
            paths(base),
            replace,
            max_expansion,
            ignore_free_space,
            folder,
            callback,
        )
    return cast(Report, report)


def verify(
    path: Path,
    *,
    base: Base = (),
    md5: bool = False,
    max_expansion: int | None = None,
    hidden: bool = False,
    max_files: int | None = None,
    max_depth: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Checks every byte of a shard or of all shards in a folder. Writes nothing.

    Args:
        path: A shard, or a folder of shards.
        md5: Report the MD5 of every tensor.
        base: As in `restore`.
        max_expansion: As in `restore`.
        hidden: As in `compress`.
        max_files: As in `compress`.
        max_depth: As in `compress`.
        progress: As in `compress`.

    Raises:
        BigsmallError: Something is damaged; `.file`, `.tensor` and `.offset` say where. Of a
            folder the other shards are checked all the same; each further damaged one is a
            `UserWarning`.
        KeyboardInterrupt: Ctrl-C.
    """
    folder = hidden, max_files, max_depth
    with Shown("verify", progress) as callback:
        report = _bigsmall.verify(path, paths(base), md5, max_expansion, folder, callback)
    return cast(Report, report)


def transcode(
    input: Path,
    output: Path,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
    base: Base = (),
    md5: bool = False,
    replace: bool = False,
    max_expansion: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Rewrites a shard in another encoding, without the original and without a base.

    The new shard restores to the identical file: the SHA-256 is compared. Memory: at most 256 MiB
    and six times the index.

    Args:
        input: A shard.
        output: The shard to write.
        encoding: As in `compress`.
        level: As in `compress`.
        base: The bases of the input, as in `restore`.
        md5: As in `compress`; MD5 sums of the input are kept anyway.
        replace: As in `compress`.
        max_expansion: As in `restore`.
        progress: As in `compress`.

    Raises:
        BigsmallError: As in `restore` and `compress`.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with Shown("transcode", progress) as callback:
        report = _bigsmall.transcode(
            input, output, None, encoding, level, paths(base), md5, replace, max_expansion, callback
        )
    return cast(Report, report)


def rebase(
    input: Path,
    output: Path,
    *,
    onto: Path,
    encoding: Encoding = "ans",
    level: Level = "default",
    base: Base = (),
    md5: bool = False,
    replace: bool = False,
    max_expansion: int | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Rewrites a shard as differences from `onto`. A chain of shards becomes one with one base.

    Args:
        input: A shard, with or without bases.
        output: The shard to write.
        onto: Its base: a file, a folder or a shard.
        encoding: As in `compress`, for what stands without the base.
        level: As in `compress`.
        base: The bases of the input, as in `restore`, and those of `onto`.
        md5: As in `transcode`.
        replace: As in `compress`.
        max_expansion: As in `restore`.
        progress: As in `compress`.

    Raises:
        BigsmallError: As in `restore` and `compress`.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with Shown("rebase", progress) as callback:
        report = _bigsmall.transcode(
            input, output, onto, encoding, level, paths(base), md5, replace, max_expansion, callback
        )
    return cast(Report, report)


def index(
    folder: Path,
    *,
    original: Path | None = None,
    replace: bool = False,
    hidden: bool = False,
    max_files: int | None = None,
    max_depth: int | None = None,
) -> Report:
    """Makes one model from the shards that several machines wrote into `folder`: writes the index
    file and the model card there. The shards are opened, not decoded.

    Args:
        folder: The folder of shards.
        original: The folder that the shards were made from. All its other files are copied; the
            result is then that of `compress` of it, byte by byte.
        replace: Replace existing files that have other contents.
        hidden: As in `compress`.
        max_files: As in `compress`.
        max_depth: As in `compress`.

    Raises:
        BigsmallError: A tensor is in two shards (rule `"ModelTensor"`); a shard was made from
            another file (`"ModelIndex"`); a file with other contents exists (`"OutputExists"`).
        FileNotFoundError: The shard of a file of `original` is missing.
        KeyboardInterrupt: Ctrl-C. The next call makes what is missing.
    """
    report = _bigsmall.index(folder, original, replace, (hidden, max_files, max_depth))
    return cast(Report, report)


def estimate(
    input: Path,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
    hidden: bool = False,
    max_files: int | None = None,
    max_depth: int | None = None,
    progress: Progress | bool | None = None,
) -> Estimate:
    """What `compress` would make of a safetensors file or a folder, and how long it would take. A
    few blocks of every tensor are encoded; identical tensors are not looked for.

    Args:
        input: A safetensors file, or a folder, of which only the safetensors files count.
        encoding: As in `compress`.
        level: As in `compress`.
        hidden: As in `compress`.
        max_files: As in `compress`.
        max_depth: As in `compress`.
        progress: As in `compress`.

    Raises:
        BigsmallError: The input is not a valid safetensors file, or reading failed.
        KeyboardInterrupt: Ctrl-C.
    """
    folder = hidden, max_files, max_depth
    with Shown("estimate", progress) as callback:
        found = _bigsmall.estimate(input, encoding, level, folder, callback)
    return Estimate(
        original_bytes=found[0], compressed_bytes=found[1], ratio=found[2], seconds=found[3]
    )


def inspect(path: Path) -> dict[str, Any]:
    """What is in a shard or a folder of shards. Reads only the index.

    Returns:
        `original_bytes`, `compressed_bytes`, `ratio`; `files`: of each shard `name`,
        `original_bytes`, `compressed_bytes`, `sha256` and `bases` (`sha256`, `hint`: where it was,
        `bases_behind`); `tensors`: of each `name`, `dtype`, `shape`, `encoding`, `original_bytes`,
        `compressed_bytes`, `shares` (the tensor whose payload it shares, or `None`), `base`
        (`None`, or `base`: its place in `bases`, `tensor`, `blocks`, `same_blocks`: how many of
        them are those of the base), `shard`, `md5`.

    Raises:
        BigsmallError: `path` is not a shard or not a folder of shards, or its index is damaged.
    """
    model = _bigsmall.Model.open(path, ())
    files = model.shards()
    tensors = [
        {"name": name, "dtype": dtype, "shape": shape, "original_bytes": n, **model.stored(name)}
        for name, dtype, shape, n in model.tensors()
    ]
    original = sum(file["original_bytes"] for file in files)
    compressed = sum(file["compressed_bytes"] for file in files)
    return {
        "original_bytes": original,
        "compressed_bytes": compressed,
        "ratio": compressed / original if original else 1.0,
        "files": files,
        "tensors": tensors,
    }
