"""What MMRec's code expects and today's libraries dropped, supplied for the time of a block and taken away after it."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch
import torch_geometric.utils as pyg
from scipy.sparse import dok_matrix
from torch import Tensor, nn

_ALIASES: dict[str, Any] = {"float": float, "int": int, "bool": bool, "object": object, "complex": complex, "str": str}
_ALIASES |= {"float_": np.float64, "Inf": np.inf, "NaN": np.nan}
_ABSENT = object()


class Compatibility:
    """A block inside which a checkout's code imports and runs: ``with Compatibility(source, device): ...``.

    source  the folder that MMRec runs in (``src``): importable inside the block, its modules forgotten after it
    device  where its models shall run; on a CPU ``.cuda()`` stays there

    ``used`` lists what was needed so far, in plain words. The block may be entered again and within itself.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        self.source, self.device = source, device
        self.used: list[str] = []
        self.building = False
        self._own = {entry.stem for entry in source.iterdir() if entry.is_dir() or entry.suffix == ".py"}
        self._modules: dict[str, ModuleType] = {}  # the checkout's, between blocks
        self._stack, self._depth = ExitStack(), 0

    def __enter__(self) -> "Compatibility":
        self._depth += 1
        if self._depth == 1:
            self._stack.enter_context(self._importable())
            self._stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # old code on new libraries: nobody here can act on what they say of it
            for owner, name, value in self._replacements():
                self._stack.enter_context(_replaced(owner, name, value))
        return self

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stack.close()

    def note(self, what: str) -> None:
        if what not in self.used:
            self.used.append(what)

    def methods_within(self, cls: type[nn.Module]) -> type[nn.Module]:
        """The class with those of its own methods that a user calls run inside this block."""

        def within(own: Callable) -> Callable:
            @functools.wraps(own)
            def method(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return own(*args, **kwargs)

            return method

        names = {name for base in cls.__mro__ if base.__module__.partition(".")[0] in self._own for name in vars(base)}
        called = {name: getattr(cls, name) for name in sorted(names) if not name.startswith("_")}
        methods = {name: within(value) for name, value in called.items() if inspect.isfunction(value)}
        return type(cls.__name__, (cls,), methods | {"__module__": cls.__module__, "__qualname__": cls.__qualname__})

    def _replacements(self) -> Iterator[tuple[Any, str, Any]]:
        if not hasattr(dok_matrix, "_update"):
            yield dok_matrix, "_update", self._noted("scipy's dok_matrix._update", lambda m, d: m._dict.update(d))
        if not hasattr(pyg, "dropout_adj"):
            yield pyg, "dropout_adj", self._noted("torch_geometric's dropout_adj", _dropout_adj)
        yield np, "__getattr__", self._numpy_attribute(np.__getattr__)
        yield torch, "load", self._with_pickles(torch.load, weights_only=False)
        yield np, "load", self._with_pickles(np.load, allow_pickle=True)
        if self.device.type == "cpu":
            stays = self._noted(".cuda(), which stays on the CPU", lambda owner, *_, **__: owner)
            yield from ((owner, "cuda", stays) for owner in (Tensor, nn.Module))
            yield nn.Parameter, "to", lambda *args, **kwargs: self._parameter_to(*args, **kwargs)

    def _noted(self, what: str, function: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.note(what)
            return function(*args, **kwargs)

        return noted

    def _numpy_attribute(self, own: Callable[[str], Any]) -> Callable[[str], Any]:
        def attribute(name: str) -> Any:
            if name in _ALIASES:
                self.note(f"NumPy's alias np.{name}")
                return _ALIASES[name]
            return own(name)

        return attribute

    def _with_pickles(self, own: Callable, **defaults: bool) -> Callable:
        @functools.wraps(own)
        def load(*args: Any, **kwargs: Any) -> Any:
            if defaults.keys() - kwargs.keys():
                self.note(f"{own.__name__} of files with pickles")
            return own(*args, **{**defaults, **kwargs})

        return load

    def _parameter_to(self, parameter: nn.Parameter, *args: Any, **kwargs: Any) -> Tensor:
        """``nn.Parameter(...).to(device)`` is a tensor that is no parameter on a GPU, but the parameter itself on a CPU
        (registered, trained): here it is on a CPU what it is on a GPU."""
        moved = Tensor.to(parameter, *args, **kwargs)
        if not (self.building and moved is parameter and torch.is_grad_enabled()):
            return moved
        self.note("nn.Parameter(...).to(device), which is no parameter on a GPU, is none on the CPU either")
        return parameter.detach().clone().requires_grad_(parameter.requires_grad)

    @contextmanager
    def _importable(self) -> Iterator[None]:
        before = self._take_out() if self.building else self._swap(dict.fromkeys(self._modules))
        sys.modules.update(self._modules)
        wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left in the checkout
        finder, known = _Finder(self), len(sys.modules)
        sys.path.insert(0, str(self.source))
        sys.meta_path.append(finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            sys.path.remove(str(self.source))
            sys.dont_write_bytecode = wrote
            self._swap(dict.fromkeys(finder.stubs))
            if self.building or len(sys.modules) != known:
                self._modules = self._take_out()
            self._swap(dict.fromkeys(self._modules) | before)

    def _take_out(self) -> dict[str, ModuleType]:
        """Take every module with a name of the checkout's out of ``sys.modules``."""
        return self._swap({name: None for name in list(sys.modules) if name.partition(".")[0] in self._own})

    @staticmethod
    def _swap(modules: dict[str, ModuleType | None]) -> dict[str, ModuleType]:
        """Put these in ``sys.modules`` (None: nothing of that name) and return what was there."""
        before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
        sys.modules.update({name: module for name, module in modules.items() if module is not None})
        return before


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what the checkout's own code imports and nothing else has: ``torch_scatter`` by torch_geometric, a module
    of the checkout under another path, else a stand-in that fails where it is used."""

    def __init__(self, compatibility: Compatibility) -> None:
        self.compatibility = compatibility
        self.stubs: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        asking: FrameType | None = sys._getframe(1)
        while asking is not None and asking.f_code.co_filename.startswith("<frozen importlib"):
            asking = asking.f_back
        source = self.compatibility.source
        if asking is None or source not in Path(asking.f_code.co_filename).parents:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        source, parts = self.compatibility.source, spec.name.split(".")
        if (source / parts[0]).exists():
            for start in range(1, len(parts)):
                place = source.joinpath(*parts[start:])
                if place.is_dir() or place.with_suffix(".py").is_file():
                    self.compatibility.note(f"import of {spec.name}, which lies at {'.'.join(parts[start:])}")
                    return importlib.import_module(".".join(parts[start:]))
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
        self.stubs.append(spec.name)
        if parts[0] == "torch_scatter":
            self.compatibility.note("torch_scatter by torch_geometric")
            return _torch_scatter(spec.name)
        self.compatibility.note(f"import of {parts[0]}, which is not installed")
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module is complete."""


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(name, (), {"package": self.__name__.partition(".")[0]})


class _Missing(type):
    """Something of a package that is not installed: fails when it is called, not when it is imported."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(name, (), {"package": cls.package})

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise ImportError(f"it needs the package {cls.package}, which is not installed", name=cls.package)


def _dropout_adj(edges: Tensor, attributes: Tensor | None = None, p: float = 0.5, training: bool = True, **_: Any):
    edges, kept = pyg.dropout_edge(edges, p=p, training=training)
    return edges, attributes if attributes is None else attributes[kept]


def _torch_scatter(name: str) -> ModuleType:
    module = ModuleType(name)

    def scatter(src: Tensor, index: Tensor, dim: int = -1, out: None = None, dim_size: int | None = None, reduce="sum"):
        if index.dim() > 1:  # torch_geometric takes an index along ``dim`` alone
            size = list(src.shape)
            size[dim] = int(index.max()) + 1 if dim_size is None else dim_size
            how = {"add": "sum", "max": "amax", "min": "amin"}.get(reduce, reduce)
            return src.new_zeros(size).scatter_reduce(dim, index, src, how, include_self=False)
        return pyg.scatter(src, index, dim=dim, dim_size=dim_size, reduce=reduce)

    for reduce in ("add", "sum", "mean", "mul"):
        setattr(module, f"scatter_{reduce}", functools.partial(scatter, reduce=reduce))
    vars(module).update(scatter=scatter, scatter_softmax=lambda src, index, dim=-1: pyg.softmax(src, index, dim=dim))
    return module


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
