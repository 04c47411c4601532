"""What a run will take: which recipe fits, how much time and memory, before it starts."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from rich import box
from rich.table import Table
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from hubmodels.optimization.schedules import scaled_learning_rate
from hubmodels.training.assembly import RunData, resolved_precision
from hubmodels.training.methods import method_training
from hubmodels.training.random_state import preserved_random_state
from hubmodels.training.recipe import Recipe, RecipeError, recipe_names

SMALL_IMAGE = 48  # pixels of the short side up to which the 32-pixel recipes fit
MEDIUM_IMAGE = 128
MEMORY_SHARE = 0.6  # of what is free
MOST_IMAGES_PER_PASS = 256


@dataclass(frozen=True)
class Measurement:
    """Cost of training, measured on a few batches.

    Attributes:
        seconds: Forward and backward of one image.
        loading_seconds: Reading and augmenting one image, in one process.
        activation_bytes: Memory kept for the backward of one image.
        fixed_bytes: Weights, gradients and optimiser state.
        leaves_unused: Whether weights that are to be trained got no gradient, such as mask tokens of a backbone.
        uses_batch_statistics: Whether batch normalisation makes the result depend on which images share a pass.
    """

    seconds: float
    loading_seconds: float
    activation_bytes: int
    fixed_bytes: int
    leaves_unused: bool = False
    uses_batch_statistics: bool = False


@dataclass(frozen=True)
class Plan:
    """How a recipe is carried out on this machine.

    Attributes:
        device_batch_size: Images in a forward pass.
        accumulation: Forward passes in an optimiser step.
        processes: Processes that train together.
        workers: Processes that load images, for each process.
        seconds: Estimated time of the run.
        memory_bytes: Estimated memory of one process.
        finds_unused: Whether several processes must look for weights without gradient in every step.
    """

    device_batch_size: int
    accumulation: int
    processes: int
    workers: int
    seconds: float
    memory_bytes: int
    finds_unused: bool


def choose_recipe(short_side: int, has_gpu: bool) -> str:
    """The pre-training recipe that fits a set of pictures and a machine.

    Args:
        short_side: Typical short side of the pictures, in pixels.
        has_gpu: Whether there is a GPU.

    Returns:
        Name of the recipe.
    """
    if short_side <= SMALL_IMAGE:
        return "small_pretrain"
    return "photos_224_pretrain" if has_gpu and short_side > MEDIUM_IMAGE else "photos_96_pretrain"


def finetuning_recipe(method: str, image_size: int | Sequence[int] | None) -> str | None:
    """The packaged recipe that fine-tunes a pre-trained model.

    Args:
        method: Name of the method.
        image_size: Pixels of the images that the model takes, one number or (height, width); None for any.

    Returns:
        `METHOD/NAME`, or None if the method has no such recipe.
    """
    size = max(image_size) if isinstance(image_size, Sequence) else image_size or SMALL_IMAGE
    fitting = "small" if size <= SMALL_IMAGE else "photos_96" if size <= MEDIUM_IMAGE else "photos_224"
    there = set(recipe_names(method))
    return next((n for n in (f"{method}/{fitting}_finetune", f"{method}/small_finetune") if n in there), None)


def with_fitting_batch(recipe: Recipe, images: int) -> Recipe:
    """Make the batch so small that an epoch has at least four steps.

    Args:
        recipe: The recipe, changed in place.
        images: Number of training images.

    Returns:
        The recipe.
    """
    while recipe.schedule.batch_size > max(2, images // 4):
        recipe.schedule.batch_size //= 2
    return recipe


def measure(
    model: PreTrainedModel,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    samples: list[Any],
    device: torch.device,
    precision: str,
) -> Measurement:
    """Time a few steps, and count what they keep in memory. The model and the random numbers stay as they were.

    Several processes measure together, as the passes of some methods gather what all of them computed.

    Args:
        model: The model.
        collate: Makes a batch.
        samples: Samples of one batch.
        device: Where to run.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        The measurement.
    """
    with preserved_random_state():
        started = time.perf_counter()
        batch = {key: value.to(device) for key, value in collate(samples).items()}
        collating = time.perf_counter() - started
        copy: Any = deepcopy(model)
        copy.to(device).train()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        autocast = torch.autocast(device.type, dtype) if dtype is not None else nullcontext()
        saved, batch_statistics = _SavedTensors(copy), _batch_statistics(copy)
        with saved, autocast:
            copy(**batch).loss.backward()
        timings = []
        for _ in range(3):
            started = time.perf_counter()
            with autocast:
                loss = copy(**batch).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            timings.append(time.perf_counter() - started)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return Measurement(
        seconds=min(timings) / len(samples),
        loading_seconds=collating / len(samples),
        activation_bytes=saved.bytes // len(samples),
        fixed_bytes=4 * (total + 3 * trainable),
        leaves_unused=any(p.requires_grad and p.grad is None for p in copy.parameters()),
        uses_batch_statistics=any(batch_statistics),
    )


def _batch_statistics(model: torch.nn.Module) -> list[bool]:
    """A list that every batch normalisation of the model adds to: whether it took statistics that the loss depends on.

    Without gradients a layer only follows the moving statistics, as the projection head of SimCLR's linear probe.
    """
    uses: list[bool] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda layer, *_: uses.append(layer.training and torch.is_grad_enabled()))
    return uses


class _SavedTensors:
    """Counts the bytes that autograd keeps for the backward, without the weights."""

    def __init__(self, model: torch.nn.Module):
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *details: Any) -> None:
        self._hooks.__exit__(*details)


def make_plan(recipe: Recipe, data: RunData, measurement: Measurement, processes: int, device: torch.device) -> Plan:
    """Divide the batch and estimate time and memory.

    Args:
        recipe: The recipe.
        data: Its data.
        measurement: Cost of an image.
        processes: Processes that train together.
        device: Where each runs.

    Returns:
        The plan.

    Raises:
        RecipeError: If the batch cannot be divided among the processes, or is larger than the data.
    """
    batch = recipe.schedule.batch_size
    if batch % processes:
        raise RecipeError(f"schedule.batch_size = {batch} cannot be divided among {processes} processes")
    if batch > data.images_per_epoch:
        raise RecipeError(
            f"schedule.batch_size = {batch} is more than the {data.images_per_epoch} training images; "
            f"set schedule.batch_size to at most {data.images_per_epoch}"
        )
    free = _free_memory(device) * MEMORY_SHARE / (1 if device.type == "cuda" else processes)
    fitting = int((free - measurement.fixed_bytes) / max(measurement.activation_bytes, 1))
    most = recipe.run.device_batch_size or max(2, min(fitting, MOST_IMAGES_PER_PASS))
    chosen_by_memory = recipe.run.device_batch_size is None
    divides = method_training(recipe.method).divides_task(recipe.task)
    if not divides or (chosen_by_memory and measurement.uses_batch_statistics):
        most = batch // processes
    device_batch = _largest_divisor(batch // processes, most, _mixes(recipe))
    workers = recipe.run.workers if recipe.run.workers is not None else _fitting_workers(device)
    images = recipe.schedule.epochs * (data.images_per_epoch // batch) * batch / processes
    images *= method_training(recipe.method).passes_per_image(recipe)
    loading = measurement.loading_seconds / max(workers, 1)
    per_image = max(measurement.seconds, loading) if workers else measurement.seconds + loading
    return Plan(
        device_batch_size=device_batch,
        accumulation=batch // processes // device_batch,
        processes=processes,
        workers=workers,
        seconds=images * per_image,
        memory_bytes=measurement.fixed_bytes + device_batch * measurement.activation_bytes,
        finds_unused=measurement.leaves_unused,
    )


def _largest_divisor(number: int, most: int, even: bool) -> int:
    divisors = [size for size in range(1, min(number, most) + 1) if number % size == 0 and not (even and size % 2)]
    if not divisors and number % 2 == 0:
        raise RecipeError(
            f"run.device_batch_size must be at least 2 with mixup and cutmix, which mix pairs of images, got {most}"
        )
    if not divisors:
        raise RecipeError(f"schedule.batch_size gives {number} images a process: mixup and cutmix need an even number")
    return divisors[-1]


def _mixes(recipe: Recipe) -> bool:
    return recipe.regularization.mixup > 0 or recipe.regularization.cutmix > 0


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _fitting_workers(device: torch.device) -> int:
    """On a CPU the training itself takes the cores; a GPU is fed by them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if device.type == "cuda" else max(0, cores // 4)


def first_samples(data: RunData, count: int) -> list[Any]:
    """Samples to measure on.

    Args:
        data: The data.
        count: How many, at most.

    Returns:
        The first training samples.
    """
    if hasattr(data.train, "__len__"):
        return [data.train[index] for index in range(min(count, len(data.train)))]
    return list(islice(iter(data.train), count))


def plan_table(
    recipe: Recipe, title: str, data: RunData, model: PreTrainedModel, plan: Plan, device: torch.device, output: Path
) -> Table:
    """The plan, to be printed before the run starts.

    Args:
        recipe: The recipe.
        title: Name of the recipe.
        data: Its data.
        model: Its model.
        plan: The plan.
        device: Where it runs.
        output: Folder of the run.

    Returns:
        A rich table.
    """
    schedule, run = recipe.schedule, recipe.run
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    classes = f", {len(data.class_names)} classes" if data.class_names else ", unlabelled"
    test = f"{len(data.test):,} images ({data.note})" if data.test is not None else "none"
    division = f"{plan.device_batch_size} a pass x {plan.accumulation} passes x {plan.processes} processes"
    steps = schedule.epochs * (data.images_per_epoch // schedule.batch_size)
    optimizer = recipe.optimizer
    peak = scaled_learning_rate(optimizer.base_learning_rate, schedule.batch_size, optimizer.lr_scaling)
    rows = {
        "recipe": f"{title} ({recipe.method}, {recipe.task})",
        "training data": f"{recipe.data.source}: {data.images_per_epoch:,} images{classes}",
        "test data": test,
        "model": f"{type(model).__name__}, {total / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M trained, "
        f"images of {getattr(model.config, 'image_size', recipe.transform.size)} pixels",
        "starts from": recipe.init_from or "random weights",
        "schedule": f"{schedule.epochs} epochs, {steps:,} steps of {schedule.batch_size} images ({division})",
        "optimizer": f"{optimizer.name}, learning rate {peak:.3g}, seed {run.seed}",
        "device": f"{device} in {resolved_precision(run.precision)}, {plan.workers} loading processes",
        "estimated memory": f"{plan.memory_bytes / 2**30:.2f} GB a process beside the libraries "
        f"({_free_memory(device) / 2**30:.1f} GB free)",
        "estimated time": f"{readable_time(plan.seconds)} (shorter: --set schedule.epochs=N)",
        "output": str(output),
    }
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title="Plan", title_justify="left", pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def readable_time(seconds: float) -> str:
    """A duration in the unit that suits it.

    Args:
        seconds: The duration.

    Returns:
        Such as "40 s", "12 min", "3.5 h" or "2.1 days".
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
