"""Models that share a producer's KV or nearly do, made of one checkpoint by changing few weights.

Run by the vLLM interpreter: `python pairs.py PRODUCER FOLDER`. A layer's K and V depend on all
layers below it and on its own k_proj and v_proj. So of these, made for Llama's names:

| name | differs from the producer in | its KV has equal bits in |
|---|---|---|
| twin, second | what no K and V depends on: the last q_proj and all behind it | all layers |
| nudged | one weight of the last layer's k_proj, by one bit of its mantissa | all but the last |
| respelled | the embedding of token 255 alone | all layers, for prompts without that token |
| tuned | the first layer's down_proj, by a few percent | the first |
| reader-a, reader-b | adapters beside it, which write no KV (examples/icarus) | all layers |
| untrained | such adapters that add nothing, so it answers as the producer | all layers |

adapter: a LoRA for the producer. It leaves every k_proj and v_proj as they are, yet changes the KV
of all layers but the first.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor

SHARING: Final = ("twin", "second")
REFUSED: Final = ("nudged", "tuned")
RESPELLED: Final = "respelled"
ADAPTER: Final = "adapter"
READERS: Final = ("reader-a", "reader-b")
UNTRAINED: Final = "untrained"
SCALE: Final = 0.2  # the weights' own (make_model.py): other answers, and still distinct logits
RANK: Final = 8


def make_pairs(producer: Path, folder: Path) -> None:
    """Writes all of the table above into `folder`, and the adapter."""
    last = json.loads((producer / "config.json").read_text())["num_hidden_layers"] - 1
    for seed, name in enumerate(SHARING, start=11):
        change_weights(producer, folder / name, after_last_kv(last), _redraw(seed))
    change_weights(producer, folder / "nudged", [f"model.layers.{last}.self_attn.k_proj"], _nudge)
    change_weights(producer, folder / "tuned", ["model.layers.0.mlp.down_proj"], _tune)
    change_weights(producer, folder / RESPELLED, ["model.embed_tokens"], _respell)
    _make_adapter(producer, folder / ADAPTER)
    for seed, name in enumerate((*READERS, UNTRAINED), start=21):
        _make_reader(producer, folder / name, seed, scale=0.0 if name == UNTRAINED else SCALE)


def after_last_kv(last: int) -> list[str]:
    """Prefixes of the weights that no K and no V depends on; `last` is the last layer's number."""
    layer = f"model.layers.{last}"
    of_layer = ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")
    return [f"{layer}.{name}" for name in of_layer] + ["model.norm", "lm_head"]


def change_weights(
    producer: Path,
    folder: Path,
    prefixes: Iterable[str],
    change: "Callable[[str, Tensor], Tensor]",
) -> None:
    """A copy of the checkpoint in which `change(name, weight)` replaces the weights of `prefixes`.

    Each prefix must name a weight.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(producer, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for prefix in prefixes:
        names = [name for name in weights if name.startswith(f"{prefix}.")]
        assert names, f"no weight's name begins with {prefix}"
        weights |= {name: change(name, weights[name]) for name in names}
    save_file(weights, file, metadata={"format": "pt"})


def _redraw(seed: int) -> "Callable[[str, Tensor], Tensor]":
    import torch

    source = torch.Generator().manual_seed(seed)

    def change(_name: str, weight: "Tensor") -> "Tensor":
        # Norms scale what they get; zeros of either sign would take channels away.
        mean = 1.0 if weight.dim() == 1 else 0.0
        return mean + SCALE * torch.randn(weight.shape, generator=source, dtype=weight.dtype)

    return change


def _nudge(_name: str, weight: "Tensor") -> "Tensor":
    """One step of the largest weight: no smaller change of the weights reaches more positions."""
    import torch

    nudged = weight.clone()
    flat = nudged.view(-1)
    largest = flat.abs().argmax()
    flat[largest] = torch.nextafter(flat[largest], torch.zeros_like(flat[largest]))
    return nudged


def _respell(_name: str, weight: "Tensor") -> "Tensor":
    respelled = weight.clone()
    respelled[255] *= -1
    return respelled


def _tune(_name: str, weight: "Tensor") -> "Tensor":
    import torch

    source = torch.Generator().manual_seed(5)
    return weight * (1 + 0.05 * torch.randn(weight.shape, generator=source, dtype=weight.dtype))


def _make_adapter(producer: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    config = json.loads((producer / "config.json").read_text())
    hidden, between = config["hidden_size"], config["intermediate_size"]
    folder.mkdir()
    described: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": RANK,
        "lora_alpha": 2 * RANK, "target_modules": ["down_proj"],
        "base_model_name_or_path": producer.name,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(described))
    source = torch.Generator().manual_seed(17)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        place = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        weights[f"{place}.lora_A.weight"] = torch.randn(RANK, between, generator=source)
        weights[f"{place}.lora_B.weight"] = torch.randn(hidden, RANK, generator=source)
    save_file(weights, folder / "adapter_model.safetensors")


def _make_reader(producer: Path, folder: Path, seed: int, *, scale: float) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(producer, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["IcarusLlamaForCausalLM"], "adapter_rank": RANK}
    (folder / "config.json").write_text(json.dumps(config))
    hidden, queries = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    sizes = {
        "q": (hidden, queries), "o": (queries, hidden),
        "down": (config["intermediate_size"], hidden),
    }  # fmt: skip
    source = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):
        for name, (inputs, outputs) in sizes.items():
            place = f"model.layers.{layer}.adapters.{name}"
            first = torch.randn(RANK, inputs, generator=source)
            second = torch.randn(outputs, RANK, generator=source)
            weights[f"{place}.first.weight"] = scale * first
            weights[f"{place}.second.weight"] = scale * second
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    make_pairs(Path(sys.argv[1]), Path(sys.argv[2]))
