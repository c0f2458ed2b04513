"""A GPU that is not there: tensors that say they are on "cuda:0", compute on the CPU, and refuse to meet others.

What a run on a GPU most often stops at can so be found without one: a tensor made where the others are not, or read by
NumPy where it lies. What a GPU computes, how fast, and with how much memory, nothing here can say.

To torch's C++ an `OnGpu` is a CPU tensor with Python's dispatch key, so that autograd asks no driver; `to`, `cpu` and
the like go by what it says in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""A tensor on the GPU may be indexed from the CPU, not the other way round."""


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU; `inner` is where its values are."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=CPU, requires_grad=inner.requires_grad)
        made.inner = inner
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"OnGpu({self.inner!r})"

    def __reduce_ex__(self, protocol: int) -> tuple:
        return onto_gpu, (self.detach().inner,)

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        made = OnGpu(self.detach().inner.clone())
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        return _run(func, args, kwargs or {})


def onto_gpu(inner: torch.Tensor) -> OnGpu:
    """Returns `inner` on the GPU."""
    return inner if isinstance(inner, OnGpu) else OnGpu(inner)


torch.serialization.add_safe_globals([onto_gpu])


class Generator(torch.Generator):
    """A source of random numbers that knows where it is said to be."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made = super().__new__(cls)
        made.on_gpu = torch.device(device).type == "cuda"
        return made

    device = property(lambda self: GPU if self.on_gpu else CPU)


def _run(func: Callable, args: tuple, kwargs: dict) -> object:
    flat = tree_flatten((args, kwargs))[0]
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    wanted = [x.type == "cuda" for x in flat if isinstance(x, torch.device)]
    ours = any(isinstance(x, OnGpu) for x in tensors)
    strangers = [tuple(x.shape) for x in tensors if not isinstance(x, OnGpu) and x.dim()]
    back = torch._C._current_graph_task_id() != -1  # there C++ makes zeros where it believes the tensors to be
    gpu = back or (wanted[-1] if wanted else isinstance(args[0], OnGpu) if func is aten.copy_.default else ours)
    if not back:
        if ours and strangers and func not in COPIES | INDEXED:
            raise RuntimeError(f"{func}: tensors on {GPU} and, of shapes {strangers}, on {CPU}")
        if ours and func in INDEXED and not isinstance(args[0], OnGpu):
            raise RuntimeError(f"{func}: a tensor on {CPU} is indexed by one on {GPU}")
    plain = tree_map_only(OnGpu, lambda t: t.inner, (args, kwargs))
    plain_args, plain_kwargs = tree_map_only(torch.device, lambda d: CPU, plain)
    made = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not gpu:
        return made
    if func is aten._to_copy.default:
        return OnGpu(made.clone() if any(made.data_ptr() == t.data_ptr() for t in tensors if not ours) else made)
    made = tree_map_only(torch.Tensor, onto_gpu, made)
    return return_and_correct_aliasing(func, args, kwargs, made) if ours and not back else made


class _Factories(TorchDispatchMode):
    """What is made with device="cuda:0" becomes an `OnGpu`."""

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        return _run(func, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Whatever asks a tensor where it is, by what it says of itself."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args else None
        here = isinstance(first, OnGpu)
        source = kwargs.get("generator")
        if source is not None:  # further in, C++ knows it by another name
            gpu = here if kwargs.get("device") is None else torch.device(kwargs["device"]).type == "cuda"
            if getattr(source, "on_gpu", False) != gpu:
                raise RuntimeError(f"{name}: random numbers for {GPU if gpu else CPU} of a generator that is elsewhere")
        if name in ("tensor", "as_tensor", "asarray"):
            device = kwargs.pop("device", None)
            made = first if here else func(*args, **kwargs)
            return made if device is None or torch.device(device).type == "cpu" else onto_gpu(made)
        if name == "new_tensor" and here:
            return onto_gpu(torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}))
        if name == "one_hot" and here:  # C++ would make it where it believes the tensor to be
            return onto_gpu(func(first.inner, *args[1:], **kwargs))
        if name == "numpy" and here:
            raise TypeError(f"NumPy reads no tensor on {GPU}")
        if name == "tolist" and here:
            return aten._to_copy(first.detach(), device=CPU).tolist()
        if name in ("to", "type_as", "cpu", "cuda") and isinstance(first, torch.Tensor):
            return _moved(first, name, [*args[1:], *(kwargs.get(k) for k in ("other", "device", "dtype"))], kwargs)
        return func(*args, **kwargs)


def _moved(x: torch.Tensor, name: str, words: list, kwargs: dict) -> torch.Tensor:
    words = [word for one in words for word in ((one.device, one.dtype) if isinstance(one, torch.Tensor) else (one,))]
    here = isinstance(x, OnGpu)
    device = next((torch.device(w) for w in words if isinstance(w, str | torch.device)), GPU if here else CPU)
    gpu = name == "cuda" or (name != "cpu" and device.type == "cuda")
    dtype = next((w for w in words if isinstance(w, torch.dtype)), x.dtype)
    layout = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") is not None else {}
    if gpu == here and dtype == x.dtype and not layout and not kwargs.get("copy"):
        return x
    return aten._to_copy(x, device=GPU if gpu else CPU, dtype=dtype, **layout)


def _loading(load: Callable) -> Callable:
    def loaded(*args: object, map_location: object = None, **kwargs: object) -> object:
        gpu = map_location is not None and torch.device(map_location).type == "cuda"
        found = load(*args, map_location="cpu" if gpu else map_location, **kwargs)
        return tree_map_only(torch.Tensor, onto_gpu, found) if gpu else found

    return loaded


DRIVER = {"_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
          "current_device": lambda: 0, "synchronize": lambda *a: None, "set_device": lambda *a: None,
          "is_bf16_supported": lambda **k: False, "get_rng_state": lambda *a: torch.zeros(1),
          "set_rng_state": lambda *a: None, "get_device_capability": lambda *a: (8, 0), "empty_cache": lambda: None}


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Torch has one GPU, as far as it asks in Python."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter stays the one an optimiser has
    try:
        with (mock.patch.multiple(torch.cuda, **DRIVER), mock.patch.object(torch, "Generator", Generator),
              mock.patch.object(torch, "load", _loading(torch.load)),
              mock.patch.object(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
              _Factories(), _Moves()):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
