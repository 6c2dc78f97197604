"""An open shard or folder of shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

from . import _bigsmall
from ._errors import BigsmallError
from ._frameworks import Framework, framework, memory
from ._jobs import Base, Progress, Shown, paths

__all__ = ["File", "Slice", "open", "safe_open"]

Path = str | os.PathLike[str]
Info = tuple[str, tuple[int, ...], int]


class File:
    """An open model: one shard, or a folder of them. Any thread may use it.

    Opening reads the index; tensors are decoded when they are asked for, each block checked.
    """

    def __init__(
        self, path: Path, framework: str = "numpy", device: Any = "cpu", base: Base = ()
    ) -> None:
        """The same as `bigsmall_rs.open`."""
        self._base = paths(base)
        self._set(_bigsmall.Model.open(path, self._base), os.fspath(path), framework, device)

    def _set(self, model: _bigsmall.Model, path: str | None, name: str, device: Any) -> None:
        self._open: _bigsmall.Model | None = model
        self._path = path
        self._name = name
        self._device = device
        self._made: Framework | None = None
        self._infos: dict[str, Info] = {
            name: (dtype, shape, n) for name, dtype, shape, n in model.tensors()
        }

    @classmethod
    def from_bytes(
        cls, data: Any, framework: str = "numpy", device: Any = "cpu", base: Base = ()
    ) -> Self:
        """The model whose only shard is `data`, any object with a buffer; its bytes are copied."""
        file = cls.__new__(cls)
        file._set(_bigsmall.Model.from_bytes(data, paths(base)), None, framework, device)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        if self._path is None:
            raise TypeError("a file in memory cannot be pickled")
        return type(self), (self._path, self._name, self._device, self._base)

    def __repr__(self) -> str:
        state = "closed" if self._open is None else f"{len(self._infos)} tensors"
        return f"<bigsmall_rs.File {self._path or 'in memory'}: {state}>"

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def close(self) -> None:
        """Closes the file. Calls that are under way in other threads finish."""
        self._open = None

    @property
    def _model(self) -> _bigsmall.Model:
        if self._open is None:
            raise BigsmallError("the file is closed", rule="Argument", file=self._path)
        return self._open

    @property
    def _framework(self) -> Framework:
        # Only now: a file can be looked at without the framework.
        if self._made is None:
            self._made = framework(self._name)
        return self._made

    def _info(self, name: str) -> Info:
        found = self._infos.get(name)
        if found is None:
            message = f"tensor {name!r}: no tensor of that name"
            raise BigsmallError(message, "TensorMissing", self._path, name)
        return found

    @property
    def tensors(self) -> Mapping[str, Info]:
        """`{name: (dtype, shape, nbytes)}` in the order of the data; dtypes as safetensors names
        them, such as `"BF16"`; `nbytes` of the decoded tensor."""
        return dict(self._infos)

    def keys(self) -> list[str]:
        """The names of all tensors, sorted."""
        self._model  # noqa: B018  An error where the file is closed.
        return sorted(self._infos)

    def offset_keys(self) -> list[str]:
        """The names of all tensors, in the order of their data."""
        return list(self._infos)

    def metadata(self) -> dict[str, str] | None:
        """The `__metadata__` of the safetensors file; `None` if it had none."""
        return self._model.metadata() or None

    @property
    def layers(self) -> list[str]:
        """The layers in the order in which the model runs; see `layer_of`."""
        return self._model.layers()

    def get_tensor(self, name: str) -> Any:
        """The tensor `name`, in the framework and on the device that the file was opened with.

        Raises:
            BigsmallError: There is no tensor of that name, or it is damaged.
        """
        dtype, shape, _ = self._info(name)
        tensor = self._framework.empty(dtype, shape)
        self._model.read_into(name, self._framework.buffer(tensor))
        return self._framework.to_device(tensor, self._device)

    def get_tensors(
        self, names: Iterable[str] | None = None, progress: Progress | bool | None = None
    ) -> dict[str, Any]:
        """Many tensors, or all of them, in one parallel read.

        Args:
            names: Names of tensors; `None` for all.
            progress: Called with the bytes done and the bytes to do; `True` shows a bar of tqdm
                where tqdm is installed.

        Raises:
            BigsmallError: There is no tensor of that name, or one is damaged.
            KeyboardInterrupt: Ctrl-C, within about 256 MiB of decoded bytes.
        """
        with Shown("load", progress) as callback:
            return self._get_tensors(names, callback)

    def _get_tensors(
        self, names: Iterable[str] | None, progress: Progress | None
    ) -> dict[str, Any]:
        wanted = list(self._infos if names is None else names)
        made, model = self._framework, self._model
        if str(self._device) != "cpu":
            # Layer by layer: main memory never holds all of them.
            groups: dict[str, list[str]] = {}
            for name in wanted:
                groups.setdefault(_bigsmall.layer_of(name), []).append(name)
        else:
            groups = {"": wanted}
        found: dict[str, Any] = {}
        total, done = sum(self._info(name)[2] for name in wanted), 0
        for group in groups.values():
            tensors = {name: made.empty(*self._info(name)[:2]) for name in group}
            inner = None
            if progress is not None:
                base = done

                def inner(n: int, _: int, base: int = base) -> None:
                    progress(base + n, total)

            model.read_many_into([(n, made.buffer(t)) for n, t in tensors.items()], inner)
            done += sum(self._info(name)[2] for name in group)
            found |= {n: made.to_device(t, self._device) for n, t in tensors.items()}
        return {name: found[name] for name in wanted}

    def get_slice(self, name: str) -> Slice:
        """The tensor `name`, of which nothing is decoded before it is indexed."""
        self._info(name)
        return Slice(self, name)

    def read_into(self, name: str, out: Any) -> None:
        """Decodes the tensor `name` into `out`: a writable, contiguous buffer of `nbytes` bytes,
        such as a `bytearray`, an array of NumPy or a tensor of PyTorch in main memory. Bytes are
        little-endian. The GIL is released; no other thread may use `out` meanwhile. After an error
        its contents are unspecified.

        Raises:
            BigsmallError: No such tensor, a wrong length, damage.
            BufferError: `out` is read-only or not contiguous; an array that is big-endian, or a
                tensor that conjugates or negates its memory.
        """
        self._model.read_into(name, memory(out))

    def read_rows_into(self, name: str, begin: int, end: int, out: Any) -> None:
        """Decodes the rows `begin` up to `end`, steps of the first dimension, into `out`. Only the
        blocks that hold them are read. Otherwise as `read_into`."""
        self._model.read_rows_into(name, begin, end, memory(out))

    def read_many_into(
        self,
        tensors: Mapping[str, Any] | Iterable[tuple[str, Any]],
        progress: Progress | bool | None = None,
    ) -> None:
        """Decodes many tensors in one parallel read: `{name: out}`, where each `out` is as in
        `read_into` and no two overlap.

        Args:
            tensors: Names and buffers.
            progress: As in `get_tensors`.

        Raises:
            BigsmallError: As in `read_into`; names and lengths are checked before anything is read.
            ValueError: Two buffers overlap; the message names both tensors.
            KeyboardInterrupt: Ctrl-C, within about 256 MiB of decoded bytes.
        """
        # Kept during the call.
        pairs = list(tensors.items() if isinstance(tensors, Mapping) else tensors)
        with Shown("load", progress) as callback:
            self._model.read_many_into([(name, memory(out)) for name, out in pairs], callback)


class Slice:
    """A tensor that is not decoded yet. Indexing it decodes the rows that are needed.

    An index may be whatever the framework takes. Where it begins with an integer or a slice, only
    the rows within its bounds are read.
    """

    def __init__(self, file: File, name: str) -> None:
        self._file = file
        self._key = name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the framework."""
        dtype, shape, _ = self._file._info(self._key)
        return self._file._framework.own_shape(dtype, shape)

    @property
    def dtype(self) -> Any:
        """The dtype in the framework."""
        return self._file._framework.dtype(self.get_dtype())

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._file._info(self._key)[1])

    def get_shape(self) -> list[int]:
        """The shape in the file."""
        return list(self._file._info(self._key)[1])

    def get_dtype(self) -> str:
        """The dtype as safetensors names it, such as `"BF16"`."""
        return self._file._info(self._key)[0]

    def __repr__(self) -> str:
        return f"<bigsmall_rs.Slice {self._key}: {self.get_dtype()} {self.get_shape()}>"

    def __getitem__(self, index: Any) -> Any:
        """Decodes the part of the tensor that `index` says.

        Raises:
            BigsmallError: The tensor is damaged.
            IndexError: The index does not fit the shape.
        """
        file, (dtype, shape, _) = self._file, self._file._info(self._key)
        made = file._framework
        if not shape:
            part = made.empty(dtype, ())
            file._model.read_into(self._key, made.buffer(part))
            return made.to_device(part if index is Ellipsis else part[index], file._device)
        first, *others = (index if isinstance(index, tuple) else (index,)) or (Ellipsis,)
        begin, end, first = _rows(first, shape[0], self._key)
        part = made.empty(dtype, (end - begin, *shape[1:]))
        if (begin, end) == (0, shape[0]):
            file._model.read_into(self._key, made.buffer(part))
        else:
            file._model.read_rows_into(self._key, begin, end, made.buffer(part))
        if others or not (first is Ellipsis or isinstance(first, slice) and first == slice(None)):
            part = part[(first, *others)]
        return made.to_device(part, file._device)


def _rows(index: Any, n: int, name: str) -> tuple[int, int, Any]:
    """The rows of `n` that `index` needs, and what `index` is among them."""
    if isinstance(index, slice):
        rows = range(*index.indices(n))
        if not rows:
            return 0, 0, slice(None)
        begin, end = min(rows[0], rows[-1]), max(rows[0], rows[-1]) + 1
        # Counted from the end, a backward slice may end before the first row.
        stop = None if rows.step < 0 else end - begin
        whole = rows.step == 1
        return begin, end, slice(None) if whole else slice(rows[0] - begin, stop, rows.step)
    if isinstance(index, bool) or getattr(index, "shape", ()) != ():
        return 0, n, index
    if index is Ellipsis or not hasattr(index, "__index__"):
        return 0, n, index
    at = index.__index__()
    if not -n <= at < n:
        raise IndexError(f"row {at} of tensor {name!r}, which has {n} rows")
    return at % n, at % n + 1, 0


def open(
    path: Path, framework: str = "numpy", device: Any = "cpu", *, base: Base = ()
) -> File:
    """Opens a shard, or a folder of shards as one model.

    Args:
        path: A `.bs` file, or a folder with a `model.bs.index.json` or a single `.bs` file.
        framework: `"numpy"` or `"pt"`: whose tensors `get_tensor` and slices make.
        device: Where they are, such as `"cuda:0"`.
        base: The bases of shards that are stored as differences, and the bases of those: files,
            folders or shards in any order. Only the blocks that are needed are read.

    Raises:
        BigsmallError: Not a shard or not a folder of shards, or its index is damaged; another base
            (rule `"BaseMismatch"`). Without a base that is needed, reading a tensor that needs it
            raises one with the rule `"BaseMissing"`.
        FileNotFoundError: There is nothing at `path` (this is a `BigsmallError`, too).
    """
    return File(path, framework, device, base)


def safe_open(
    filename: Path,
    framework: str,
    device: Any = "cpu",
    *,
    backend: str | None = None,
    base: Base = (),
) -> File:
    """The same with the signature of `safetensors.safe_open`; also for a folder of shards.

    `backend` is for calls written for safetensors and means nothing: there is one way to read.
    """
    return File(filename, framework, device, base)
