"""Import this first: SGLang on a CPU, without what exists for GPUs only.

Stubs packages of kernels; torchvision gets the operator that its C library would register. Host
pools are not pinned, do not ask for 10 GiB of memory that stay free, and are copied to and from by
indexing: SGLang has no kernels for that on CPU.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import types

import torch

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
STUBBED = ("sgl_kernel", "flashinfer", "torchaudio", "triton")


class _Anything(type):
    """A class of which every attribute is another such class."""

    def __getattr__(cls, name):
        return _attribute(cls, name)


def _attribute(owner, name):
    if name.startswith("__"):
        raise AttributeError(name)
    made = _Anything(
        name,
        (),
        {
            "__init__": lambda self, *args, **kwargs: None,
            "__call__": lambda self, *args, **kwargs: self,
        },
    )
    setattr(owner, name, made)
    return made


class _Stub(types.ModuleType):
    __version__ = "0.0"

    def __getattr__(self, name):
        return _attribute(self, name)


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in STUBBED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Stub(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


sys.meta_path.append(_Stubs())

_operators = torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_register_fake = torch.library.register_fake


def _register_what_is_there(op, *args, **kwargs):
    decorate = _register_fake(op, *args, **kwargs)
    if not (isinstance(op, str) and op.startswith("torchvision::") and callable(decorate)):
        return decorate

    def register(function):
        try:
            return decorate(function)
        except RuntimeError:  # no such operator without the C library
            return function

    return register


torch.library.register_fake = _register_what_is_there


def prepare() -> None:
    """To be called once sglang may be imported."""
    from sglang.srt.mem_cache.pool_host import base, mha

    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
    made = base.HostKVCache.__init__
    base.HostKVCache.__init__ = lambda pool, **given: made(pool, **given | {"pin_memory": False})
    mha.MHATokenToKVPoolHost.backup_from_device_all_layer = _back_up
    mha.MHATokenToKVPoolHost.load_to_device_per_layer = _load


def _rows(pool, kind, layer, indices):
    """Where `kind` (0: K, 1: V) of these tokens lies in the host pool: a tensor and its index."""
    buffer = pool.kv_buffer[kind]
    page, token = indices // pool.page_size, indices % pool.page_size
    return buffer, {
        "layer_first": (layer, indices),
        "page_first": (indices, layer),
        "page_first_direct": (page, layer, token),
        "page_head": (page, slice(None), token, layer),
    }[pool.layout]


def _back_up(pool, device_pool, host_indices, device_indices, io_backend):
    for layer in range(pool.layer_num):
        for kind, tensors in enumerate((pool.device_k_buffers, pool.device_v_buffers)):
            buffer, place = _rows(pool, kind, layer, host_indices.long())
            buffer[place] = tensors[layer][device_indices.long()]


def _load(pool, device_pool, host_indices, device_indices, layer, io_backend, *, is_draft=False):
    for kind, tensors in enumerate((pool.device_k_buffers, pool.device_v_buffers)):
        buffer, place = _rows(pool, kind, layer, host_indices.long())
        tensors[layer][device_indices.long()] = buffer[place]
