"""Llama in two streams, as a vLLM plug-in: a frozen producer writes KV, a trained reader answers.

The producer's stream is the base model as it is: it computes K and V of every layer and writes
them. The reader's stream goes through the same weights plus low-rank adapters on q_proj, o_proj and
down_proj, which were trained; its queries attend to the producer's KV, and it writes none. Answers
come from the reader. So all readers of one producer, and the producer itself as a plain Llama, have
the same KV, bit by bit, and can share one cache.

Source: Woo et al., "ICaRus: Identical Cache Reuse for Efficient Multi-Model Inference", ICLR 2026
(arXiv 2603.13281), which calls the producer logical encoder and the reader logical decoder.

A checkpoint is the base model's with `"architectures": ["IcarusLlamaForCausalLM"]` and
`"adapter_rank": r` in config.json, and for each layer `adapters.{q,o,down}.{first,second}.weight`.
All weights are read twice in a step, once a stream. Not supported: pipeline parallelism.
"""

from itertools import islice
from typing import Any

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.sequence import IntermediateTensors

Stream = tuple[torch.Tensor, torch.Tensor | None]


class Adapter(nn.Module):
    """Two small matrices, split over ranks as the projection that they are added to."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)[0])[0]


class IcarusLayer(LlamaDecoderLayer):
    """A layer of the producer, with what its reader has of its own."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        config, own = vllm_config.model_config.hf_config, self.self_attn
        rank, queries = config.adapter_rank, own.total_num_heads * own.head_dim
        plain: dict[str, Any] = {"bias": False}
        self.adapters = nn.ModuleDict(
            {
                "q": Adapter(
                    ReplicatedLinear(self.hidden_size, rank, **plain),
                    ColumnParallelLinear(rank, queries, **plain),
                ),
                "o": Adapter(
                    RowParallelLinear(queries, rank, **plain),
                    ReplicatedLinear(rank, self.hidden_size, **plain),
                ),
                "down": Adapter(
                    RowParallelLinear(config.intermediate_size, rank, **plain),
                    ReplicatedLinear(rank, self.hidden_size, **plain),
                ),
            }
        )
        self.reading = Attention(
            own.num_heads,
            own.head_dim,
            own.scaling,
            num_kv_heads=own.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.reading",
            kv_sharing_target_layer_name=own.attn.layer_name,
        )

    def read(self, positions: torch.Tensor, stream: Stream) -> Stream:
        """One layer of the reader, after the producer's has written this step's K and V."""
        hidden, residual = stream
        if residual is None:
            residual, hidden = hidden, self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        own = self.self_attn
        qkv, _ = own.qkv_proj(hidden)
        # The reader's own k is only what RoPE is called with; it goes nowhere.
        q, k, _v = qkv.split([own.q_size, own.kv_size, own.kv_size], dim=-1)
        q, _ = own.rotary_emb(positions, q + self.adapters["q"](hidden), k)
        attended = self.reading(q, None, None)
        hidden = own.o_proj(attended)[0] + self.adapters["o"](attended)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        between = self.mlp.act_fn(self.mlp.gate_up_proj(hidden)[0])
        hidden = self.mlp.down_proj(between)[0] + self.adapters["down"](between)
        return hidden, residual


@support_torch_compile
class IcarusModel(LlamaModel):
    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        producer: Stream = (hidden, None)
        # Norms change their residual in place, so each stream starts with a tensor of its own.
        reader: Stream = (hidden.clone(), None)
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            producer = layer(positions, *producer)
            reader = layer.read(positions, reader)
        return self.norm(*reader)[0]


class IcarusLlamaForCausalLM(LlamaForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("IcarusLlamaForCausalLM cannot be split into pipeline stages")
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=IcarusLayer)

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: Any = None) -> Any:
        return IcarusModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm import ModelRegistry

    name = IcarusLlamaForCausalLM.__name__
    if name not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, IcarusLlamaForCausalLM)
