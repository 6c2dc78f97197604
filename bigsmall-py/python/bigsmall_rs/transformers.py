"""Models of transformers from folders of shards, without patching transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ._errors import BigsmallError
from ._jobs import Base
from .torch import LazyStateDict

__all__ = ["from_pretrained"]

# Arguments that belong to fetching, and not to the model's class.
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")


def from_pretrained(
    path_or_hub_id: str | os.PathLike[str],
    model_class: Any = None,
    *,
    base: Base = (),
    **kwargs: Any,
) -> Any:
    """What `model_class.from_pretrained` makes of the original folder: the same weights, bit by
    bit, each decoded straight into memory when transformers asks for it.

    Args:
        path_or_hub_id: A folder of shards that `bigsmall_rs.compress` made of a model's folder, or
            a repository of the Hugging Face Hub with such a folder, which `huggingface_hub`
            fetches.
        model_class: A class of transformers, concrete or Auto. `None`: the class that `config.json`
            names under `architectures`.
        base: As in `bigsmall_rs.open`.
        **kwargs: Those of transformers' `from_pretrained`: `dtype`, `device_map`,
            `attn_implementation`, `config`, `output_loading_info`, ...; `revision`, `token`,
            `cache_dir`, `local_files_only` for the Hub.

    Returns:
        The model in evaluation mode; with `output_loading_info` also what was found.

    Raises:
        BigsmallError: Not a folder of shards; damage.
        ValueError: No class was given and the config names none that transformers has.
    """
    import transformers

    hub = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
    folder = _folder(path_or_hub_id, hub)
    trust = kwargs.get("trust_remote_code", False)
    config = kwargs.pop("config", None)
    if config is None or isinstance(config, (str, os.PathLike)):
        config = transformers.AutoConfig.from_pretrained(
            folder if config is None else config, trust_remote_code=trust
        )
    cls = _concrete(transformers, model_class, config, folder, trust)
    if not trust:
        kwargs.pop("trust_remote_code", None)
    generation = folder / "generation_config.json"
    state = LazyStateDict(folder, base=base)
    config.name_or_path = str(path_or_hub_id)
    kwargs.setdefault("dtype", kwargs.pop("torch_dtype", "auto"))
    if kwargs["dtype"] == "auto":
        kwargs["dtype"] = _dtype(config, state)
    result = cls.from_pretrained(None, config=config, state_dict=state.slices(), **kwargs)
    model = result[0] if isinstance(result, tuple) else result
    if generation.is_file() and getattr(model, "generation_config", None) is not None:
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return result


def _folder(path: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        raise BigsmallError(
            f"{os.fspath(path)}: expected a folder with config.json, found a file",
            rule="Argument",
            file=os.fspath(path),
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.bs", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
    options = {k: v for k, v in hub.items() if v is not None}
    return Path(snapshot_download(os.fspath(path), allow_patterns=patterns, **options))


def _dtype(config: Any, state: LazyStateDict) -> Any:
    """What `dtype="auto"` means: the config's, or else that of the first floats in the file."""
    import torch

    from . import _pt

    found = getattr(config, "dtype", None)
    if found is not None:
        return getattr(torch, found) if isinstance(found, str) else found
    for dtype, _, _ in state._file.tensors.values():
        if dtype in ("F64", "F32", "F16", "BF16"):
            return _pt.dtype(dtype)
    return torch.get_default_dtype()


def _concrete(transformers: Any, cls: Any, config: Any, folder: Path, trust: bool) -> Any:
    """The class of the model. An Auto class is not a model class itself."""
    if cls is not None and not hasattr(cls, "_model_mapping"):
        return cls
    names = list(getattr(config, "architectures", None) or [])
    remote = getattr(config, "auto_map", None) or {}
    if trust and cls is not None and cls.__name__ in remote:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote[cls.__name__], folder)
    if cls is not None:
        # Auto classes make a model of a config without weights: on the meta device that costs
        # nothing, and says which class they would take.
        import torch

        with torch.device("meta"):
            return type(cls.from_config(config))
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    found = json.dumps(names)
    raise ValueError(f"{folder}: give model_class; config.json names the architectures {found}")
