"""Lossless compression of neural-network weights: smaller files, every bit back.

    import bigsmall_rs

    bigsmall_rs.compress("model.safetensors", "model.bs")
    with bigsmall_rs.open("model.bs") as file:
        weight = file.get_tensor("lm_head.weight")

`bigsmall_rs.numpy`, `.torch`, `.transformers`, `.diffusers` and `.vllm` are for those frameworks;
none of them is imported before it is used. `bigsmall_rs.pages` codes many small buffers with
tables that they share, `bigsmall_rs.deltas` tensors as differences. `python -m bigsmall_rs` is the
command.

`BIGSMALL_THREADS` in the environment says how many threads decode, at most 256; without it, one for
each core.
"""

from __future__ import annotations

from ._bigsmall import __version__, layer_of
from ._errors import BigsmallError
from ._file import File, Slice, open, safe_open
from ._jobs import (
    Estimate,
    FileReport,
    Report,
    compress,
    estimate,
    index,
    inspect,
    rebase,
    restore,
    transcode,
    verify,
)

__all__ = [
    "BigsmallError",
    "Estimate",
    "File",
    "FileReport",
    "Report",
    "Slice",
    "__version__",
    "compress",
    "estimate",
    "index",
    "inspect",
    "layer_of",
    "open",
    "rebase",
    "restore",
    "safe_open",
    "transcode",
    "verify",
]
