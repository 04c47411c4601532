"""Makes the transformers Auto classes and `pipeline` know every method of the catalog, without importing either.

transformers resolves a `model_type` lazily: tables of *names* (`CONFIG_MAPPING_NAMES`, `MODEL_MAPPING_NAMES` ...) say
which class it is, and `transformers.models.MODEL_TYPE` is imported when the class is needed. We add our names to these
tables as soon as the module that holds them has been imported, and answer the import of `transformers.models.METHOD`
with our own module. So `import hubmodels` takes milliseconds, the order of imports does not matter, and a method's code
is loaded at its first use. (`AutoModel.register` would need the classes themselves, and importing them from within
transformers' own imports is a cycle.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType

from hubmodels.catalog import METHODS, Method

_MODELS = "transformers.models"
_AUTO_FILES = {
    "AutoConfig": "configuration_auto",
    "AutoImageProcessor": "image_processing_auto",
    "AutoVideoProcessor": "video_processing_auto",
    "AutoFeatureExtractor": "feature_extraction_auto",
    "AutoProcessor": "processing_auto",
    "AutoTokenizer": "tokenization_auto",
}


def register() -> None:
    """Registers the catalog with the Auto classes; calling it again changes nothing."""
    if any(isinstance(finder, _MethodFinder) for finder in sys.meta_path):
        return
    names = {_auto_module(auto_class) for method in METHODS for auto_class, _ in _auto_classes(method)}
    for name in names & set(sys.modules):
        _add_names(sys.modules[name])
    sys.meta_path.insert(0, _MethodFinder(names - set(sys.modules)))


def _auto_module(auto_class: str) -> str:
    return f"{_MODELS}.auto.{_AUTO_FILES.get(auto_class, 'modeling_auto')}"


def _auto_classes(method: Method) -> Iterator[tuple[str, str | None]]:
    """Auto classes and the names of ours that they stand for, which is none where a method is known to have nothing."""
    yield from method.auto_classes.items()
    if "AutoImageProcessor" in method.auto_classes:
        # Pipelines look for a video processor too (transformers 5.24), and take a saved image processor for one whose
        # code is to be run from the folder: they would ask the user about it.
        yield "AutoVideoProcessor", None


def _add_names(auto_module: ModuleType) -> None:
    """Adds the names of our classes to the tables of one of transformers' auto modules."""
    for method in METHODS:
        for auto_class, class_name in _auto_classes(method):
            if _auto_module(auto_class) == auto_module.__name__:
                _add_name(auto_module, method, auto_class, class_name)


def _add_name(auto_module: ModuleType, method: Method, auto_class: str, class_name: str | None) -> None:
    if auto_class == "AutoConfig":
        auto_module.CONFIG_MAPPING_NAMES[method.name] = class_name
        return
    if auto_class in ("AutoImageProcessor", "AutoVideoProcessor"):
        kind = auto_class.removeprefix("Auto").removesuffix("Processor").upper()
        mapping = getattr(auto_module, f"{kind}_PROCESSOR_MAPPING")
        mapping._model_mapping[method.name] = {"torchvision": class_name}
    else:
        mapping = getattr(auto_module, auto_class)._model_mapping
        further = method.further_classes.get(auto_class, ())
        mapping._model_mapping[method.name] = (class_name, *further) if further else class_name
    # A table that was built before our name came in has not its inverse.
    mapping._config_mapping[method.name] = method.auto_classes["AutoConfig"]
    mapping._reverse_config_mapping[method.auto_classes["AutoConfig"]] = method.name


class _MethodFinder(MetaPathFinder):
    """Answers `import transformers.models.METHOD`, and extends transformers' auto modules when they are imported."""

    def __init__(self, pending: set[str]):
        self._pending = pending
        self._rooms = {f"{_MODELS}.{method.name}": method.module for method in METHODS}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._rooms and not _ships_with_transformers(fullname, path):
            return spec_from_loader(fullname, _AliasLoader(self._rooms[fullname]))
        if fullname in self._pending:
            self._pending.discard(fullname)
            spec = find_spec(fullname)
            if spec is not None and spec.loader is not None:
                spec.loader = _AddNamesLoader(spec.loader)
            return spec
        return None


def _ships_with_transformers(fullname: str, path: Sequence[str] | None) -> bool:
    """Whether transformers itself has a folder of that name (it then keeps it: `albert`, say, is theirs)."""
    finders = (finder for finder in sys.meta_path if not isinstance(finder, _MethodFinder))
    return any(finder.find_spec(fullname, path) is not None for finder in finders)


class _AliasLoader(Loader):
    """Loads a module under a second name."""

    def __init__(self, name: str):
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._name)
        self._spec, self._loader = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self._spec, self._loader


class _AddNamesLoader(Loader):
    """Executes an auto module as usual, then adds our names to its tables."""

    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _add_names(module)
