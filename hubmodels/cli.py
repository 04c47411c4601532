"""The `hubmodels` command.

Every command is a thin wrapper: it parses arguments, imports the function that does the work, calls it and says
where the result lies. Heavy libraries are imported inside the commands, so that `hubmodels list` answers at once.

Errors that a user can act on (`ValueError`, `OSError` and hubmodels' own exceptions) are printed as one red line on
standard error with exit code 2; `hubmodels --debug COMMAND ...` shows the traceback instead.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hubmodels import catalog
from hubmodels.catalog_records import Metric

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RECIPE_ROOT = Path(__file__).parent / "recipes"
ERROR_EXIT_CODE = 2
PIPE_WIDTH = 160  # columns of a table when the output is not a terminal


def _is_user_error(error: Exception) -> bool:
    """Whether `error` explains itself: bad input, a file or network problem, or an exception class of ours."""
    return isinstance(error, (ValueError, OSError)) or type(error).__module__.split(".")[0] == "hubmodels"


class _ErrorReportingGroup(TyperGroup):
    """A command group that prints user errors as one line and exits with `ERROR_EXIT_CODE`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if ctx.params.get("debug") or not _is_user_error(error):
                raise
            text = str(error)
            if "Original Traceback" in text:  # of a process that loads images: its last line says what is wrong
                text = text.strip().splitlines()[-1]
            message = " ".join(text.split()) or type(error).__name__
            typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
            raise typer.Exit(ERROR_EXIT_CODE) from error


app = typer.Typer(
    name="hubmodels",
    cls=_ErrorReportingGroup,
    help="Published methods as exact, composable transformers models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _print_version(requested: bool) -> None:
    if requested:
        from hubmodels import __version__

        typer.echo(f"hubmodels {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Published methods as exact, composable transformers models."""


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _table(title: str, first_column: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first_column, no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("parameters", "value") else "left")
    return table


def _as_json(methods: tuple[catalog.Method, ...], checkpoints: tuple[catalog.Checkpoint, ...]) -> str:
    records = {
        "methods": [dataclasses.asdict(method) for method in methods],
        "checkpoints": [dataclasses.asdict(c) | {"packaged": c.is_packaged} for c in checkpoints],
    }
    return json.dumps(records, indent=2)


def _find(pattern: str) -> tuple[tuple[catalog.Method, ...], tuple[catalog.Checkpoint, ...]]:
    methods, checkpoints = catalog.search(pattern)
    if not methods and not checkpoints:
        known = ", ".join(method.name for method in catalog.METHODS)
        raise ValueError(
            f"no method or checkpoint is called {pattern!r}; methods: {known}; checkpoints: see `hubmodels list`; "
            f"search with wildcards, for example '*{pattern.strip('*')}*'"
        )
    return methods, checkpoints


@app.command("list")
def list_records(
    pattern: Annotated[str, typer.Argument(help="Name or wildcard pattern, for example '*large*'.")] = "*",
    as_json: JsonOption = False,
) -> None:
    """List the methods and the released checkpoints."""
    methods, checkpoints = _find(pattern)
    if as_json:
        typer.echo(_as_json(methods, checkpoints))
        return
    console = _console()
    if methods:
        table = _table("Methods", "method", "modality", "arXiv", "title")
        for method in methods:
            table.add_row(method.name, method.modality, method.arxiv, method.title)
        console.print(table)
    if checkpoints:
        table = _table("Checkpoints", "checkpoint", "task", "parameters", "licence", "weights")
        for checkpoint in checkpoints:
            weights = "in the package" if checkpoint.is_packaged else "official file"
            parameters = f"{checkpoint.parameters / 1e6:.1f} M"
            table.add_row(checkpoint.name, checkpoint.task, parameters, checkpoint.licence, weights)
        console.print(table)


def _method_rows(method: catalog.Method) -> dict[str, str]:
    classes = "\n".join(f"{auto} -> {name}" for auto, name in method.auto_classes.items())
    return {
        "title": method.title,
        "summary": method.summary,
        "paper": method.paper,
        "modality": method.modality,
        "tasks": ", ".join(method.tasks),
        "licence": f"code {method.code_licence}; the authors' weights {method.weights_licence}",
        "module": method.module,
        "Auto classes": classes,
        "recipes": "\n".join(sorted(path.stem for path in (RECIPE_ROOT / method.name).glob("*.yaml"))),
        "checkpoints": "\n".join(c.name for c in catalog.CHECKPOINTS if c.method == method.name),
    }


def _checkpoint_rows(checkpoint: catalog.Checkpoint) -> dict[str, str]:
    rows = {
        "method": checkpoint.method,
        "task": checkpoint.task,
        "parameters": f"{checkpoint.parameters:,}",
        "licence": checkpoint.licence,
        "weights": f"in the package: {checkpoint.source}" if checkpoint.is_packaged else checkpoint.source,
        "md5 starts": checkpoint.md5_prefix or "",
        "base model": checkpoint.base_model or "",
        "trained on": ", ".join(checkpoint.datasets),
        "paper": checkpoint.paper,
        "notes": checkpoint.notes,
    }
    if not checkpoint.is_packaged:
        rows["to use it"] = f"hubmodels convert {checkpoint.method} {checkpoint.official_file} OUT"
    return {key: value for key, value in rows.items() if value}


def _print_rows(console: Console, title: str, rows: dict[str, str]) -> None:
    from rich.markup import escape

    table = _table(title, "field", "content")
    for key, value in rows.items():
        table.add_row(key, escape(value))
    console.print(table)


def _print_metrics(console: Console, metrics: tuple[Metric, ...]) -> None:
    if not metrics:
        return
    table = _table("Figures", "figure", "value", "data", "source")
    for metric in metrics:
        table.add_row(metric.name, f"{metric.value:g}", metric.dataset, metric.source)
    console.print(table)
    for command in dict.fromkeys(metric.command for metric in metrics if metric.command):
        console.print("measure with:", command, markup=False, soft_wrap=True)
    console.print()


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A method, a checkpoint, or a wildcard pattern.")],
    as_json: JsonOption = False,
) -> None:
    """Show everything the catalog knows about a method or a checkpoint."""
    methods, checkpoints = _find(name)
    if as_json:
        typer.echo(_as_json(methods, checkpoints))
        return
    console = _console()
    for method in methods:
        _print_rows(console, method.name, _method_rows(method))
    for checkpoint in checkpoints:
        _print_rows(console, checkpoint.name, _checkpoint_rows(checkpoint))
        _print_metrics(console, checkpoint.metrics)


@app.command()
def train(
    recipe_or_method: Annotated[str, typer.Argument(help="A recipe (YAML file or name) or a method such as mae.")],
    data: Annotated[str | None, typer.Option(help="Image folder, local data set or Hub data set id.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Encoder: a folder, packaged checkpoint, Hub id or timm name.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override one value of the recipe, key=value; may be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Start without asking.")] = False,
) -> None:
    """Train from a recipe, or from a method with a recipe chosen to fit the data and the machine."""
    from hubmodels.training import train as run_training

    is_method = any(method.name == recipe_or_method for method in catalog.METHODS)
    selection = {"method": recipe_or_method} if is_method else {"recipe": recipe_or_method}
    run_training(**selection, data=data, output=out, backbone=backbone, overrides=overrides or [], yes=yes)


@app.command()
def evaluate(
    folder: Annotated[str, typer.Argument(help="Folder of the model, Hub id or packaged checkpoint.")],
    data: Annotated[str, typer.Option(help="Labelled images: a folder, CSV file, local data set or Hub data set id.")],
    protocol: Annotated[
        str, typer.Option(help="finetuned: the model's own classifier; knn, linear: its frozen features.")
    ] = "finetuned",
    split: Annotated[
        str | None, typer.Option(help="Split to test on; by default test or validation, the first that has labels.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    pooling: Annotated[
        str, typer.Option(help="Features of knn and linear: mean of the patch tokens, or cls, the class token.")
    ] = "mean",
    save: Annotated[Path | None, typer.Option(help="JSON file to write the outcome to.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy: a table per class, with confidence intervals."""
    if save is not None and save.exists():
        raise FileExistsError(f"{save} exists; give another place with --save")
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
    from hubmodels.evaluation import evaluate as run_evaluation

    outcome = run_evaluation(
        folder,
        data,
        protocol=protocol,
        split=split,
        label_column=label_column,
        pooling=pooling,
        progress=not as_json,
    )
    if save is not None:
        outcome.save(save)
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), indent=2))
    else:
        _console().print(outcome.report.table())
        typer.echo(f"tested on: {outcome.split}")


@app.command("label-errors")
def label_errors(
    folder: Annotated[str, typer.Argument(help="Folder of a classifier, Hub id or packaged checkpoint.")],
    data: Annotated[str, typer.Option(help="Labelled images: a folder, CSV file, local data set or Hub data set id.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, the picture and the tables.")] = Path("label-errors"),
    split: Annotated[str | None, typer.Option(help="Split to judge; by default train, or the only one.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels to judge.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images on the page.")] = 100,
) -> None:
    """List the labels that are most probably wrong, with pictures."""
    from hubmodels.evaluation import NoisyLabelReport

    NoisyLabelReport.free_paths(out)
    report = NoisyLabelReport.from_model(folder, data, split=split, label_column=label_column)
    paths = report.save(out, images)
    _console().print(report.table())
    for path in paths:
        typer.echo(f"wrote {path}")


@app.command()
def convert(
    method: Annotated[str, typer.Argument(help="Method of the checkpoint, see `hubmodels list`.")],
    checkpoint: Annotated[Path, typer.Argument(help="The official file.")],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    num_heads: Annotated[
        str | None,
        typer.Option(
            help="Attention heads of the encoder, where its size is not a known one: a number, or one for every stage "
            "such as 2,4."
        ),
    ] = None,
    decoder_num_heads: Annotated[int | None, typer.Option(help="Attention heads of the decoder, likewise.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Pixels of the images, where the file does not tell: a number, or height and width as 224,448."
        ),
    ] = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(help="Whether the decoder predicts normalised pixels, where the file and its name do not tell."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other option of the method's converter, key=value; may be repeated."),
    ] = None,
) -> None:
    """Convert an official checkpoint into a folder that `from_pretrained` loads."""
    from hubmodels.conversion import convert as run_conversion

    named = {"decoder_num_heads": decoder_num_heads, "norm_pix_loss": norm_pix_loss}
    given = {name: value for name, value in named.items() if value is not None}
    for name, text in {"num_heads": num_heads, "image_size": image_size}.items():
        if text is not None:
            is_list = "," in text and not text.startswith("[")
            given[name] = _parse_value(f"--{name.replace('_', '-')}", f"[{text}]" if is_list else text)
    for assignment in options or []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {assignment!r}")
        if name in given:
            raise ValueError(f"{name} was given twice")
        given[name] = _parse_value(f"--set {name}", value)
    run_conversion(method, checkpoint, out, **given)
    typer.echo(f"wrote {out}")


def _parse_value(option: str, text: str) -> Any:
    """A value in YAML, such as `[1,2,2,1]` or `true`; other than there, `1e-3` is a number, too."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {option} is not valid YAML: {text!r}") from error
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder with a model, as `convert` or `save_pretrained` wrote it.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to create; its suffix is that of the layout, mostly .pth.")],
    layout: Annotated[
        str | None,
        typer.Option(
            help="For whom, if not for the official code. SimCLR: tf1, tf2. DenseCL: torchvision, timm, detectron2, "
            "transformers. SANM: net1 or net2 of an ensemble."
        ),
    ] = None,
) -> None:
    """Write a model back as a checkpoint of the official code, or of other code that reads such models."""
    from hubmodels.conversion import to_official

    to_official(folder, out, layout=layout)
    typer.echo(f"wrote {out}")


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder with the model to publish.")],
    repo_id: Annotated[str, typer.Argument(help="Repository on the Hub, OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Allow a new commit on an existing repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, by default main.")] = None,
) -> None:
    """Publish a model with its code, processor and card to the Hub, in one commit."""
    from hubmodels.publishing import publish as run_publication

    url = run_publication(folder, repo_id, private=private, update=update, revision=revision)
    typer.echo(f"published {url}")


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--out", "--output", help="Folder for the results.")] = Path(
        "quickstart-output"
    ),
    seed: Annotated[list[int] | None, typer.Option(help="Seed to run; may be repeated.")] = None,
) -> None:
    """Show the whole way on a small real data set: load, fine-tune, compare, draw, publish locally, load back."""
    from hubmodels import quickstart as tour

    arguments: dict[str, Any] = {"seeds": tuple(seed)} if seed else {}
    tour.main(output=output, **arguments)


@app.command()
def demo(
    image: Annotated[Path, typer.Argument(help="The picture to hide and reconstruct.")],
    model: Annotated[
        str | None, typer.Option(help="Folder, Hub id or packaged checkpoint; by default the first packaged one.")
    ] = None,
    output: Annotated[Path, typer.Option("--out", "--output", help="Picture to write.")] = Path("reconstruction.png"),
    mask_ratio: Annotated[float | None, typer.Option(help="Share to hide; by default as in training.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the mask.")] = 0,
) -> None:
    """Draw what a model reconstructs of a picture of which it sees only a part."""
    if output.exists():
        raise FileExistsError(f"{output} exists; give another place with --out")
    source = _default_demo_model() if model is None else catalog.model_source(model)

    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForPreTraining

    from hubmodels.data.sources import pixels_of
    from hubmodels.visualization import reconstruction_sheet

    network = AutoModelForPreTraining.from_pretrained(source).eval()
    processor = AutoImageProcessor.from_pretrained(source)
    with Image.open(image) as opened:
        pixels = pixels_of(opened)  # as in training: upright, 16 bits as 8
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture = picture.convert("L" if network.config.num_channels == 1 else "RGB")
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    generator = torch.Generator().manual_seed(seed)
    reconstruction_sheet(
        network,
        pixel_values,
        output,
        processor.image_mean,
        processor.image_std,
        mask_ratio=mask_ratio,
        generator=generator,
    )
    typer.echo(f"wrote {output}")


def _default_demo_model() -> str:
    for checkpoint in catalog.CHECKPOINTS:
        if checkpoint.is_packaged and checkpoint.task == "image-feature-extraction":
            return str(catalog.packaged_path(checkpoint.name))
    raise ValueError("no packaged checkpoint can reconstruct; give a model with --model")


def main() -> None:
    """Run the command line; also the entry point of `accelerate launch -m hubmodels.cli ...`."""
    app()


if __name__ == "__main__":
    main()
