"""Open files, slices, errors, jobs and the command."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigsmall_rs
import bigsmall_rs.numpy as shards
from bigsmall_rs import BigsmallError


def test_a_file_says_what_it_holds(shard: Path, tensors: dict[str, np.ndarray]) -> None:
    with bigsmall_rs.open(shard) as file:
        assert file.keys() == sorted(tensors)
        assert set(file.offset_keys()) == set(tensors)
        assert file.metadata() == {"format": "np"}
        layers = ["embed", "scalar", "mask", "empty", "layers.0", "layers.1", "layers.10"]
        assert file.layers == layers or (
            file.layers.index("layers.1") < file.layers.index("layers.10")
        )
        assert file.tensors["layers.0.w"] == ("F32", (700, 500), 1_400_000)
        assert "mask" in file and "other" not in file and len(file) == len(tensors)
        for name, array in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == array.dtype and found.shape == array.shape
            assert found.tobytes() == array.tobytes()


INDICES = [
    ...,
    slice(None),
    slice(0, 0),
    slice(3, 9),
    slice(600, 10_000),
    slice(-5, None),
    slice(None, None, 3),
    slice(600, 10, -7),
    slice(5, None, -1),
    slice(9, 3),
    0,
    -1,
    np.int64(3),
    (slice(2, 5), slice(1, 7, 2)),
    (3, 4),
    (slice(None), 2),
    (..., 1),
    ([1, 5, 3],),
    np.array([2, 4]),
    None,
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_a_slice_is_what_numpy_makes_of_it(
    shard: Path, tensors: dict[str, np.ndarray], index: object
) -> None:
    with bigsmall_rs.open(shard) as file:
        expected = tensors["layers.0.w"][index]  # type: ignore[index]
        found = file.get_slice("layers.0.w")[index]
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)


def test_slices_describe_themselves(shard: Path) -> None:
    with bigsmall_rs.open(shard) as file:
        piece = file.get_slice("layers.0.w")
        assert (piece.get_shape(), piece.get_dtype()) == ([700, 500], "F32")
        assert (piece.shape, piece.dtype, piece.ndim) == ((700, 500), np.float32, 2)
        assert file.get_slice("scalar")[...] == 3.5
        assert file.get_slice("empty")[:].shape == (0, 4)
        with pytest.raises(IndexError):
            piece[700]


def test_buffers_of_the_caller(shard: Path, tensors: dict[str, np.ndarray]) -> None:
    with bigsmall_rs.open(shard) as file:
        names = ["layers.0.w", "mask", "empty", "scalar"]
        out = {name: bytearray(file.tensors[name][2]) for name in names}
        calls: list[tuple[int, int]] = []
        file.read_many_into(out, lambda done, total: calls.append((done, total)))
        assert all(bytes(out[n]) == tensors[n].tobytes() for n in names)
        assert calls[-1] == (1_400_011, 1_400_011)
        rows = np.empty((3, 500), np.float32)
        file.read_rows_into("layers.0.w", 600, 603, rows)
        assert np.array_equal(rows, tensors["layers.0.w"][600:603])
        with pytest.raises(BufferError):
            file.read_into("mask", b"abc")
        with pytest.raises(BufferError):
            file.read_into("mask", memoryview(bytearray(6))[::2])
        with pytest.raises(BufferError):
            file.read_into("layers.0.w", np.empty((700, 500), ">f4"))
        with pytest.raises(BigsmallError) as error:
            file.read_into("mask", bytearray(4))
        assert (error.value.rule, error.value.tensor) == ("BufferLength", "mask")
        both = memoryview(bytearray(1_400_000))
        with pytest.raises(ValueError, match='"mask" and "scalar"'):
            file.read_many_into([("mask", both[:3]), ("scalar", both[2:10])])


def test_errors_say_what_is_wrong(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        bigsmall_rs.open(tmp_path / "missing.bs")
    assert isinstance(missing.value, BigsmallError) and missing.value.rule == "Io"
    assert missing.value.file is not None and missing.value.file.endswith("missing.bs")
    with pytest.raises(BigsmallError) as unknown, bigsmall_rs.open(shard) as file:
        file.get_tensor("other")
    assert (unknown.value.rule, unknown.value.tensor) == ("TensorMissing", "other")
    damaged = tmp_path / "damaged.bs"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with bigsmall_rs.open(damaged) as file, pytest.raises(BigsmallError) as corrupt:
        file.get_tensor("layers.0.w")
    assert corrupt.value.rule == "BlockChecksum"
    assert corrupt.value.tensor == "layers.0.w"
    assert corrupt.value.file == str(damaged)
    assert corrupt.value.offset is not None and 0 < corrupt.value.offset < len(data)
    again = pickle.loads(pickle.dumps(corrupt.value))
    assert str(again) == str(corrupt.value) and again.offset == corrupt.value.offset
    with pytest.raises(BigsmallError):
        bigsmall_rs.verify(damaged)
    with pytest.raises(BigsmallError) as closed:
        file.get_tensor("layers.0.w")
    assert "closed" in str(closed.value)


def test_jobs(original: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "out.bs", []
    report = bigsmall_rs.compress(
        original, out, md5=True, progress=lambda done, total: calls.append((done, total))
    )
    assert report["original_bytes"] == original.stat().st_size
    assert report["compressed_bytes"] == out.stat().st_size
    assert len(report["files"][0]["md5"]) == 7
    assert calls[-1][0] == calls[-1][1] > 0
    with pytest.raises(BigsmallError) as exists:
        bigsmall_rs.compress(original, out)
    assert exists.value.rule == "OutputExists"
    bigsmall_rs.compress(original, out, replace=True, level="small")
    bigsmall_rs.verify(out)
    bigsmall_rs.restore(out, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == original.read_bytes()
    seen = bigsmall_rs.inspect(out)
    assert seen["compressed_bytes"] == out.stat().st_size and len(seen["tensors"]) == 7
    with pytest.raises(ValueError):
        wrong: Any = "other"
        bigsmall_rs.compress(original, out, replace=True, encoding=wrong)


def test_an_estimate(original: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = bigsmall_rs.estimate(original, progress=lambda *n: calls.append(n))
    made = bigsmall_rs.compress(original, original.with_suffix(".none"), dry_run=True)
    assert found["original_bytes"] == made["original_bytes"] == calls[-1][0] == calls[-1][1]
    assert abs(found["ratio"] - made["ratio"]) < 0.02 and found["seconds"] > 0
    assert bigsmall_rs.estimate(original, encoding="raw")["ratio"] >= 1


def test_shards_of_several_machines_become_a_model(tmp_path: Path) -> None:
    model, whole, made = (tmp_path / name for name in ("model", "whole", "made"))
    model.mkdir()
    made.mkdir()
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, part in enumerate(parts):
        shards.save_file({f"layers.{i}.w": np.ones((9, 9), np.float32)}, model / "a.bs")
        bigsmall_rs.restore(model / "a.bs", model / part)
        (model / "a.bs").unlink()
        bigsmall_rs.compress(model / part, (made / part).with_suffix(".bs"))
    places = {f"layers.{i}.w": part for i, part in enumerate(parts)}
    index = {"metadata": {"total_size": 648}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text("{}")
    bigsmall_rs.compress(model, whole)
    report = bigsmall_rs.index(made, original=model)
    assert len(report["files"]) == 2
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert all((made / p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())
    (made / parts[0]).with_suffix(".bs").unlink()
    with pytest.raises(FileNotFoundError, match="00001"):
        bigsmall_rs.index(made, original=model)


def test_hidden_files_are_named_or_taken(original: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    shutil.copy(original, model)
    for name in (".hidden", "seen"):
        (model / name).write_text(name)
    assert bigsmall_rs.compress(model, out)["left_out"] == [".hidden"]
    assert not (out / ".hidden").exists() and (out / "seen").exists()
    assert bigsmall_rs.compress(model, out, hidden=True, replace=True)["left_out"] == []
    assert bigsmall_rs.verify(out)["left_out"] == [".hidden"]
    assert bigsmall_rs.restore(out, tmp_path / "without")["left_out"] == [".hidden"]
    (tmp_path / "elsewhere").write_text("text")
    (model / "link").symlink_to(tmp_path / "elsewhere")
    report = bigsmall_rs.compress(model, out, hidden=True, replace=True)
    assert report["links_out"] == [("link", str(tmp_path.resolve() / "elsewhere"))]
    bigsmall_rs.restore(out, tmp_path / "back", hidden=True)
    names = {file.name: file.read_bytes() for file in (tmp_path / "back").iterdir()}
    assert names == {file.name: file.read_bytes() for file in model.iterdir()}
    for limit in ({"max_files": 1}, {"max_depth": 0}):
        (model / "deep").mkdir(exist_ok=True)
        with pytest.raises(BigsmallError):
            bigsmall_rs.compress(model, tmp_path / "none", **limit)  # type: ignore[arg-type]


def test_a_base(tmp_path: Path) -> None:
    old, new, shard, back = (tmp_path / name for name in ("old", "new", "shard", "back"))
    values = np.random.default_rng(1).standard_normal((400, 500), np.float32)
    save_file({"a": values, "b": values + 1}, old)
    save_file({"a": values * np.float32(1.0001), "b": values + 1}, new)
    (file,) = bigsmall_rs.compress(new, shard, base=[old])["files"]
    assert (file["delta_tensors"], file["inherited_tensors"]) == (1, 1)
    assert shard.stat().st_size < new.stat().st_size / 2
    for base in ([old], old, [str(new), old]):
        bigsmall_rs.verify(shard, base=base)
        bigsmall_rs.restore(shard, back, base=base, replace=True)
        assert back.read_bytes() == new.read_bytes()
    back.unlink()
    for base, rule in (([], "BaseMissing"), ([new], "BaseMismatch")):
        for job in (bigsmall_rs.verify, lambda *a, **b: bigsmall_rs.restore(*a, back, **b)):
            with pytest.raises(BigsmallError) as wrong:
                job(shard, base=base)
            assert wrong.value.rule == rule
    assert not back.exists()


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A safetensors file, a shard that has it as its base, and a shard that has this as its."""
    values = np.random.default_rng(1).standard_normal((400, 500), np.float32)
    files = [tmp_path / name for name in ("0", "1", "2")]
    for i, file in enumerate(files):
        save_file({"a": values * np.float32(1 + i / 10_000), "b": values + 1}, file)
    first, second = files[1].with_suffix(".bs"), files[2].with_suffix(".bs")
    bigsmall_rs.compress(files[1], first, base=files[0])
    bigsmall_rs.compress(files[2], second, base=[first, files[0]])
    return files[0], first, second


def test_reading_with_a_base(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    start, first, second = chain
    values = {name: tensor.tobytes() for name, tensor in load_file(tmp_path / "2").items()}
    bases = [start, first]
    data = second.read_bytes()
    for found in (
        shards.load_file(second, base=bases),
        shards.load(data, base=bases),
        bigsmall_rs.safe_open(second, "np", base=bases).get_tensors(),
        pickle.loads(pickle.dumps(bigsmall_rs.open(second, base=bases))).get_tensors(),
    ):
        assert {name: tensor.tobytes() for name, tensor in found.items()} == values
    with bigsmall_rs.open(second, base=bases) as file:
        assert file.get_slice("a")[3:5].tobytes() == values["a"][6000:10_000]
    with bigsmall_rs.open(second) as file:
        assert file.keys() == ["a", "b"]
        with pytest.raises(BigsmallError) as wrong:
            file.get_tensor("a")
        assert (wrong.value.rule, wrong.value.tensor) == ("BaseMissing", "a")
    assert bigsmall_rs.open(second, base=tmp_path / "1").get_tensor("a").tobytes() == values["a"]
    for base, rule in ((start, "BaseMismatch"), (first, "BaseMissing")):
        with pytest.raises(BigsmallError) as wrong:
            bigsmall_rs.open(second, base=base).get_tensors()
        assert wrong.value.rule == rule
    report = bigsmall_rs.inspect(second)
    (base,) = report["files"][0]["bases"]
    assert (base["hint"], base["bases_behind"]) == ("1.bs", 1)
    assert base["sha256"] == bigsmall_rs.inspect(first)["files"][0]["sha256"]
    a, b = (tensor["base"] for tensor in report["tensors"])
    assert a["tensor"] == "a" and a["same_blocks"] == 0 < a["blocks"] == b["same_blocks"]
    assert [tensor["base"] for tensor in bigsmall_rs.inspect(first)["tensors"]][1] is not None


def test_shards_are_rewritten(chain: tuple[Path, Path, Path], tmp_path: Path) -> None:
    start, first, second = chain
    alone, short, back = tmp_path / "alone.bs", tmp_path / "short.bs", tmp_path / "back"
    report = bigsmall_rs.transcode(second, alone, base=[first, start], encoding="raw", md5=True)
    assert report["ratio"] >= 1 and set(report["files"][0]["md5"]) == {"a", "b"}
    bigsmall_rs.rebase(second, short, onto=start, base=[first, start])
    assert bigsmall_rs.inspect(short)["files"][0]["bases"][0]["bases_behind"] == 0
    for shard, base in ((alone, ()), (short, start)):
        bigsmall_rs.restore(shard, back, base=base, replace=True)
        assert back.read_bytes() == (tmp_path / "2").read_bytes()
    with pytest.raises(BigsmallError) as wrong:
        bigsmall_rs.transcode(second, tmp_path / "none")
    assert wrong.value.rule == "BaseMissing"
    with pytest.raises(BigsmallError) as wrong:
        bigsmall_rs.rebase(alone, short, onto=start)
    assert wrong.value.rule == "OutputExists"


def test_limits_and_warnings_of_restore(tmp_path: Path) -> None:
    zeros, shard, back = (tmp_path / name for name in ("zeros", "shard", "back"))
    # A file with a hole, of which a gigabyte and more is restored.
    n = 1_100_000_000
    header = json.dumps({"a": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(zeros, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n)
    bigsmall_rs.compress(zeros, shard)
    zeros.unlink()
    with pytest.raises(BigsmallError) as wrong:
        bigsmall_rs.verify(shard, max_expansion=100)
    assert wrong.value.rule == "Expansion"
    with pytest.raises(BigsmallError):
        bigsmall_rs.restore(shard, back, max_expansion=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="restore to"):
            bigsmall_rs.restore(shard, back)
    assert [file.name for file in tmp_path.iterdir()] == ["shard"]
    with pytest.warns(UserWarning, match=f"restore to {8 + len(header) + n} bytes") as given:
        bigsmall_rs.restore(shard, back, ignore_free_space=True)
    assert given[0].filename == __file__
    back.unlink()


def test_what_a_callback_raises_stops_the_job(large: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bigsmall_rs.compress(large, tmp_path / "large.bs", progress=stop)
    with pytest.raises(ZeroDivisionError):
        shards.save_file(load_file(large), tmp_path / "large.bs", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_true_means_a_bar(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = shards.load_file(shard, progress=True)
    shards.save_file(tensors, tmp_path / "saved.bs", progress=True)
    with bigsmall_rs.open(shard) as file:
        file.read_many_into({"mask": bytearray(3)}, True)
    # Each bar is drawn over itself, and ends its line when it is full.
    lines = capsys.readouterr().err.split("\n")
    full = [line.rsplit("\r", 1)[-1].split("|")[0] for line in lines if line]
    assert full == ["load: 100%", "save: 100%", "load: 100%"]


def test_ctrl_c_stops_a_job(large: Path, tmp_path: Path) -> None:
    program = (
        "import signal, sys, bigsmall_rs\n"
        # A shell's background jobs inherit that SIGINT is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('begun', flush=True)\n"
        "bigsmall_rs.compress(sys.argv[1], sys.argv[2], level='small')\n"
        "print('done')\n"
    )
    command = [sys.executable, "-c", program, large, tmp_path / "large.bs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as job:
        assert job.stdout is not None and job.stdout.readline() == "begun\n"
        time.sleep(0.3)
        begin = time.monotonic()
        job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and "done" not in out
    assert time.monotonic() - begin < 5
    assert list(tmp_path.iterdir()) == []


def test_threads_read_side_by_side(shard: Path, tensors: dict[str, np.ndarray]) -> None:
    with bigsmall_rs.open(shard) as file, ThreadPoolExecutor(8) as pool:
        names = list(tensors) * 20
        for name, found in zip(names, pool.map(file.get_tensor, names)):
            assert found.tobytes() == tensors[name].tobytes()


def test_the_gil_is_released(large: Path) -> None:
    turns, stop = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    before = turns
    bigsmall_rs.compress(large, large.with_suffix(".bs"), dry_run=True)
    after = turns
    stop.set()
    counter.join()
    assert after - before > 20


def _sum(file: bigsmall_rs.File) -> float:
    return float(file.get_tensor("layers.0.w").sum())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_children_by_fork_and_by_spawn(shard: Path) -> None:
    with bigsmall_rs.open(shard) as file:
        expected = _sum(file)
        for way in ("fork", "spawn"):
            with multiprocessing.get_context(way).Pool(2) as pool:
                found = pool.map_async(_sum, [file] * 4).get(timeout=60)
            assert found == [expected] * 4


def test_bytes_in_memory(shard: Path, tensors: dict[str, np.ndarray]) -> None:
    file = bigsmall_rs.File.from_bytes(shard.read_bytes())
    assert np.array_equal(file.get_tensor("layers.1.w"), tensors["layers.1.w"])
    with pytest.raises(BigsmallError):
        bigsmall_rs.File.from_bytes(b"not a shard")
    with pytest.raises(TypeError):
        pickle.dump(file, io.BytesIO())


def test_the_command(original: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bigsmall_rs", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out, back = tmp_path / "out.bs", tmp_path / "back.safetensors"
    assert json.loads(run("compress", original, "-o", out, "--json").stdout)["ratio"] < 1
    again = run("compress", original, "-o", out)
    assert again.returncode == 1 and "--force" in again.stderr
    assert run("verify", out).returncode == 0
    assert "layers.0.w" in run("inspect", out).stdout
    assert run("restore", out, "-o", back).returncode == 0
    assert back.read_bytes() == original.read_bytes()
    of_base, other = tmp_path / "of_base.bs", tmp_path / "other.bs"
    assert run("compress", original, "-o", of_base, "--base", out).returncode == 0
    assert run("verify", of_base).returncode == 1
    assert run("verify", of_base, "--base", out).returncode == 0
    assert "base sha256" in run("inspect", of_base).stdout
    assert run("transcode", of_base, "-o", other, "--base", out).returncode == 0
    assert run("rebase", other, "-o", of_base, "--onto", original, "--force").returncode == 0
    assert run("restore", of_base, "-o", back, "--base", original, "--force").returncode == 0
    assert back.read_bytes() == original.read_bytes()
    assert "about" in run("estimate", original).stdout
    assert json.loads(run("estimate", original, "--json").stdout)["ratio"] < 1
    hidden = tmp_path / "model"
    hidden.mkdir()
    shutil.copy(original, hidden)
    (hidden / ".hidden").touch()
    assert "left out '.hidden'" in run("compress", hidden, "-o", tmp_path / "a").stdout
    assert "left out" not in run("compress", hidden, "-o", tmp_path / "b", "--hidden").stdout
    (tmp_path / "b" / ".hidden").unlink()
    assert run("index", tmp_path / "b", "--original", hidden, "--hidden").returncode == 0
    assert (tmp_path / "b" / ".hidden").exists()
    for arguments in (["inspect", out], ["inspect", out, "--json"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "bigsmall_rs", *map(str, arguments)]
        gone = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
        os.close(write)
        assert (gone.returncode, gone.stderr) == (0, b"")


def test_import_is_quick_and_brings_no_framework() -> None:
    program = (
        "import sys, time; t = time.process_time(); import bigsmall_rs\n"
        "print(time.process_time() - t)\n"
        "assert not {'numpy', 'torch', 'transformers', 'tqdm'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    times = [float(subprocess.check_output(command)) for _ in range(3)]
    assert min(times) < 0.06, times
