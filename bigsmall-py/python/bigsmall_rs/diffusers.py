"""Models of diffusers from folders of shards, without patching diffusers.

    from bigsmall_rs.diffusers import from_pretrained
    from diffusers import DiffusionPipeline, UNet2DConditionModel

    unet = from_pretrained("unet.bs", UNet2DConditionModel)
    pipeline = DiffusionPipeline.from_pretrained("pipeline/", unet=unet)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ._errors import BigsmallError
from ._file import File
from ._jobs import Base

__all__ = ["from_pretrained"]


def from_pretrained(
    path: str | os.PathLike[str],
    model_class: Any = None,
    *,
    torch_dtype: Any = None,
    device: Any = "cpu",
    budget: int | None = None,
    base: Base = (),
    **kwargs: Any,
) -> Any:
    """What `model_class.from_pretrained` makes of the original folder: the same weights, bit by
    bit, decoded straight into the memory of the model. Needs the package accelerate.

    Args:
        path: A folder of shards that `bigsmall_rs.compress` made of a model's folder, such as
            the `unet` of a pipeline.
        model_class: A class of diffusers. `None`: the one that `config.json` names.
        torch_dtype: The dtype of the model. Tensors are converted where that of the file differs.
            `None`: that of the class, which is float32.
        device: Where the model is made.
        budget: As in `bigsmall_rs.torch.StreamingLoader`.
        base: As in `bigsmall_rs.open`.
        **kwargs: Values of the configuration that replace those of `config.json`.

    Returns:
        The model in evaluation mode.

    Raises:
        RuntimeError: Names are missing or unexpected, or a shape differs.
        ValueError: No class was given, and the configuration names none that diffusers has.
        BigsmallError: Not a folder of shards; damage.
    """
    import diffusers
    import torch
    from accelerate import init_empty_weights

    from .torch import _fill

    folder = Path(path)
    if folder.is_file():
        message = f"{folder}: expected a folder with config.json, found a file"
        raise BigsmallError(message, rule="Argument", file=str(folder))
    # Before the configuration: the error for a folder that is not there is ours.
    with File(folder, "pt", base=base) as file:
        config = json.loads((folder / "config.json").read_text())
        cls = model_class or getattr(diffusers, config.get("_class_name", ""), None)
        if cls is None:
            named = config.get("_class_name")
            raise ValueError(f"{folder}: give model_class; config.json names the class {named!r}")
        before = torch.get_default_dtype()
        try:
            if torch_dtype is not None:
                torch.set_default_dtype(torch_dtype)
            with init_empty_weights(include_buffers=False):
                model = cls.from_config(config, **kwargs)
        finally:
            torch.set_default_dtype(before)
        if torch_dtype is not None:
            _keep_float32(model, getattr(cls, "_keep_in_fp32_modules", None))
        _fill(model, file, True, device, budget)
    model.register_to_config(_name_or_path=str(path))
    return model.to(device).eval()


def _keep_float32(model: Any, modules: Any) -> None:
    """Some classes name modules whose parameters are float32 in a model of any dtype."""
    import torch

    modules = [modules] if isinstance(modules, str) else modules or []
    for name, parameter in list(model.named_parameters()):
        if any(module in name.split(".") for module in modules):
            path, _, own = name.rpartition(".")
            kept = torch.nn.Parameter(parameter.to(torch.float32), parameter.requires_grad)
            model.get_submodule(path)._parameters[own] = kept
