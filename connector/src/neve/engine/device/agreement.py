"""What a lossy codec changes in a model: the error of its KV, and of the logits behind it.

Needs transformers, beside torch: it computes the model itself, on the CPU, with no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neve.engine.device.int4 import INT4, Form, Int4Codec
from neve.engine.device.lossy import LossyCodec, relative_error
from neve.formats.loss import Loss

AFTER_TOKENS = 128  # whose logits are compared


@dataclass(frozen=True)
class Prompt:
    """Token ids whose KV is stored, and those behind them, whose logits are compared."""

    before: torch.Tensor  # [1, tokens]
    after: torch.Tensor  # [1, AFTER_TOKENS]


class Model:
    """A causal model with its KV of each prompt, rounded to bf16 as engines hold it.

    `folder`: of Hugging Face's form. `texts`: one prompt each, of `tokens` tokens; shorter ones are
    left out. Raises `ValueError` if none is long enough. Takes the model's size twice, as float32.
    """

    def __init__(
        self, folder: str, texts: Sequence[str], *, tokens: int, block_tokens: int = 16
    ) -> None:
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokens -= tokens % block_tokens
        self._block_tokens = block_tokens
        self._prompts = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids[:, : tokens + AFTER_TOKENS]
            if ids.shape[1] == tokens + AFTER_TOKENS:
                self._prompts.append(Prompt(ids[:, :tokens], ids[:, tokens:]))
        if not self._prompts:
            raise ValueError(f"no text has {tokens + AFTER_TOKENS} tokens: give a longer one")
        self.kvs = [self._kv(prompt.before) for prompt in self._prompts]
        self.vector = int(self.kvs[0].shape[-1])
        self.exact = [self._logits(*each) for each in zip(self._prompts, self.kvs, strict=True)]

    @property
    def prompts(self) -> int:
        return len(self._prompts)

    def _kv(self, tokens: torch.Tensor) -> torch.Tensor:
        """bf16 `[layers, K and V, tokens, heads, numbers]`, in which order engines lay it."""
        with torch.no_grad():
            cache = self._model(tokens, use_cache=True).past_key_values
        layers = [torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers]
        return torch.stack(layers).transpose(2, 3).contiguous().to(torch.bfloat16)

    def _logits(self, prompt: Prompt, kv: torch.Tensor) -> torch.Tensor:
        """Log probabilities behind each of the prompt's last tokens."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(kv.transpose(2, 3).float()):
            cache.update(keys[None], values[None], number)
        with torch.no_grad():
            logits: torch.Tensor = self._model(prompt.after, past_key_values=cache).logits[0]
        return logits.log_softmax(-1)

    def payload(self) -> Any:
        """KV of the first prompt, as numpy's uint16, keys before values in each layer."""
        return self.kvs[0].view(torch.int16).numpy().view("uint16").reshape(-1)

    def codec(self, name: str) -> LossyCodec:
        if name != INT4:
            return LossyCodec(name, torch.bfloat16, self.vector)
        layers, _, _, heads, vector = self.kvs[0].shape
        form = Form((layers, 2, -1, self._block_tokens, heads, vector), tokens=3, parts=1)
        return Int4Codec(INT4, torch.bfloat16, self.vector, form)

    def loss(self, name: str) -> Loss:
        """Of all prompts together."""
        codec = self.codec(name)
        errors, divergences, same = [], [], []
        for prompt, kv, exact in zip(self._prompts, self.kvs, self.exact, strict=True):
            decoded = torch.empty_like(kv)
            plain, back = (each.view(1, -1).view(torch.uint8) for each in (kv, decoded))
            codec.decode(codec.encode(plain), back)
            errors.append(relative_error(kv, decoded))
            other = self._logits(prompt, decoded)
            divergences.append((exact.exp() * (exact - other)).sum(-1))
            same.append(exact.argmax(-1) == other.argmax(-1))
        return Loss(
            codec=name,
            error=sum(errors) / len(errors),
            kl=max(0.0, float(torch.cat(divergences).mean())),
            argmax=float(torch.cat(same).float().mean()),
        )
