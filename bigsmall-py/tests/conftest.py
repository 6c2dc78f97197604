"""Files that several tests read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import bigsmall_rs


@pytest.fixture(scope="session")
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    weight = lambda *shape: (random.standard_normal(shape) * 0.02).astype(np.float32)  # noqa: E731
    return {
        "embed.weight": weight(300, 64),
        "layers.0.w": weight(700, 500),
        "layers.1.w": weight(64, 64),
        "layers.10.w": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
        "mask": np.array([True, False, True]),
        "scalar": np.array(3.5, dtype=np.float64),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("original") / "model.safetensors"
    save_file(tensors, path, {"format": "np"})
    return path


@pytest.fixture(scope="session")
def shard(original: Path) -> Path:
    path = original.with_suffix(".bs")
    bigsmall_rs.compress(original, path)
    return path


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file that takes a while to compress: 400 MB of floats."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    values = np.random.default_rng(2).standard_normal(10_000_000, dtype=np.float32)
    save_file({f"layers.{i}.w": values + np.float32(i) for i in range(10)}, path)
    return path
