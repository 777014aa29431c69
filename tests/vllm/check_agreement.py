"""`neve codec-check` on a tiny model. Run by an interpreter with transformers; asserts."""

import json
import sys
from pathlib import Path

import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neve.cli.main import main
from neve.engine.losses import reported

folder = Path(sys.argv[1])
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={each: n for n, each in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
torch.manual_seed(0)
sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=256, **sizes, **heads)).save_pretrained(folder)
text, report = folder / "prompt.txt", folder / "report.json"
text.write_text(Path(__file__).read_text())


def run(*more):
    return CliRunner().invoke(main, ["codec-check", str(folder), "--text", str(text), *more])


done = run("--tokens", "100", "--json", "--write", str(report))  # 96: whole blocks
assert done.exit_code == 0, done.output
losses = {loss["codec"]: loss for loss in json.loads(report.read_text())["losses"]}
assert list(losses) == ["int8", "fp8", "int4"]
assert 0 < losses["int8"]["error"] < losses["fp8"]["error"] < losses["int4"]["error"] < 0.2
assert all(0 <= loss["kl"] < 0.1 and 0 < loss["argmax"] <= 1 for loss in losses.values())
assert reported(str(report), "int4").kl == losses["int4"]["kl"]

done = run("--tokens", "64", "--codec", "int8")
assert "lossy: int8, error 0.0" in done.output, done.output
assert "likeliest token stays" in done.output
done = run("--tokens", "100000")
assert done.exit_code
assert "give a longer one" in done.output, done.output
