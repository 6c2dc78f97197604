"""The extension module. Use `bigsmall_rs`; no promise holds for what is here."""

import os
from collections.abc import Callable, Sequence
from typing import Any, final

from typing_extensions import Buffer

__all__ = [
    "Loader",
    "Model",
    "Pages",
    "__version__",
    "apply_deltas",
    "changes",
    "compress",
    "decode_delta",
    "delta_spec",
    "encode_delta",
    "estimate",
    "index",
    "layer_of",
    "restore",
    "save",
    "save_bytes",
    "transcode",
    "verify",
]

__version__: str

_Described = tuple[str, str, tuple[int, ...], int]
_Given = tuple[str, str, Sequence[int], Buffer]
_Progress = Callable[[int, int], object]
_Path = str | os.PathLike[str]
_Folder = tuple[bool, int | None, int | None]

@final
class Model:
    @staticmethod
    def open(path: _Path, base: Sequence[_Path]) -> Model: ...
    @staticmethod
    def from_bytes(data: Buffer, base: Sequence[_Path]) -> Model: ...
    def tensors(self) -> list[_Described]: ...
    def layers(self) -> list[str]: ...
    def metadata(self) -> dict[str, str]: ...
    def shards(self) -> list[dict[str, Any]]: ...
    def stored(self, name: str) -> dict[str, Any]: ...
    def read_into(self, name: str, out: Buffer) -> None: ...
    def read_rows_into(self, name: str, begin: int, end: int, out: Buffer) -> None: ...
    def read_many_into(
        self, tensors: Sequence[tuple[str, Buffer]], progress: _Progress | None = None
    ) -> None: ...

@final
class Loader:
    def __new__(cls, model: Model, budget: int | None = None) -> Loader: ...
    def peek(self) -> tuple[str, list[_Described]] | None: ...
    def next_into(self, tensors: Sequence[tuple[str, Buffer]]) -> bool: ...

@final
class Pages:
    @staticmethod
    def train(dtype: str, samples: Sequence[Buffer], level: str) -> Pages: ...
    @staticmethod
    def from_bytes(tables: Buffer) -> Pages: ...
    def to_bytes(self) -> bytes: ...
    def dtype(self) -> str: ...
    def max_encoded_len(self, byte_len: int) -> int: ...
    def page_len(self, encoded: Buffer) -> int: ...
    def encode_into(self, page: Buffer, out: Buffer) -> int: ...
    def decode_into(self, encoded: Buffer, page: Buffer) -> None: ...

def encode_delta(dtype: str, shape: Sequence[int], new: Buffer, base: Buffer) -> bytes: ...
def decode_delta(frame: Buffer, base: Buffer, out: Buffer) -> None: ...
def apply_deltas(deltas: Sequence[tuple[str, Buffer, Buffer]]) -> None: ...
def delta_spec(frame: Buffer, name: str | None = None) -> tuple[str, list[int]]: ...
def changes(frame: Buffer, base: Buffer) -> tuple[bytes, bytes]: ...
def layer_of(name: str) -> str: ...
def compress(
    input: _Path,
    output: _Path,
    encoding: str,
    level: str,
    base: Sequence[_Path],
    md5: bool,
    replace: bool,
    dry_run: bool,
    folder: _Folder,
    progress: _Progress | None,
) -> dict[str, Any]: ...
def restore(
    input: _Path,
    output: _Path,
    base: Sequence[_Path],
    replace: bool,
    max_expansion: int | None,
    ignore_free_space: bool,
    folder: _Folder,
    progress: _Progress | None,
) -> dict[str, Any]: ...
def verify(
    input: _Path,
    base: Sequence[_Path],
    md5: bool,
    max_expansion: int | None,
    folder: _Folder,
    progress: _Progress | None,
) -> dict[str, Any]: ...
def transcode(
    input: _Path,
    output: _Path,
    onto: _Path | None,
    encoding: str,
    level: str,
    base: Sequence[_Path],
    md5: bool,
    replace: bool,
    max_expansion: int | None,
    progress: _Progress | None,
) -> dict[str, Any]: ...
def index(
    dir: _Path, original: _Path | None, replace: bool, folder: _Folder
) -> dict[str, Any]: ...
def estimate(
    input: _Path, encoding: str, level: str, folder: _Folder, progress: _Progress | None
) -> tuple[int, int, float, float]: ...
def save(
    path: _Path,
    tensors: Sequence[_Given],
    metadata: dict[str, str] | None,
    encoding: str,
    level: str,
    replace: bool,
    progress: _Progress | None = None,
) -> tuple[int, int]: ...
def save_bytes(
    tensors: Sequence[_Given], metadata: dict[str, str] | None, encoding: str, level: str
) -> bytes: ...
