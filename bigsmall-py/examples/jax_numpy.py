"""Arrays of NumPy in bf16 from and to a shard, and on to JAX where it is installed."""

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

import bigsmall_rs
from bigsmall_rs.numpy import load_file, save_file


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.bs"
        values = np.random.default_rng(1).standard_normal((1000, 512)) * 0.02
        save_file({"w": values.astype(ml_dtypes.bfloat16)}, path, {"format": "np"})
        arrays = load_file(path)
        print(arrays["w"].dtype, arrays["w"].shape)
        with bigsmall_rs.open(path) as file:
            rows = file.get_slice("w")[10:13]
            assert np.array_equal(rows, arrays["w"][10:13])
            print(f"{path.stat().st_size / file.tensors['w'][2]:.2f} of the bytes")
        try:
            import jax.numpy as jnp
        except ImportError:
            print("JAX is not installed")
        else:
            print(jnp.asarray(arrays["w"]).sum())


main()
