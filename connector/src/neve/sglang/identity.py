"""The identity of a rank's KV, from SGLang's arguments, its storage config and the host pool.

SGLang's page keys are hashes of tokens, cache salt and extra key alone, so the space has to hold
everything else that makes KV bytes.
"""

import json
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from sglang.srt.runtime_context import get_exec, get_server_args

from neve.engine.options import Options
from neve.engine.weights import folder_revision
from neve.errors import Misuse
from neve.formats.space import SpaceIdentity
from neve.sglang.pages import PoolPages
from neve.sglang.settings import deciding_arguments, model_settings

# Raised when the meaning of a page's bytes changes.
LAYOUT_VERSION = 1
# `--load-format` values whose weights are the files of the model's folder, or of its hub's commit.
_READ_FROM_FOLDERS = ("auto", "safetensors", "pt", "npcache", "mistral", "gguf", "bitsandbytes")


def server_arguments() -> Any | None:
    """What the operator gave, or None outside of a server (a controller of its own)."""
    try:
        return get_server_args()
    except ValueError:
        return None


def identify(
    storage: Any, pool: Any, pages: PoolPages, options: Options, *, starting: bool
) -> SpaceIdentity:
    """`storage` is SGLang's `HiCacheStorageConfig`. Reads the weight files (sampled when large).
    `starting`: whether they are still those that the server loads.

    MLA has no TP rank: all ranks hold the same KV, which the first one stores.

    Raises:
        Misuse: the weights can't be named; the message says which option names them.
    """
    arguments = server_arguments()
    model = str(storage.model_name or "unnamed") if arguments is None else arguments.model_path
    folder = Path(model)
    rows = (pages.run_bytes, pool.start_layer, pool.end_layer, storage.tp_lcm_size)
    digest = blake2b(repr(rows).encode(), digest_size=16).hexdigest()
    dtype = "auto" if arguments is None else str(arguments.dtype)
    kv_dtype = "auto" if arguments is None else str(arguments.kv_cache_dtype)
    return SpaceIdentity(
        model=(folder.resolve().name if folder.is_dir() else model)[-1024:],
        revision=_revision(model, arguments, options, starting),
        dtype=dtype,
        kv_dtype=f"{kv_dtype}:{pool.dtype}",
        layout=(
            f"pages of SGLang's {type(pool).__name__}, {pool.layout}, by {_kernel(arguments)}: "
            f"layers {pool.start_layer}-{pool.end_layer}, {len(pages.run_bytes)} runs, all {digest}"
        ),
        layout_version=LAYOUT_VERSION,
        engine_block_tokens=pages.tokens,
        bytes_per_token=-(-pages.page_bytes // pages.tokens),
        tp_size=storage.tp_size,
        tp_rank=0 if storage.is_mla_model else storage.tp_rank,
        pp_size=storage.pp_size,
        pp_rank=storage.pp_rank,
    )


def _kernel(arguments: Any | None) -> str:
    """The device and the attention backend in effect."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if arguments is None:
        return device
    kernel = get_exec().kernel
    names = (kernel.attention_backend, kernel.prefill_attention_backend)
    return f"{device}/{'/'.join(str(name) for name in names if name)}"


def _revision(model: str, arguments: Any | None, options: Options, starting: bool) -> str:
    """Names the weights and everything else that decides the KV's values. Raises `Misuse`."""
    if arguments is None:
        if options.revision is None:
            raise _unknown("there are no arguments of a server")
        return f"set:{options.revision}"
    weights, settings = _weights(model, arguments, options)
    decides = {"arguments": deciding_arguments(arguments, starting=starting), "model": settings}
    drafter = arguments.speculative_draft_model_path
    if drafter is not None and drafter != model:
        content = folder_revision(Path(drafter)) if Path(drafter).exists() else drafter
        decides["drafter"] = str(content)
    canonical = json.dumps(decides, sort_keys=True)
    return f"{weights} settings:{blake2b(canonical.encode(), digest_size=16).hexdigest()}"


def _weights(model: str, arguments: Any, options: Options) -> tuple[str, str]:
    """Names the weights by their content or commit, and the model's own settings."""
    folder = Path(model)
    settings = model_settings(folder) if folder.is_dir() else ""
    if options.revision is not None:
        return f"set:{options.revision}", settings
    load_format = str(arguments.load_format)
    if load_format not in _READ_FROM_FOLDERS:
        raise _unknown(f"--load-format {load_format} may read them from anywhere")
    if folder.exists():
        content = folder_revision(folder)
        if content is None:
            raise _unknown(f"no weight file lies in {folder}")
        return f"files:{content}", settings
    try:
        commit = Path(snapshot_download(model, revision=arguments.revision, local_files_only=True))
    except Exception as error:
        raise _unknown(f"of {model} no commit is known ({error})") from error
    if not re.fullmatch("[0-9a-f]{40}", commit.name):
        raise _unknown(f"of {model} no commit is known")
    return f"commit:{commit.name}", model_settings(commit)


def _unknown(why: str) -> Misuse:
    return Misuse(
        f"can't tell which weights this engine has ({why}), and engines with other weights must "
        f"not share KV: name them in --hicache-storage-backend-extra-config, with another name "
        f"whenever they change",
        field="revision",
    )
