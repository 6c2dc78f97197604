"""Every example runs, on a small model that it makes itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "diffusers_unet.py": "outputs are identical",
    "jax_numpy.py": "bfloat16 (1000, 512)",
    "stream_to_device.py": "peak of main memory",
    "transformers_generate.py": "the same tokens as from the original",
}


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(example: str) -> None:
    command = [sys.executable, EXAMPLES / example]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert SAYS[example] in found.stdout
