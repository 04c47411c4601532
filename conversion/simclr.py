"""SimCLR: the official TensorFlow checkpoints of v1 (arXiv 2002.05709) and v2 (2006.10029) to our folders and back.

Three layouts are read, all without TensorFlow:

| layout | variables are called | published as |
| --- | --- | --- |
| TF1 | `base_model/conv2d_7/kernel` | `model.ckpt-*` of v1 and v2; also `hub/variables` |
| TF2 checkpoint | `model/resnet_model/block_groups/...` | written by training with the TF2 code |
| TF2 SavedModel | any name; the object graph tells | `saved_model/` of v1 and v2 |

What a checkpoint becomes depends on its heads:

| heads | becomes |
| --- | --- |
| supervised (v1; v2 `pretrained`, `finetuned_*`, `distill_*`, `supervised`) | `SimCLRForImageClassification` |
| only the projection head | `SimCLRForPreTraining` |
| none | `SimCLRModel` |

Every class loads every folder: `SimCLRForPreTraining.from_pretrained` takes the projection head of a classifier, too.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from transformers import PreTrainedModel

from .building import build_config, label_fields, shape_of
from .cards import Origin, converted_card
from .checkpoint_reading import ConversionError, check_types, read_checkpoint
from .converted import Converted
from .key_mapping import check_keys
from .output import check_new_file, new_file
from .recognition import describe
from .simclr_names import (
    Kernels,
    Network,
    infer_network,
    tf2_order,
    tf2_variable_keys,
    to_official_layout,
    to_our_layout,
    variables,
)
from .tensorflow_checkpoint import (
    OBJECT_GRAPH_KEY,
    VALUE_SUFFIX,
    TensorFlowCheckpoint,
    find_prefix,
    object_graph,
    write_checkpoint,
)

MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    model.__name__: model for model in (SimCLRModel, SimCLRForPreTraining, SimCLRForImageClassification, SimCLRBackbone)
}
LAYOUTS = ("tf1", "tf2")

ORIGIN = Origin(
    method="simclr",
    paper_title="A Simple Framework for Contrastive Learning of Visual Representations",
    paper="https://arxiv.org/abs/2002.05709",
    code="https://github.com/google-research/simclr",
    licence="apache-2.0",
    licence_name="[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)",
    citation="""@inproceedings{chen2020simple,
  title={A Simple Framework for Contrastive Learning of Visual Representations},
  author={Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle={ICML},
  year={2020}
}

@inproceedings{chen2020big,
  title={Big Self-Supervised Models are Strong Semi-Supervised Learners},
  author={Chen, Ting and Kornblith, Simon and Swersky, Kevin and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle={NeurIPS},
  year={2020}
}""",
)

# What training stores beside the weights: steps, slots of optimisers, and the moving average and queue of v2.
_TF1_IGNORED = re.compile(
    r"^(global_step|beta[12]_power)$|/(Momentum|LARSOptimizer|Adam(_1)?)$|^memory(/|$)|^ema_model(/|$)"
)
_TF2_IGNORED = re.compile(rf"^{OBJECT_GRAPH_KEY}$|/\.OPTIMIZER_SLOT/|^(optimizer/|(global_step|save_counter)(/|$))")
_EMA = "ema_model/"
_STANDARD_WIDTH = 64


def read_official(path: str | os.PathLike[str]) -> Mapping[str, torch.Tensor]:
    """Open an official checkpoint.

    Args:
        path: prefix (`model.ckpt-250228`), its `.index`, the folder it lies in, a SavedModel folder, or a
            `.safetensors` file with the official names.

    Returns:
        Tensors by official name, read when they are asked for.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConversionError: it is damaged, or a file of another kind; the message says which.
    """
    path = os.fspath(path)
    if path.endswith(".safetensors") and os.path.isfile(path):
        return read_checkpoint(path)["model"]
    if path.endswith(".zip") and os.path.isfile(path):
        raise ConversionError(f"{path!r} is an archive; unpack it and give the checkpoint in it")
    try:
        prefix = find_prefix(path)
    except FileNotFoundError:
        if not os.path.isfile(path):
            raise
        content = describe(read_checkpoint(path))
        raise ConversionError(f"{path!r} is no TensorFlow checkpoint of SimCLR; {content}") from None
    return TensorFlowCheckpoint(prefix)


def convert(
    checkpoint: Mapping[str, torch.Tensor],
    source: Path,
    *,
    ignore_head: bool = False,
    use_ema: bool = False,
    ft_proj_selector: int | None = None,
    image_size: int | list[int] | None = None,
    linear_probe: bool | None = None,
) -> Converted:
    """Convert the content of an official SimCLR checkpoint.

    Depth, width, stem, selective kernels and heads are read from the tensors, never from the name.

    Args:
        checkpoint: what `read_official` returned.
        source: where it was read from; the folder of a released checkpoint says which activation its classifier reads.
        ignore_head: leave out both heads and keep the encoder, as fine-tuning with the TF1 code starts.
        use_ema: take the moving average of the weights (`ema_model`, in v2 pre-training) in place of the weights. A
            supervised head, which does not belong to it, is left out.
        ft_proj_selector: activation that the classifier reads: 0 is the representation, j the output of layer j of the
            projection head. Default: 1 for released `finetuned_*` and `distill_*` checkpoints, where its width is
            that of the last layer only that one, else 0.
        image_size: pixels, one number or (height, width); default 32 with the stem for small images, else 224.
        linear_probe: whether `SimCLRForPreTraining` goes on training the classifier. Default: where the TF2 code wrote
            both heads (except released ones).

    Returns:
        The model, its image processor and its card.

    Raises:
        ConversionError: not a SimCLR checkpoint, unknown or missing variables, wrong shapes, or options that
            contradict it.
    """
    layout, keys = _official_names(checkpoint, use_ema)
    shapes = {name: _entry(checkpoint, key) for name, key in keys.items()}
    kernels = infer_network(_base_kernels(layout, shapes))
    network = _with_heads(kernels.network, shapes)
    names = {variable.ours: _name(variable, layout) for variable in variables(network)}
    fields = _config_fields(kernels, network, names, shapes, source)
    given = {"ft_proj_selector": ft_proj_selector, "image_size": image_size, "linear_probe": linear_probe}
    fields.setdefault("linear_probe", layout == "tf2" and not _is_released(source) and _has_both_heads(network))
    fields.update({name: value for name, value in given.items() if value is not None})
    config = build_config(SimCLRConfig, fields)
    model = _build(config, network, names, checkpoint, keys, shapes, ignore_head)
    files = checkpoint.files if isinstance(checkpoint, TensorFlowCheckpoint) else [source]
    return Converted(model, _image_processors(model.config), _card(model, network, source, files, use_ema))


def to_official(model: PreTrainedModel, layout: str = "tf1") -> dict[str, torch.Tensor]:
    """Map the weights of one of our models to the official names and layouts.

    Args:
        model: a SimCLR model with the official ResNet.
        layout: "tf1" or "tf2".

    Returns:
        The official variables, with tensors of their own, sorted by name.

    Raises:
        ConversionError: the official code has no such model.
        ValueError: unknown `layout`.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    config = model.config
    if config.backbone_config is not None:
        kind = config.backbone_config.model_type
        raise ConversionError(f"the official SimCLR code knows its own ResNets only, this model has a {kind} backbone")
    state = {name: tensor for name, tensor in model.state_dict().items() if not _is_counter(name)}
    network = _network_of(config, state)
    official = {_name(variable, layout): variable.ours for variable in variables(network)}
    return {
        name: to_official_layout(state[official[name]]).clone(memory_format=torch.contiguous_format)
        for name in sorted(official)
    }


def write_official(model: PreTrainedModel, out: str | os.PathLike[str], layout: str = "tf1") -> None:
    """Write one of our models as a TensorFlow checkpoint, `OUT.index` and `OUT.data-00000-of-00001`.

    Args:
        model: a SimCLR model with the official ResNet.
        out: prefix of the two files, which appear only when they are complete.
        layout: "tf1", or "tf2" with the object graph that `tf.train.Checkpoint.restore` follows.

    Raises:
        ConversionError, ValueError: as in `to_official`.
        FileExistsError: one of the files exists.
    """
    prefix = os.fspath(out).removesuffix(".index")
    index, data = f"{prefix}.index", f"{prefix}.data-00000-of-00001"
    for file in (index, data):
        check_new_file(file)
    tensors: dict[str, torch.Tensor | bytes] = dict(to_official(model, layout))
    if layout == "tf2":
        tensors[OBJECT_GRAPH_KEY] = object_graph(tensors)
    with new_file(index) as new_index, new_file(data) as new_data:
        write_checkpoint(new_index, new_data, tensors)


def _official_names(checkpoint: Mapping[str, torch.Tensor], use_ema: bool) -> tuple[str, dict[str, str]]:
    """Layout, and key in the checkpoint by canonical official name; names that are no variable of SimCLR stay."""
    graph = checkpoint.object_graph if isinstance(checkpoint, TensorFlowCheckpoint) else None
    if graph is not None or any(key.endswith(VALUE_SUFFIX) for key in checkpoint):
        layout, ignored = "tf2", _TF2_IGNORED
    else:
        layout, ignored = "tf1", _TF1_IGNORED
    keys = {key: key for key in checkpoint}
    if graph is not None:
        resolved = {name: key for name, key in tf2_variable_keys(graph).items() if key in checkpoint}
        known = set(resolved.values())
        keys = resolved | {key: key for key in checkpoint if key not in known}
    if use_ema:
        averaged = {name.removeprefix(_EMA): key for name, key in keys.items() if name.startswith(_EMA)}
        if not averaged:
            raise ConversionError("use_ema was given, but the checkpoint holds no moving average (ema_model)")
        keys = averaged
    keys = {name: key for name, key in keys.items() if not ignored.search(name)}
    base = "base_model/" if layout == "tf1" else "model/resnet_model/"
    if not any(name.startswith(base) for name in keys):
        names = describe(dict.fromkeys(checkpoint))
        raise ConversionError(f"not a SimCLR checkpoint: no variables {base}...; {names}")
    return layout, keys


def _entry(checkpoint: Mapping[str, torch.Tensor], key: str) -> Any:
    """Something with the shape of a tensor, which is not read yet."""
    return checkpoint.entries[key] if isinstance(checkpoint, TensorFlowCheckpoint) else checkpoint[key]


def _base_kernels(layout: str, shapes: Mapping[str, Any]) -> list[tuple[tuple[int, ...], bool]]:
    """Shapes of the convolutions of the base network in the order of their creation, and whether they have a bias."""
    if layout == "tf1":
        found = {
            int(match.group(1) or 0): name
            for name in shapes
            if (match := re.fullmatch(r"base_model/conv2d(?:_([1-9][0-9]*))?/kernel", name))
        }
        ordered, suffix = [found[number] for number in sorted(found)], "kernel"
    else:
        suffix = "kernel" + VALUE_SUFFIX
        convolutions = [n for n in shapes if n.startswith("model/resnet_model/") and n.endswith("/" + suffix)]
        ordered = sorted(convolutions, key=tf2_order)
    bias = suffix.replace("kernel", "bias")
    return [(tuple(shapes[name].shape), name.removesuffix(suffix) + bias in shapes) for name in ordered]


def _with_heads(network: Network, shapes: Mapping[str, Any]) -> Network:
    """Add the heads to a network."""
    pattern = r"head_contrastive/(n?l)_(\d+)/|model/_projection_head/linear_layers/(\d+)/"
    layers = {match.groups() for name in shapes if (match := re.match(pattern, name))}
    linear = any(prefix == "l" for prefix, _, _ in layers)
    return replace(
        network,
        head_mode=("linear" if linear else "nonlinear") if layers else "none",
        head_layers=len(layers),
        classifier=any(name.startswith(("head_supervised/", "model/supervised_head/")) for name in shapes),
    )


def _has_both_heads(network: Network) -> bool:
    return network.classifier and network.head_layers > 0


def _config_fields(
    kernels: Kernels, network: Network, names: Mapping[str, str], shapes: Mapping[str, Any], source: Path
) -> dict[str, Any]:
    """Config fields that the tensors show, and the released defaults of those that they do not."""
    standard = kernels.width % _STANDARD_WIDTH == 0
    fields: dict[str, Any] = {
        "layer_type": network.layer_type,
        "depths": list(network.depths),
        "num_channels": kernels.channels,
        "stem_width": _STANDARD_WIDTH if standard else kernels.width,
        "width_multiplier": kernels.width // _STANDARD_WIDTH if standard else 1,
        "sk_ratio": kernels.sk_ratio,
        "se_ratio": kernels.se_ratio,
        "cifar_stem": network.stem == "cifar",
        "image_size": 32 if network.stem == "cifar" else 224,
        "proj_head_mode": network.head_mode,
    }
    if network.head_layers:
        last = names[f"projection_head.layers.{network.head_layers - 1}.dense.weight"]
        fields["proj_out_dim"] = shape_of(shapes, last, "in, out")[1]
    if network.head_mode == "nonlinear":
        fields["num_proj_layers"] = network.head_layers
    if network.classifier:
        inputs, classes = shape_of(shapes, names["classifier.weight"], "in, out")
        fields |= label_fields(classes, is_released=_is_released(source))
        features = kernels.width * 2 ** (len(network.depths) - 1) * (1 if network.layer_type == "basic" else 4)
        if network.head_layers and inputs == fields["proj_out_dim"] != features:
            fields["ft_proj_selector"] = network.head_layers
        elif network.head_layers and any(part.startswith(("finetuned_", "distill_")) for part in _parts(source)):
            fields["ft_proj_selector"] = 1
    return fields


def _parts(source: Path) -> tuple[str, ...]:
    return Path(os.path.abspath(source)).parts


def _is_released(source: Path) -> bool:
    """Whether a path looks like that of a released checkpoint."""
    return any(re.fullmatch(r"simclrv[12]|ResNet50_[124]x", part) for part in _parts(source))


def _build(
    config: SimCLRConfig,
    network: Network,
    names: Mapping[str, str],
    checkpoint: Mapping[str, torch.Tensor],
    keys: Mapping[str, str],
    shapes: Mapping[str, Any],
    ignore_head: bool,
) -> PreTrainedModel:
    """Build the model around the official tensors after checking every name and shape, also of heads left out."""
    with torch.device("meta"):
        model = _model_class(network)(config)
        expected = {
            names[name]: to_official_layout(tensor)
            for name, tensor in model.state_dict().items()
            if not _is_counter(name)
        }
        check_keys(expected, shapes)
        if ignore_head:
            model = SimCLRModel(config)
    state: dict[str, torch.Tensor] = {}
    for name in model.state_dict():
        if _is_counter(name):
            state[name] = torch.zeros((), dtype=torch.int64)
        else:
            state[name] = to_our_layout(checkpoint[keys[names[name]]]).contiguous()
    check_types({names[name]: tensor for name, tensor in state.items() if not _is_counter(name)})
    model.load_state_dict(state, assign=True)
    return model.eval()


def _model_class(network: Network) -> type[PreTrainedModel]:
    if network.classifier:
        return SimCLRForImageClassification
    return SimCLRForPreTraining if network.head_layers else SimCLRModel


def _network_of(config: SimCLRConfig, state: Mapping[str, torch.Tensor]) -> Network:
    """The official network that one of our models is."""
    layers = {name.split(".")[2] for name in state if name.startswith("projection_head.layers.")}
    stem = "cifar" if config.uses_cifar_stem else "deep" if config.sk_ratio > 0 else "plain"
    return Network(
        config.layer_type,
        tuple(config.depths),
        stem,  # type: ignore[arg-type]
        selective_kernels=config.sk_ratio > 0,
        squeeze_excitation=config.se_ratio > 0,
        head_mode=config.proj_head_mode if layers else "none",
        head_layers=len(layers),
        classifier="classifier.weight" in state,
    )


def _name(variable: Any, layout: str) -> str:
    return variable.tf1 if layout == "tf1" else variable.tf2


def _is_counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _image_processors(config: SimCLRConfig) -> tuple[SimCLRImageProcessor, ...]:
    """The official views and evaluation crop at the size of the model; none without the three channels of RGB."""
    if config.num_channels != 3:
        return ()
    height, width = config.image_height_width
    return (SimCLRImageProcessor(size={"height": height, "width": width}),)


def _card(model: PreTrainedModel, network: Network, source: Path, files: list[Path], use_ema: bool) -> str:
    """The model card, saying what the released checkpoints are good for."""
    auto_classes = {
        SimCLRModel: ("AutoModel", "image-feature-extraction"),
        SimCLRForPreTraining: ("AutoModelForPreTraining", "image-feature-extraction"),
        SimCLRForImageClassification: ("AutoModelForImageClassification", "image-classification"),
    }
    auto_class, task = auto_classes[type(model)]
    return converted_card(
        ORIGIN,
        source,
        files=files,
        title=_title(source),
        description=_description(model),
        changes="they were only renamed, and kernels transposed",
        architecture=type(model).__name__,
        auto_class=auto_class,
        task=task,
        parameters=sum(tensor.numel() for name, tensor in model.state_dict().items() if not _is_counter(name)),
        notes=tuple(_notes(model, network, use_ema)),
    )


def _title(source: Path) -> str:
    """`simclrv2/pretrained/r50_1x_sk0` of a released path, else the name of the checkpoint."""
    parts = _parts(source)
    for number, part in enumerate(parts):
        if re.fullmatch(r"simclrv[12]", part) and len(parts) > number + 2:
            return "/".join(parts[number : number + 3])
    return source.stem if source.suffix in (".index", ".safetensors") else source.name


def _description(model: PreTrainedModel) -> str:
    config = model.config
    blocks = sum(config.depths) * (2 if config.layer_type == "basic" else 3)
    network = f"ResNet-{blocks + 2} ({config.embedding_size / _STANDARD_WIDTH:g}x"
    network += ", selective kernels)" if config.sk_ratio else ")"
    if isinstance(model, SimCLRForImageClassification):
        return f"{network} with a classifier of {config.num_labels} classes, from the official SimCLR code."
    if isinstance(model, SimCLRForPreTraining):
        return f"{network} with the projection head of SimCLR: for continued pre-training and fine-tuning."
    return f"{network} encoder of SimCLR: for features and as initialisation."


def _notes(model: PreTrainedModel, network: Network, use_ema: bool) -> Iterator[str]:
    config = model.config
    yield (
        "Images are RGB in [0, 1], **without** subtracting a mean or dividing by a deviation; the image processor does "
        "it so. The max pool of the stem pads as TensorFlow does (`pool_padding`); other padding costs accuracy."
    )
    if isinstance(model, SimCLRForImageClassification):
        reads = (
            f"the output of layer {config.selected_layer} of the projection head" if config.selected_layer else "`h`"
        )
        yield (
            f"The classifier reads {reads} (`ft_proj_selector = {config.ft_proj_selector}`). Checkpoints do not say "
            "which activation it was trained on."
        )
    if network.head_layers and not isinstance(model, SimCLRModel):
        yield (
            f"The projection head has {network.head_layers} layers; `SimCLRForPreTraining` loads it from this folder, "
            "and fine-tuning can start from its first layer with `ft_proj_selector=1`."
        )
    if not network.head_layers:
        yield (
            "The checkpoint has no projection head. Continued pre-training adds a new one if it is asked for: "
            '`SimCLRForPreTraining.from_pretrained(FOLDER, proj_head_mode="nonlinear", num_proj_layers=2)`.'
        )
    if use_ema:
        yield "These are the moving averages of the weights (`ema_model` in the checkpoint)."
