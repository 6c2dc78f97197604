"""Exceptions."""

from __future__ import annotations

__all__ = ["BigsmallError", "BigsmallFileNotFoundError"]


class BigsmallError(Exception):
    """What went wrong, in which file and tensor, where.

    `str(error)` is a sentence for people; the attributes are for programs.
    """

    rule: str | None
    """The rule that was broken, such as `"BlockChecksum"`: a name of `Rule` in Rust."""
    file: str | None
    """The file: its path, or in a folder of shards the shard's name. `None` if not known."""
    tensor: str | None
    """The tensor's name. `None` if the error is not about one tensor."""
    offset: int | None
    """The byte in the file at which the error was found. `None` if not known."""

    def __init__(
        self,
        message: str,
        rule: str | None = None,
        file: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.rule = rule
        self.file = file
        self.tensor = tensor
        self.offset = offset


class BigsmallFileNotFoundError(BigsmallError, FileNotFoundError):
    """A file that is not there: a `BigsmallError`, and what `open` of Python raises."""
