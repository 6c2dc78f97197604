"""vLLM reads folders of shards: `vllm serve FOLDER --load-format bigsmall`.

The entry point `vllm.general_plugins` of this package calls `register`: installing it is enough.
Weights are decoded when they are loaded, every block checked; inference costs nothing more.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ._jobs import Base

__all__ = ["register"]


def register() -> None:
    """Registers the load format `bigsmall` with vLLM.

    `config.json` of the model must say its `dtype`, or `--dtype` must be given: vLLM looks for it
    in safetensors files otherwise. Bases are given as
    `--model-loader-extra-config '{"base": "old/"}'`.
    """
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader("bigsmall")
    class BigsmallModelLoader(BaseModelLoader):  # type: ignore[misc]
        """Loads a folder of shards."""

        def download_model(self, model_config: Any) -> None:
            _folder(model_config, self.load_config)

        def load_weights(self, model: Any, model_config: Any) -> None:
            extra = getattr(self.load_config, "model_loader_extra_config", None) or {}
            folder = _folder(model_config, self.load_config)
            model.load_weights(_weights(folder, extra.get("base", ())))


def _folder(model_config: Any, load_config: Any) -> str:
    from .transformers import _folder as fetch

    hub = {
        "revision": getattr(model_config, "revision", None),
        "cache_dir": getattr(load_config, "download_dir", None),
    }
    name = getattr(model_config, "model_weights", None) or model_config.model
    return str(fetch(name, hub))


def _weights(folder: str, base: Base) -> Generator[tuple[str, Any], None, None]:
    """Names and tensors in main memory, layer by layer."""
    from .torch import StreamingLoader

    for _, tensors in StreamingLoader(folder, base=base):
        yield from tensors.items()
