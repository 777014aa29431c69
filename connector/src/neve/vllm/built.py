"""The model as vLLM built it in this rank: its classes and tables, and a digest of its weights.

vLLM gives a connector the attention layers, not the model. The garbage collector knows which
modules hold those layers.
"""

import gc
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, Self

import torch
from torch import nn

from neve.errors import Misuse

# How a step is run: no influence on values.
_NOT_THE_MODEL = frozenset(("training", "do_not_compile", "use_flashinfer", "_enforce_enable"))
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# vLLM's shared layers: settings decide their flags, and settings count already.
_SHARED_LAYERS = "vllm.model_executor.layers."
# Wrappers for LoRA adapters, which change nothing while no adapter is used.
_ADAPTER_LAYERS = "vllm.lora."
# Weights of vLLM's mixtures of experts, in every quantization.
_EXPERTS = ("w13_", "w2_")


class BuiltModel:
    """The model, and a drafter if there is one."""

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self._roots = sorted(roots, key=_name)

    @classmethod
    def holding(cls, layers: Iterable[Any]) -> Self:
        """The models that hold `layers`. Visits every object of the process once (0.2 s).

        Raises `Misuse` if a layer belongs to no model.
        """
        modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
        children = {id(child) for each in modules for child in each.children()}
        missing = {id(layer): layer for layer in layers}
        roots = []
        for root in modules:
            held = [id(each) for each in root.modules()] if id(root) not in children else ()
            if not missing.keys().isdisjoint(held):
                roots.append(root)
                for each in held:
                    missing.pop(each, None)
        if missing or not roots:
            raise Misuse("can't find the model that vLLM built around its attention layers")
        return cls(roots)

    def describe(self) -> list[str]:
        """What decides values: classes of modules and of their quantization, dtypes of parameters,
        numbers that modules were made with, and tables (RoPE) that no checkpoint holds.

        Sorted and without repetitions, so that it is equal for every TP rank.
        """
        found = {f"model {_name(root)}" for root in self._roots}
        for module in self._modules():
            name = _name(module)
            method = getattr(module, "quant_method", None)
            dtypes = sorted({str(each.dtype) for each in module.parameters(recurse=False)})
            found.add(f"{name} {_name(method) if method is not None else ''} {','.join(dtypes)}")
            tables = list(_tables(module))
            found.update(f"{name} table {table}" for table in tables)
            kinds: tuple[type, ...] = (float,)
            if tables or not name.startswith(_SHARED_LAYERS):
                kinds = (float, bool)
            for key, value in vars(module).items():
                if type(value) in kinds and key not in _NOT_THE_MODEL:
                    found.add(f"{name} {key}={value!r}")
        return sorted(found)

    def weights(self) -> bytes:
        """16 bytes over all weights as they are now in this rank's memory.

        Reads all weights once: 16 GB take some 20 ms on a GPU, seconds on a CPU. A tensor counts by
        the sums of its rows and columns; weights that a kernel packed invisibly count by their
        output for a fixed input.
        """
        digest = blake2b(digest_size=16)
        with torch.inference_mode():
            for module in self._modules():
                for name, weight in module.named_parameters(recurse=False):
                    if weight.is_meta:
                        continue
                    seen = weight if weight.numel() else _answer(module)
                    _add(digest, name, weight, seen)
        return digest.digest()

    def selective_weights(self) -> str:
        """Digest of the weights that only some tokens reach, and that KV depends on: rows of
        embeddings, and experts below the last layer. Hex, equal for equal weights of one rank.

        Prompts that leave them out show no difference.
        """
        digest = blake2b(digest_size=16)
        with torch.inference_mode():
            for root in self._roots:
                found = [(_layer(name), module) for name, module in root.named_modules()]
                last = max(number for number, _ in found)
                for number, module in found:
                    for name, weight in module.named_parameters(recurse=False):
                        is_expert = name.startswith(_EXPERTS) and number < last
                        if weight.is_meta or not (is_expert or _is_embedding(module)):
                            continue
                        _add(digest, name, weight, weight)
        return digest.hexdigest()

    def _modules(self) -> Iterator[nn.Module]:
        for root in self._roots:
            for module in root.modules():
                if not type(module).__module__.startswith(_ADAPTER_LAYERS):
                    yield module


def _name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _layer(name: str) -> int:
    """The number of the layer that a module belongs to, by its name; -1: of none."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return int(numbers[0]) if numbers else -1


def _is_embedding(module: nn.Module) -> bool:
    """Of tokens or positions. The output head of a vLLM model is an embedding's subclass."""
    return isinstance(module, nn.Embedding) or type(module).__name__ == "VocabParallelEmbedding"


def _tables(module: nn.Module) -> Iterator[str]:
    """Digests of the module's buffers that were computed, not loaded."""
    for name in sorted(module._non_persistent_buffers_set):
        table = module._buffers.get(name)
        if table is None or not table.is_floating_point() or table.is_meta:
            continue
        raw = table.detach().float().cpu().contiguous().numpy().tobytes()
        digest = blake2b(raw, digest_size=16).hexdigest()
        yield f"{name} {table.dtype} {tuple(table.shape)} {digest}"


def _add(digest: blake2b, name: str, weight: torch.Tensor, seen: torch.Tensor) -> None:
    """`seen`: what stands for the weight's bytes."""
    digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
    for total in _sums(seen):
        digest.update(total.cpu().numpy().tobytes())


def _sums(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    bits = weight.detach().view(_INTEGER[weight.element_size()])
    bits = bits.reshape(bits.shape[0], -1) if bits.dim() > 1 else bits.reshape(1, -1)
    yield bits.sum(0, dtype=torch.int64)
    yield bits.sum(1, dtype=torch.int64)


def _answer(module: Any) -> torch.Tensor:
    """The output of a layer with packed weights for a fixed input, before ranks are summed."""
    weight = next(iter(module.parameters(recurse=False)))
    # A layer that every rank has whole, such as an experts' router, knows no partition.
    size = getattr(module, "input_size_per_partition", module.input_size)
    made_of = torch.arange(size, device=weight.device)
    asked = torch.cos(made_of.float()).to(weight.dtype).unsqueeze(0)
    answer: torch.Tensor = module.quant_method.apply(module, asked, None)
    return answer.clone()
