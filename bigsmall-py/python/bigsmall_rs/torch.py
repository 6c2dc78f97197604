"""Tensors of PyTorch from and to shards: the functions of `safetensors.torch`, and more.

Weights that are decoded at load cost nothing in inference. On a CPU the weights themselves are in
memory afterwards. `StreamingLoader` with a device keeps one layer in main memory at a time.
`offload` keeps the weights compressed and decodes them in every forward pass, which costs time.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from . import _bigsmall, _pt
from ._errors import BigsmallError
from ._file import File, Slice
from ._jobs import Base, Encoding, Level, Progress, Shown

__all__ = [
    "LazyStateDict",
    "StreamingLoader",
    "lazy_state_dict",
    "load",
    "load_file",
    "load_model",
    "offload",
    "save",
    "save_file",
    "save_model",
]

# Bytes of main memory that reading takes beside the tensors.
_READING = 32 << 20

Path = str | os.PathLike[str]
Device = str | int | torch.device


def load_file(
    filename: Path,
    device: Device = "cpu",
    *,
    base: Base = (),
    backend: str | None = None,
    progress: Progress | bool | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of a shard or a folder of shards, decoded straight into their memory.

    Memory: the tensors and 32 MiB; with another device than the CPU one layer of main memory.
    `base` is as in `bigsmall_rs.open`, `progress` as in `File.get_tensors`. `backend` is for calls
    written for safetensors and means nothing: there is one way to read.

    Raises:
        BigsmallError: The file is damaged, or this PyTorch lacks a dtype.
        FileNotFoundError: There is nothing at `filename`.
    """
    with File(filename, "pt", device, base) as file:
        return file.get_tensors(progress=progress)


def load(data: Any, *, base: Base = ()) -> dict[str, torch.Tensor]:
    """All tensors of the shard in the bytes `data`."""
    with File.from_bytes(data, "pt", base=base) as file:
        return file.get_tensors()


def save_file(
    tensors: dict[str, torch.Tensor],
    filename: Path,
    metadata: dict[str, str] | None = None,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
    progress: Progress | bool | None = None,
) -> None:
    """Saves tensors as a shard, which restores to what `safetensors.torch.save_file` writes.

    An existing file is replaced once the new one is complete and checked. Tensors on a device are
    copied to main memory. `progress` is as in `bigsmall_rs.compress`.

    Raises:
        ValueError: A tensor is sparse or not contiguous.
        RuntimeError: Tensors share memory; `save_model` deals with those of a module.
        BigsmallError: safetensors has no such dtype; writing failed.
        KeyboardInterrupt: Ctrl-C. An existing file is as it was.
    """
    given, kept = _given(tensors)
    with Shown("save", progress) as callback:
        _bigsmall.save(filename, given, metadata, encoding, level, True, callback)
    del kept


def save(
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
) -> builtins.bytes:
    """The shard that `save_file` writes, as bytes."""
    given, kept = _given(tensors)
    data = _bigsmall.save_bytes(given, metadata, encoding, level)
    del kept
    return data


def _given(tensors: dict[str, torch.Tensor]) -> tuple[list[Any], list[Any]]:
    if not isinstance(tensors, dict):
        raise ValueError(f"Expected a dict of [str, torch.Tensor] but received {type(tensors)}")
    pairs = [_pt.given(name, tensor) for name, tensor in tensors.items()]
    shared = [names for names in _sharing(tensors) if len(names) > 1]
    if shared:
        raise RuntimeError(
            f"Some tensors share memory, which loading would not restore: {shared}. Use "
            "`save_model`, or `.clone()` them."
        )
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _sharing(tensors: Mapping[str, torch.Tensor]) -> list[set[str]]:
    """Groups of names whose tensors have bytes in common, in the order of their first names."""
    ranges = []
    for place, (name, tensor) in enumerate(tensors.items()):
        if tensor.numel() > 0 and tensor.device.type != "meta" and tensor.layout == torch.strided:
            steps = zip(tensor.shape, tensor.stride())
            last = sum((n - 1) * stride for n, stride in steps)
            end = tensor.data_ptr() + (last + 1) * tensor.element_size()
            ranges.append((str(tensor.device), tensor.data_ptr(), end, place, name))
    groups: list[tuple[int, set[str]]] = []
    reached: tuple[str, int] = ("", 0)
    for device, begin, end, place, name in sorted(ranges):
        if groups and reached[0] == device and begin < reached[1]:
            first, names = groups[-1]
            groups[-1] = (min(first, place), names | {name})
            reached = (device, max(reached[1], end))
        else:
            groups.append((place, {name}))
            reached = (device, end)
    return [names for _, names in sorted(groups, key=lambda group: group[0])]


def _aliases(model: torch.nn.Module) -> dict[str, str]:
    """Names of tensors that are another one's, and whose: of a group the first in sorted order."""
    state = model.state_dict(keep_vars=True)
    # On the meta device there is no memory to share, but the same parameter.
    owners: dict[int, str] = {}
    found = {}
    for name in sorted(state):
        owner = owners.setdefault(id(state[name]), name)
        if owner != name:
            found[name] = owner
    for names in _sharing(state):
        first, *others = sorted(names)
        found |= {name: first for name in others if _same(state[name], state[first])}
    return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    def facts(t: torch.Tensor) -> Any:
        return t.data_ptr(), t.shape, t.stride(), t.dtype, t.is_conj(), t.is_neg()

    return facts(a) == facts(b)  # type: ignore[no-any-return]


def save_model(
    model: torch.nn.Module,
    filename: Path,
    metadata: dict[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    encoding: Encoding = "ans",
    level: Level = "default",
) -> None:
    """Saves a module; of tied weights one is kept, as in `safetensors.torch.save_model`.

    Raises:
        ValueError: A tensor is not contiguous, and `force_contiguous` is not set.
        RuntimeError: Tensors share memory without being the same.
    """
    aliases = _aliases(model)
    metadata = dict(metadata or {})
    for name, first in aliases.items():
        metadata.setdefault(name, first)
    state = {name: t for name, t in model.state_dict().items() if name not in aliases}
    if force_contiguous:
        state = {name: t.contiguous() for name, t in state.items()}
    save_file(state, filename, metadata or None, encoding=encoding, level=level)


def load_model(
    model: torch.nn.Module,
    filename: Path,
    strict: bool = True,
    device: Device = "cpu",
    *,
    base: Base = (),
    backend: str | None = None,
) -> tuple[set[str], list[str]]:
    """Loads a shard or a folder of shards into a module, as `safetensors.torch.load_model` does.

    Where a parameter is contiguous, on the CPU and of the file's dtype, its values are decoded
    straight into it: no second copy is made. Parameters on the meta device are replaced.

    Args:
        model: The module.
        filename: The shard or folder.
        strict: Missing and unexpected names are an error.
        device: Where parameters that are replaced go.
        base: As in `bigsmall_rs.open`.
        backend: Means nothing here, as in `load_file`.

    Returns:
        Missing and unexpected names.

    Raises:
        RuntimeError: `strict`, and names are missing or unexpected; a shape differs.
        BigsmallError: The file is damaged.
    """
    with File(filename, "pt", device, base) as file:
        return _fill(model, file, strict, device, None)


def _fill(
    model: torch.nn.Module, file: File, strict: bool, device: Any, budget: int | None
) -> tuple[set[str], list[str]]:
    """Decodes `file` into `model`."""
    aliases = _aliases(model)
    aliases |= dict(getattr(model, "all_tied_weights_keys", None) or {})
    state = model.state_dict(keep_vars=True)
    infos = file.tensors
    have = set(infos)
    # Two tensors for one parameter: which of them would it be?
    doubled = {name for name, owner in aliases.items() if {name, owner} <= have}
    doubled = {name for name in doubled if name in state and aliases[name] in state}
    unexpected = sorted((have - set(state)) | doubled)
    missing = set()
    for name in set(state) - have:
        owner = aliases.get(name)
        tied = [owner, *(a for a, o in aliases.items() if o in (owner or name, name))]
        if not any(other in have for other in tied if other is not None):
            missing.add(name)
    wrong = [
        f"size mismatch for {name}: the file has {shape}, the model {tuple(state[name].shape)}"
        for name, (dtype, shape, _) in infos.items()
        if name in state and _pt.own_shape(dtype, shape) != tuple(state[name].shape)
    ]
    if wrong or (strict and (missing or unexpected)):
        lines = list(wrong)
        if strict and missing:
            lines.append(f"Missing key(s) in state_dict: {_quoted(sorted(missing))}")
        if strict and unexpected:
            lines.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}")
        raise RuntimeError(
            f"Error(s) in loading state_dict for {type(model).__name__}:\n    "
            + "\n    ".join(lines)
        )
    wanted = [name for name in infos if name in state and name not in doubled]
    # Where each tensor goes. A parameter on the meta device has no memory yet.
    targets = {name: state[name].detach() for name in wanted}
    bare = [name for name, to in targets.items() if to.device.type == "meta"]
    for name in bare:
        targets[name] = torch.empty_like(targets[name], device=_pt.place(device))
    straight: list[str] = []
    copied: list[str] = []
    for name, to in targets.items():
        fits = to.dtype == _pt.dtype(infos[name][0]) and _pt.is_plain(to)
        (straight if fits and to.device.type == "cpu" else copied).append(name)
    file._model.read_many_into([(name, _pt.buffer(targets[name])) for name in straight])
    _copy(file, {name: targets[name] for name in copied}, budget)
    for name in bare:
        _replace(model, name, targets[name])
    _tie(model, have, aliases)
    return missing, unexpected


def _copy(file: File, targets: Mapping[str, torch.Tensor], budget: int | None) -> None:
    """Decodes tensors and copies them to others of any dtype, on any device. Main memory holds a
    layer; with a budget what the budget says."""
    infos, steps = file.tensors, _layers_of(list(targets))
    room = None if budget is None else max(budget - _READING, _READING)
    if room is not None:
        steps = []
        left = 0
        for name in targets:
            if not steps or infos[name][2] > left:
                steps.append([])
                left = room
            steps[-1].append(name)
            left -= infos[name][2]
    for names in steps:
        dtype, shape, n = infos[names[0]]
        if room is not None and n > room and len(shape) > 1:
            # Too large by itself: some rows at a time.
            rows = max(1, room // (n // shape[0]))
            for begin in range(0, shape[0], rows):
                end = min(begin + rows, shape[0])
                part = _pt.empty(dtype, (end - begin, *shape[1:]))
                file._model.read_rows_into(names[0], begin, end, _pt.buffer(part))
                targets[names[0]][begin:end].copy_(part)
                del part
            continue
        made = {name: _pt.empty(*infos[name][:2]) for name in names}
        file._model.read_many_into([(name, _pt.buffer(t)) for name, t in made.items()])
        for name, tensor in made.items():
            targets[name].copy_(tensor)
        del made, tensor


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _layers_of(names: list[str]) -> list[list[str]]:
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(_bigsmall.layer_of(name), []).append(name)
    return list(layers.values())


def _replace(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Puts `tensor` in the place of the parameter or buffer `name`."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    old = module._parameters.get(own)
    if old is not None:
        floats = tensor.is_floating_point() or tensor.is_complex()
        module._parameters[own] = torch.nn.Parameter(tensor, old.requires_grad and floats)
    else:
        module._buffers[own] = tensor


def _tie(model: torch.nn.Module, have: set[str], aliases: Mapping[str, str]) -> None:
    """Ties weights again that were replaced."""
    tie = getattr(model, "tie_weights", None)
    if callable(tie):
        tie()
    for name, owner in aliases.items():
        state = model.state_dict(keep_vars=True)
        if name not in state or owner not in state:
            continue
        from_, to = (owner, name) if owner in have else (name, owner)
        if state[to].device.type == "meta" and state[from_].device.type != "meta":
            path, _, own = to.rpartition(".")
            module = model.get_submodule(path)
            if own in module._parameters:
                module._parameters[own] = state[from_]


class StreamingLoader:
    """The layers of a model in the order in which it runs, the next ones being read meanwhile.

        for name, tensors in StreamingLoader("model.bs", device="cuda"):
            ...

    Each step gives the layer's name and its tensors on `device`, by their full names. Main memory
    holds one layer and what is read ahead.

    Args:
        path: A shard, or a folder of shards.
        device: Where the tensors go.
        budget: The most bytes of main memory beside the tensors that are returned or filled, at
            least 64 MiB; `None`: the largest compressed layer and 64 MiB.
        base: As in `bigsmall_rs.open`.

    Raises:
        BigsmallError: Not a shard, damage, a budget that is too small.
    """

    def __init__(
        self,
        path: Path,
        device: Device = "cpu",
        budget: int | None = None,
        *,
        base: Base = (),
    ) -> None:
        self._path = os.fspath(path)
        self._file = File(path, "pt", device, base)
        self._base = base
        self._device = device
        self._budget = budget
        if budget is not None and budget < 64 << 20:
            raise BigsmallError("a budget must be at least 64 MiB", rule="Argument")

    @property
    def layers(self) -> list[str]:
        """The names of the layers, in order."""
        return self._file.layers

    def __len__(self) -> int:
        return len(self._file.layers)

    def __iter__(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        loader = _bigsmall.Loader(self._file._model, self._budget)
        while (layer := loader.peek()) is not None:
            name, infos = layer
            tensors = {info[0]: _pt.empty(info[1], info[2]) for info in infos}
            loader.next_into([(n, _pt.buffer(t)) for n, t in tensors.items()])
            yield name, {n: _pt.to_device(t, self._device) for n, t in tensors.items()}
            del tensors

    def load_model(self, model: Any, **kwargs: Any) -> torch.nn.Module:
        """A model with these weights, on the device.

        Main memory holds the budget beside the weights; without a budget one layer and 32 MiB.
        Models of transformers are loaded by transformers, which holds up to four tensors at once,
        whatever the budget.

        Args:
            model: A class of transformers (`MistralForCausalLM`, `AutoModelForCausalLM`) or of
                diffusers (`UNet2DConditionModel`), for which `path` is a folder with a
                `config.json`; any other class of modules, which is called with `kwargs`; or a
                module, also one on the meta device.
            **kwargs: For `from_pretrained` of that framework, or for the class.

        Returns:
            The module, in evaluation mode where it was made here.

        Raises:
            RuntimeError: Names are missing or unexpected, or a shape differs.
            BigsmallError: The file is damaged.
        """
        if not isinstance(model, type):
            _fill(model, self._file, True, self._device, self._budget)
            return model  # type: ignore[no-any-return]
        made: torch.nn.Module
        if _is_of_diffusers(model):
            from .diffusers import from_pretrained as of_diffusers

            made = of_diffusers(
                self._path,
                model,
                device=self._device,
                budget=self._budget,
                base=self._base,
                **kwargs,
            )
            return made
        if hasattr(model, "from_pretrained"):
            from .transformers import from_pretrained

            if str(self._device) != "cpu":
                kwargs.setdefault("device_map", self._device)
            made = from_pretrained(self._path, model_class=model, base=self._base, **kwargs)
            return made
        with _pt.place(self._device):
            made = model(**kwargs)
        _fill(made, self._file, True, self._device, self._budget)
        return made.eval()


def _is_of_diffusers(cls: type) -> bool:
    diffusers = sys.modules.get("diffusers")
    return diffusers is not None and issubclass(cls, diffusers.ModelMixin)


class LazyStateDict(Mapping[str, torch.Tensor]):
    """A mapping of all tensors, each of which is decoded whenever it is asked for.

    It keeps the file open and nothing else in memory. `accelerate.cpu_offload(model, device,
    state_dict=...)` takes it.
    """

    def __init__(
        self,
        path: Path,
        device: Device = "cpu",
        aliases: Mapping[str, str] | None = None,
        *,
        base: Base = (),
    ) -> None:
        """`aliases` says which further names there are, and whose tensors they mean."""
        self._file = File(path, "pt", device, base)
        self._aliases = dict(aliases or {})

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._aliases.get(name, name)
        if name not in self._file:
            raise KeyError(name)
        return self._file.get_tensor(name)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        yield from self._file.offset_keys()
        yield from self._aliases

    def __len__(self) -> int:
        return len(self._file) + len(self._aliases)

    def __contains__(self, name: object) -> bool:
        return name in self._file or name in self._aliases

    def slices(self) -> dict[str, Slice]:
        """All tensors as slices, of which nothing is decoded before they are indexed."""
        return {name: self._file.get_slice(self._aliases.get(name, name)) for name in self}


def lazy_state_dict(path: Path, device: Device = "cpu", *, base: Base = ()) -> LazyStateDict:
    """A state dict whose tensors are decoded whenever they are asked for; `base` is as in
    `bigsmall_rs.open`.

    Raises:
        BigsmallError: Not a shard or not a folder of shards.
    """
    return LazyStateDict(path, device, base=base)


def offload(
    model: torch.nn.Module, path: Path, device: Device = "cpu", *, base: Base = ()
) -> torch.nn.Module:
    """Has a module decode its weights in every forward pass, submodule by submodule.

    The weights stay compressed in the file; memory holds those of one submodule. Each forward pass
    costs the time to decode all of them. Needs the package accelerate.

    Args:
        model: The module, best made on the meta device (`accelerate.init_empty_weights`, with
            `include_buffers=False`).
        path: The shard, or the folder of shards.
        device: Where the forward pass runs.
        base: As in `bigsmall_rs.open`.

    Returns:
        The same module.

    Raises:
        RuntimeError: The file lacks weights of the module.
        BigsmallError: Not a shard or not a folder of shards.
    """
    from accelerate import cpu_offload

    names = set(model.state_dict())
    with File(path, "pt") as file:
        have = set(file.tensors)
    tied = _aliases(model) | dict(getattr(model, "all_tied_weights_keys", None) or {})
    aliases = {}
    for name, owner in tied.items():
        if name not in have and owner in have:
            aliases[name] = owner
        elif owner not in have and name in have:
            aliases[owner] = name
    missing = names - have - set(aliases)
    if missing:
        raise RuntimeError(f"{os.fspath(path)} lacks {', '.join(sorted(missing))}")
    state = LazyStateDict(path, "cpu", aliases, base=base)
    # With meta parameters accelerate needs nothing of the module but its shape.
    cpu_offload(model, execution_device=torch.device(device), state_dict=state)
    return model
