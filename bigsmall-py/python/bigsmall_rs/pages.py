"""Pages: many small buffers of one kind, such as the pages of a KV cache, compressed with tables
that they share.

    from bigsmall_rs.pages import Pages

    pages = Pages.train(samples)                           # tensors of PyTorch, arrays of NumPy
    slot = bytearray(pages.max_encoded_len(page.nbytes))
    n = pages.encode_into(page, slot)
    pages.decode_into(memoryview(slot)[:n], page)          # bit by bit the same

A page is a contiguous tensor of PyTorch in main memory, an array of NumPy, or any other object with
a buffer. Bytes are little-endian; an array of another order is refused, and so is a view of PyTorch
that conjugates or negates. The GIL is released while a page is coded, on the thread that calls; one
`Pages` serves any number of threads. No other thread may write to a buffer during a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from . import _bigsmall
from ._frameworks import framework_of, memory
from ._jobs import Level

__all__ = ["Pages"]


class Pages:
    """Tables that were trained on samples, and with them the coding of pages.

    Every page comes back bit by bit, also one that differs from all samples; it takes more bytes
    then, `max_encoded_len` at most. `train` and `from_bytes` make one.
    """

    _inner: _bigsmall.Pages

    @classmethod
    def train(
        cls, samples: Iterable[Any], dtype: str | None = None, *, level: Level = "default"
    ) -> Self:
        """Trains tables, which takes milliseconds.

        Args:
            samples: Pages such as those to come, 256 elements or more in all; some of each layer.
            dtype: The dtype of the pages as safetensors names it, such as `"BF16"`. `None`: that of
                the samples, which are tensors or arrays.
            level: `"small"`: pages are a little smaller, and decoded more slowly.

        Raises:
            ValueError: The samples differ in dtype, or they have none and `dtype` is not given.
            BigsmallError: There are too few samples, or no such dtype.
        """
        given = list(samples)
        if dtype is None:
            names = {name for name in map(_dtype_of, given) if name is not None}
            if len(names) != 1:
                raise ValueError(f"give a dtype: the samples have {sorted(names) or 'none'}")
            (dtype,) = names
        buffers = [memory(sample) for sample in given]
        return cls._of(_bigsmall.Pages.train(dtype, buffers, level))

    @classmethod
    def from_bytes(cls, tables: Any) -> Self:
        """The tables that `to_bytes` returned.

        Raises:
            BigsmallError: These are no tables, or they are damaged.
        """
        return cls._of(_bigsmall.Pages.from_bytes(memory(tables)))

    @classmethod
    def _of(cls, inner: _bigsmall.Pages) -> Self:
        pages = cls.__new__(cls)
        pages._inner = inner
        return pages

    def __init__(self) -> None:
        raise TypeError("use Pages.train or Pages.from_bytes")

    def __reduce__(self) -> Any:
        return type(self).from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"<bigsmall_rs.pages.Pages of {self.dtype}>"

    def to_bytes(self) -> bytes:
        """The tables, to be stored beside pages that outlive the program."""
        return self._inner.to_bytes()

    @property
    def dtype(self) -> str:
        """The dtype of the pages, as safetensors names it."""
        return self._inner.dtype()

    def max_encoded_len(self, nbytes: int) -> int:
        """The most bytes that a page of `nbytes` bytes can take."""
        return self._inner.max_encoded_len(nbytes)

    def encode_into(self, page: Any, out: Any) -> int:
        """Encodes `page` to the front of `out`, a writable buffer.

        Returns:
            The number of bytes written.

        Raises:
            BigsmallError: `out` is too short, or `page` does not consist of whole elements.
            ValueError: The two overlap, or `page` has another dtype.
            BufferError: One of them is not contiguous, or `out` is read-only.
        """
        self._check(page)
        return self._inner.encode_into(memory(page), memory(out))

    def encode(self, page: Any) -> bytes:
        """The same into new bytes."""
        buffer = memoryview(memory(page))
        slot = bytearray(self.max_encoded_len(buffer.nbytes))
        return bytes(memoryview(slot)[: self.encode_into(page, slot)])

    def page_len(self, encoded: Any) -> int:
        """The number of bytes of the page that `encoded` holds. Only the header is read.

        Raises:
            BigsmallError: This is no encoded page.
        """
        return self._inner.page_len(memory(encoded))

    def decode_into(self, encoded: Any, page: Any) -> None:
        """Decodes `encoded`, the bytes of one page and no others, into the memory of `page`, which
        has the page's length. After an error its contents are unspecified.

        Raises:
            BigsmallError: Damage (checked first), other tables, another length.
            ValueError: The two overlap, or `page` has another dtype.
            BufferError: One of them is not contiguous, or `page` is read-only.
        """
        self._check(page)
        self._inner.decode_into(memory(encoded), memory(page))

    def _check(self, page: Any) -> None:
        found = _dtype_of(page)
        # Bytes are taken as they are.
        if found not in (self.dtype, "U8", None):
            raise ValueError(f"expected a page of {self.dtype}, found {found}")


def _dtype_of(tensor: Any) -> str | None:
    made = framework_of(tensor)
    return None if made is None else made.name_of(tensor.dtype)
