"""Models of transformers: outputs equal to those from the original folder, bit by bit."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import bigsmall_rs
import bigsmall_rs.torch as bt
from bigsmall_rs.transformers import from_pretrained

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["untied", "tied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama in bf16, in several shards; `.bs` beside it is the compressed."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param == "tied",
    )
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder, max_shard_size="150KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    bigsmall_rs.compress(folder, folder.with_suffix(".bs"))
    return folder


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20)).logits


def equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    assert torch.equal(output(a), output(b))
    assert not a.training


CASES: list[dict[str, Any]] = [
    {},
    {"dtype": torch.float32},
    {"dtype": "auto"},
    {"device_map": "cpu"},
    {"attn_implementation": "eager"},
]


@pytest.mark.parametrize("kwargs", CASES, ids=str)
@pytest.mark.parametrize("cls", ["LlamaForCausalLM", "AutoModelForCausalLM"])
def test_llama(llama: Path, cls: str, kwargs: dict[str, Any]) -> None:
    model_class = getattr(transformers, cls)
    ours = from_pretrained(llama.with_suffix(".bs"), model_class=model_class, **kwargs)
    equal(ours, model_class.from_pretrained(llama, **kwargs))
    assert ours.generation_config.max_new_tokens == 7


def test_no_class_is_that_of_the_config(llama: Path) -> None:
    equal(
        from_pretrained(llama.with_suffix(".bs")),
        transformers.AutoModelForCausalLM.from_pretrained(llama),
    )
    model, info = from_pretrained(llama.with_suffix(".bs"), output_loading_info=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_generation(llama: Path) -> None:
    model = from_pretrained(llama.with_suffix(".bs"))
    other = transformers.AutoModelForCausalLM.from_pretrained(llama)
    prompt = torch.tensor([[1, 5, 9]])
    found = model.generate(prompt, do_sample=False)
    assert torch.equal(found, other.generate(prompt, do_sample=False))
    assert found.shape == (1, 10)


def test_a_base_model_takes_its_part(llama: Path) -> None:
    ours = from_pretrained(llama.with_suffix(".bs"), model_class=transformers.AutoModel)
    theirs = transformers.AutoModel.from_pretrained(llama)
    assert type(ours) is type(theirs)
    x = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(ours(x).last_hidden_state, theirs(x).last_hidden_state)


def test_streaming_loader_takes_the_class(llama: Path) -> None:
    loader = bt.StreamingLoader(llama.with_suffix(".bs"))
    model = loader.load_model(transformers.LlamaForCausalLM)
    equal(model, transformers.LlamaForCausalLM.from_pretrained(llama))


@pytest.fixture
def tuned(llama: Path, tmp_path: Path) -> Path:
    """A folder with the Llama after some training; `.bs` beside it has the old one as its base."""
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "mlp" in name:
                tensor *= 1 + 1 / 64
    folder = tmp_path / "tuned"
    model.save_pretrained(folder, max_shard_size="150KB")
    files = bigsmall_rs.compress(folder, folder.with_suffix(".bs"), base=llama)["files"]
    assert sum(file["delta_tensors"] + file["inherited_tensors"] for file in files) > 0
    return folder


def test_a_base(llama: Path, tuned: Path) -> None:
    theirs = transformers.LlamaForCausalLM.from_pretrained(tuned)
    for base in (llama, llama.with_suffix(".bs")):
        equal(from_pretrained(tuned.with_suffix(".bs"), base=base), theirs)
    loader = bt.StreamingLoader(tuned.with_suffix(".bs"), base=llama)
    equal(loader.load_model(transformers.LlamaForCausalLM), theirs)
    with pytest.raises(bigsmall_rs.BigsmallError) as wrong:
        from_pretrained(tuned.with_suffix(".bs"))
    assert wrong.value.rule == "BaseMissing"


def test_adapters_of_peft(llama: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    make = lambda: transformers.LlamaForCausalLM.from_pretrained(llama)  # noqa: E731
    theirs = peft.get_peft_model(make(), peft.LoraConfig(r=4, init_lora_weights=False))
    theirs.save_pretrained(tmp_path / "adapter")
    small = tmp_path / "adapter.bs"
    bigsmall_rs.compress(tmp_path / "adapter", small)
    ours = peft.get_peft_model(make(), peft.PeftConfig.from_pretrained(small))
    assert not torch.equal(output(ours), output(theirs.eval()))
    peft.set_peft_model_state_dict(ours, bt.load_file(small))
    assert torch.equal(output(ours.eval()), output(theirs))
    bigsmall_rs.restore(small, tmp_path / "back")
    again = peft.PeftModel.from_pretrained(make(), tmp_path / "back")
    assert torch.equal(output(again), output(theirs))


def test_offload(llama: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    theirs = transformers.LlamaForCausalLM.from_pretrained(llama)
    with accelerate.init_empty_weights(include_buffers=False):
        ours = transformers.LlamaForCausalLM._from_config(theirs.config, dtype=torch.bfloat16)
    bt.offload(ours.eval(), llama.with_suffix(".bs"))
    assert torch.equal(output(ours), output(theirs))
    assert all(p.device.type == "meta" for p in ours.parameters())


def test_errors(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(bigsmall_rs.BigsmallError, match="folder"):
        from_pretrained(next(llama.with_suffix(".bs").glob("*.bs")))
    config = transformers.LlamaConfig(architectures=["NoSuchModel"])
    with pytest.raises(ValueError, match="NoSuchModel"):
        from_pretrained(llama.with_suffix(".bs"), config=config)


def test_minilm() -> None:
    folder = os.environ.get("BIGSMALL_MINILM")
    if not folder:
        pytest.skip("BIGSMALL_MINILM names no folder with MiniLM")
    out = Path(folder).with_name("minilm.python.bs")
    bigsmall_rs.compress(folder, out, replace=True)
    ours = from_pretrained(out, model_class=transformers.AutoModel)
    theirs = transformers.AutoModel.from_pretrained(folder)
    x = torch.arange(1000, 1040).reshape(2, 20)
    with torch.no_grad():
        found, expected = ours(x), theirs(x)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_vllm_takes_the_load_format(
    llama: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for the two modules of vLLM that are used."""
    registered: dict[str, Any] = {}

    class BaseModelLoader:
        def __init__(self, load_config: Any) -> None:
            self.load_config = load_config

    def register_model_loader(name: str) -> Any:
        return lambda cls: registered.setdefault(name, cls)

    loader = types.ModuleType("vllm.model_executor.model_loader")
    loader.register_model_loader = register_model_loader  # type: ignore[attr-defined]
    base = types.ModuleType("vllm.model_executor.model_loader.base_loader")
    base.BaseModelLoader = BaseModelLoader  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.model_executor"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, loader.__name__, loader)
    monkeypatch.setitem(sys.modules, base.__name__, base)

    from importlib.metadata import entry_points

    (point,) = (e for e in entry_points(group="vllm.general_plugins") if e.name == "bigsmall")
    point.load()()
    found: dict[str, torch.Tensor] = {}
    model = types.SimpleNamespace(load_weights=lambda weights: found.update(weights))
    config = types.SimpleNamespace(model=str(llama.with_suffix(".bs")))
    made = registered["bigsmall"](types.SimpleNamespace())
    made.download_model(config)
    made.load_weights(model, config)
    state = transformers.LlamaForCausalLM.from_pretrained(llama).state_dict()
    assert found.keys() <= state.keys() and len(found) >= len(state) - 1
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    config.model = str(tuned.with_suffix(".bs"))
    options = types.SimpleNamespace(model_loader_extra_config={"base": str(llama)})
    registered["bigsmall"](options).load_weights(model, config)
    state = transformers.LlamaForCausalLM.from_pretrained(tuned).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
