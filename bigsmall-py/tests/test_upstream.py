"""safetensors' own Python tests, run against our functions through `upstream/safetensors`.

`BIGSMALL_SAFETENSORS_TESTS` names the folder `bindings/python` of its source distribution. The
tests in `EXCEPTED` fail, and no others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = ["flax", "tf", "mlx", "paddle"]
EXCEPTED = {
    "they compare or write the bytes of a safetensors file": [
        "test_pread_backend.py::PreadBackendTests::test_truncated_header_is_rejected",
        "test_pt_comparison.py::TorchTestCase::test_complex",
        "test_pt_comparison.py::TorchTestCase::test_in_memory",
        "test_pt_comparison.py::TorchTestCase::test_serialization",
        "test_pt_model.py::TorchModelTestCase::test_save",
        "test_simple.py::TestCase::test_deserialization",
        "test_simple.py::TestCase::test_deserialization_metadata",
        "test_simple.py::TestCase::test_serialization",
        "test_simple.py::TestCase::test_serialization_forces_alignment",
        "test_simple.py::TestCase::test_serialization_metadata",
        "test_simple.py::TestCase::test_serialization_no_big_endian",
    ],
    "they call private functions": [
        "test_handle.py::ReadmeTestCase::test_fsspec",
        "test_handle.py::ReadmeTestCase::test_numpy_example",
        "test_pt_model.py::TorchModelTestCase::test_end_ptr",
        "test_pt_model.py::TorchModelTestCase::test_is_complete",
        "test_pt_model.py::TorchModelTestCase::test_remove_duplicate_names",
        "test_simple.py::TestCase::test_pt_sf_save_model_overlapping_storage",
    ],
    "they give addresses to `serialize_file`": [
        "test_simple.py::ReadmeTestCase::test_exception",
        "test_threadable.py::TestCase::test_serialize_file_releases_gil",
    ],
    "they compare the text of an error": [
        "test_pt_comparison.py::TorchTestCase::test_sparse",
        "test_simple.py::ErrorsTestCase::test_file_not_found",
    ],
    "`backend` means nothing here": [
        "test_pread_backend.py::PreadBackendTests::test_invalid_backend_string_raises",
    ],
    "indices here are those of NumPy": [
        "test_simple.py::ReadmeTestCase::test_numpy_slice",
    ],
}


def test_safetensors_own_tests() -> None:
    pytest.importorskip("torch")
    folder = os.environ.get("BIGSMALL_SAFETENSORS_TESTS")
    if not folder:
        pytest.skip("BIGSMALL_SAFETENSORS_TESTS names no folder")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", "tests"]
    command += [f"--ignore=tests/test_{name}_comparison.py" for name in FRAMEWORKS]
    shim = str(Path(__file__).with_name("upstream"))
    env = os.environ | {"PYTHONPATH": shim}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    excepted = sorted(test for tests in EXCEPTED.values() for test in tests)
    assert sorted(failed) == excepted, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 43, done.stdout
