"""The documents name only commands, options, files and names that exist."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from hubmodels import catalog
from hubmodels.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
COMMANDS = typer.main.get_command(app).commands
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def code_spans(document: Path) -> list[str]:
    """Every indented command line and every inline code span outside fenced blocks."""
    text = re.sub(r"```.*?```", "", text_of(document), flags=re.DOTALL)
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return lines + re.findall(r"`([^`\n]+)`", text)


def python_blocks() -> list[tuple[str, str]]:
    blocks = []
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text_of(document), flags=re.DOTALL), 1):
            blocks.append((f"{document.name}-{number}", block))
    return blocks


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_exist(document):
    calls = [re.sub(r"^.*-m hubmodels\.cli ", "hubmodels ", span) for span in code_spans(document)]
    calls = [shlex.split(call) for call in calls if call.startswith("hubmodels ")]
    assert calls
    for _, name, *arguments in calls:
        assert name in COMMANDS, f"no command `hubmodels {name}`"
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        unknown = [argument for argument in arguments if argument.startswith("--") and argument not in options]
        assert not unknown, f"`hubmodels {name}` has no {unknown}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_make_targets_exist(document):
    named = {target for span in code_spans(document) for target in re.findall(r"\bmake ([a-z-]+)", span)}
    assert named and named <= TARGETS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_files_exist(document):
    roots = ("hubmodels/", "modeling/", "conversion/", "model_cards", "benchmarks/", "tests/", ".ci/", ".pre-commit")
    paths = [span for span in code_spans(document) if span.startswith(roots) and " " not in span]
    placeholders = re.compile(r"METHOD|CASE|\*|^benchmarks/results.md$")  # `make bench` writes the last
    missing = [path for path in paths if not placeholders.search(path) and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize(("name", "code"), python_blocks(), ids=lambda value: value if "-" in value[:20] else "")
def test_python_examples_import_what_exists(name, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {missing}"


def test_fine_tuning_example_runs(tmp_path, monkeypatch):
    """The README's example with the plain Trainer, for one step in place of its epochs."""
    code = next(code for _, code in python_blocks() if "trainer.train()" in code)
    shortened = code.replace("num_train_epochs=15", "max_steps=1, report_to='none'")
    assert shortened != code
    monkeypatch.chdir(tmp_path)
    exec(compile(shortened, "README.md", "exec"), {})
    assert (tmp_path / "classifier" / "model.safetensors").is_file()
    assert (tmp_path / "classifier" / "preprocessor_config.json").is_file()


def test_packaged_checkpoints_in_the_readme_exist():
    for name in re.findall(r'packaged_path\("([^"]+)"\)', text_of(ROOT / "README.md")):
        assert catalog.packaged_path(name).is_dir()


def test_the_readme_lists_every_method():
    text = text_of(ROOT / "README.md")
    for method in catalog.METHODS:
        assert f"| `{method.name}` |" in text and method.paper in text
