"""The rules of the house that a machine can check: packaging, import directions, file sizes, docstrings, start-up."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = {"hubmodels": "hubmodels", "modeling": "hubmodels.modeling", "conversion": "hubmodels.conversion"}
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
ALL_PYTHON = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
METHOD_FOLDERS = sorted(path for path in (ROOT / "modeling").iterdir() if (path / "__init__.py").is_file())

# What a published repository may need next to its own files.
MODELING_LIBRARIES = {"torch", "torchvision", "timm", "diffusers", "transformers", "huggingface_hub", "numpy", "PIL"}
CONVERSION_PACKAGES = ("hubmodels.modeling", "hubmodels.conversion", "hubmodels.catalog")
# Libraries that must not be loaded to print a table.
HEAVY = ("torch", "transformers", "timm", "numpy", "sklearn", "datasets", "matplotlib")
MAX_LINES = 600


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package_of(path: Path) -> str:
    """Dotted name of the package that holds the source file `path`."""
    room, *folders = path.relative_to(ROOT).parent.parts
    return ".".join([ROOMS[room], *folders])


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, absolute module name) of every import anywhere in a file."""
    package = package_of(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.module:
                yield node.lineno, module
            else:
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def is_inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_every_package_folder_is_listed_in_pyproject():
    folders = {package_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_every_source_file_lies_in_a_package():
    orphans = [relative(path) for path in SOURCES if not (path.parent / "__init__.py").is_file()]
    assert not orphans


def test_package_data_patterns_cover_the_shipped_files():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    missing = []
    for path in (ROOT / "hubmodels").rglob("*"):
        if path.suffix == ".py" or not path.is_file() or "__pycache__" in path.parts:
            continue
        owners = [
            (package, path.relative_to(ROOT / package.replace(".", "/")))
            for package in patterns
            if path.is_relative_to(ROOT / package.replace(".", "/"))
        ]
        if not any(matches(tail, pattern) for package, tail in owners for pattern in patterns[package]):
            missing.append(relative(path))
    assert not missing, "no package-data pattern ships these files"


def matches(path: Path, pattern: str) -> bool:
    """Match as setuptools does: `**/` stands for any number of folders, also none."""
    return path.match(pattern) or (pattern.startswith("**/") and path.match(pattern[3:]))


@pytest.mark.parametrize("folder", METHOD_FOLDERS, ids=lambda folder: folder.name)
def test_method_folder_is_self_contained(folder):
    """A published repository carries exactly these files: they may not import hubmodels or another method."""
    for path in folder.rglob("*.py"):
        for line, module in imports(path):
            top_level = module.split(".")[0]
            allowed = top_level in MODELING_LIBRARIES or top_level in sys.stdlib_module_names
            sibling = is_inside(module, package_of(path))
            assert allowed or sibling, f"{relative(path)}:{line} imports {module}"


@pytest.mark.parametrize(
    "stem",
    [
        "backbone_stages",
        "batch_statistics",
        "center_crop",
        "class_labels",
        "computed_gradients",
        "inputs",
        "loaded_shapes",
        "model_types",
        "onednn",
        "precision",
        "token_backbone",
    ],
)
def test_pieces_that_methods_share_are_the_same(stem):
    """Method folders cannot import each other: each carries its copy of such a piece, and all copies are equal."""
    copies = [path for folder in METHOD_FOLDERS for path in folder.glob(f"{stem}_{folder.name}.py")]
    assert len(copies) > 1, f"{stem} stands in one folder only; take it off this list"
    assert len({path.read_text(encoding="utf-8") for path in copies}) == 1, [relative(path) for path in copies]


@pytest.mark.parametrize("folder", METHOD_FOLDERS, ids=lambda folder: folder.name)
def test_method_folder_is_flat_and_uses_single_dot_imports(folder):
    """transformers copies only what `from .module import name` reaches, and only from one folder."""
    assert not [relative(path) for path in folder.rglob("*.py") if path.parent != folder]
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{relative(path)}:{node.lineno} reaches outside its folder"
                assert node.module, f"{relative(path)}:{node.lineno} must name the module it imports from"
            if isinstance(node, ast.Import):
                own = [alias.name for alias in node.names if is_inside(alias.name, "hubmodels")]
                assert not own, f"{relative(path)}:{node.lineno} imports {own} by its absolute name"


def test_conversion_imports_only_modeling_and_the_catalog():
    for path in (ROOT / "conversion").rglob("*.py"):
        for line, module in imports(path):
            if is_inside(module, "hubmodels"):
                assert is_inside(module, *CONVERSION_PACKAGES), f"{relative(path)}:{line} imports {module}"


def test_sources_never_import_the_tests_or_benchmarks():
    for path in SOURCES:
        for line, module in imports(path):
            assert not is_inside(module, "tests", "benchmarks"), f"{relative(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_file_is_short_and_finished(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < MAX_LINES, f"{len(lines)} lines: split the file"
    marks = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3]) + r")\b")
    unfinished = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if marks.search(line)]
    assert not unfinished


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    public = [node for node in definitions if not node.name.startswith("_") and not is_overload(node)]
    undocumented = [node.name for node in public if not ast.get_docstring(node)]
    assert not undocumented
    assert not tree.body or ast.get_docstring(tree), "the module itself has no docstring"


def is_overload(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def test_version_is_the_one_of_pyproject():
    tree = ast.parse((ROOT / "hubmodels" / "__init__.py").read_text(encoding="utf-8"))
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__version__"]
    assert [ast.literal_eval(value) for value in values] == [PYPROJECT["project"]["version"]]


def test_changelog_describes_the_version():
    version = PYPROJECT["project"]["version"]
    assert re.search(
        rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )


@pytest.mark.parametrize(
    "statement",
    ["import hubmodels", "from hubmodels.cli import app; app(['list'], standalone_mode=False)"],
    ids=["import", "list"],
)
def test_start_up_loads_no_heavy_library(statement):
    check = f"import sys; print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    result = run_python(f"{statement}\n{check}")
    assert result.stdout.splitlines()[-1] == "heavy: []"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
