"""`train` with SimCLR and DenseCL: from pictures to a loadable folder, probed on the way, resumable."""

from itertools import islice

import numpy as np
import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
)
from PIL import Image
from stopping import assert_same_bits, stopped_at_step_5, weights
from torch.utils.data import Subset
from torchvision.transforms.functional import to_pil_image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    PreTrainedConfig,
    ResNetConfig,
    ViTConfig,
    ViTModel,
    pipeline,
)

from hubmodels.catalog import packaged_path
from hubmodels.data import load_image_dataset
from hubmodels.data.randomness import uniforms
from hubmodels.evaluation import evaluate
from hubmodels.training import HubTrainer, HubTrainingArguments, Recipe, RecipeError, read_jsonl, train
from hubmodels.training import run as run_module
from hubmodels.training.assembly import RepeatedStream, build_collators, build_model
from hubmodels.training.methods import method_class, method_training
from hubmodels.training.methods.contrastive import ViewsCollator
from hubmodels.training.parameter_groups import layer_adaptation_groups, parameter_groups
from hubmodels.training.random_state import EpochSampler
from tests.launching import train_in_two_processes

COMMON = [
    "schedule.epochs=3",
    "schedule.batch_size=8",
    "schedule.warmup_epochs=1",
    "probe.every_epochs=1",
    "probe.k=3",
    "probe.linear_epochs=2",
    "run.tensorboard=false",
]
SIZES = {"image_size": 16, "stem_width": 4, "depths": [1, 1], "proj_out_dim": 8, "num_proj_layers": 2}
TINY = {
    "simclr": [*COMMON, "model.stem_width=2", "model.image_size=18"],
    "densecl": [
        *COMMON,
        "model.embedding_size=2",
        "model.projection_hidden_size=8",
        "model.projection_size=4",
        "model.queue_length=16",
        "transform.size=32",
    ],
}


@pytest.fixture(scope="module", params=sorted(TINY))
def finished(request, pictures, tmp_path_factory):
    """Name of the method and a finished run."""
    output = tmp_path_factory.mktemp(request.param) / "run"
    recipe = f"{request.param}/small_pretrain"
    return request.param, train(request.param, pictures, output, recipe=recipe, overrides=TINY[request.param])


def test_a_run_ends_with_a_loadable_folder_a_picture_and_probes(finished, pictures):
    method, run = finished
    assert AutoModelForPreTraining.from_pretrained(run.folder).config.model_type == method
    processor = AutoImageProcessor.from_pretrained(run.folder)
    image = load_image_dataset(pictures, "test")[0]["image"]
    assert processor(image, mode="pretrain", return_tensors="pt")["pixel_values"].shape[:3] == (1, 2, 3)
    assert Image.open(run.folder / "views.png").size[0] > 100
    log = read_jsonl(run.folder / "log.jsonl")
    if method == "simclr":
        losses = [line for line in log if "loss" in line]
        assert all({"contrastive_loss", "contrast_accuracy", "contrast_entropy"} <= set(line) for line in losses)
        assert "supervised_loss" not in losses[0]
    assert [line["epoch"] for line in log if "knn_accuracy" in line] == [1, 2, 3]
    assert not any("eval_loss" in line for line in log)
    backbone = method_class(method, "AutoBackbone").from_pretrained(run.folder)
    assert backbone(torch.rand(1, 3, 32, 32)).feature_maps[-1].shape[1] == backbone.channels[-1]


def test_the_folder_can_be_evaluated(finished, pictures):
    method, run = finished
    # SimCLR takes images of up to 32 pixels as they are, as the official code does; these pictures are 18 x 20.
    transform = None if method == "densecl" else lambda images, table: torch.stack(images)[:, :, :, :18] / 255
    if transform is not None:
        transform.draws = 0
    report = evaluate(run.folder, pictures, protocol="knn", k=3, transform=transform, progress=False).report
    assert 0 <= report.accuracy <= 1


def test_a_stopped_run_continues_to_the_same_weights(finished, pictures, tmp_path, monkeypatch):
    """Encoder, momentum encoder, queues and statistics."""
    method, run = finished
    arguments = {"method": method, "data": pictures, "output": tmp_path / "run"}
    arguments |= {"recipe": f"{method}/small_pretrain", "overrides": TINY[method]}
    with pytest.raises(KeyboardInterrupt):
        stopped_at_step_5(monkeypatch, **arguments)
    result = train(**arguments)
    assert_same_bits(weights(result.folder), weights(run.folder))


@pytest.mark.parametrize("method", ["simclr", "densecl"])
def test_two_processes_train_together(method, pictures, tmp_path):
    """SimCLR's negatives, batch statistics and width of the blur are those of all processes, so that two end as one."""
    recipe = f"{method}/small_pretrain"
    if method == "simclr":
        overrides = [*TINY["simclr"], "run.checkpoints=0", "optimizer.name=sgd", "optimizer.lr_scaling=linear"]
        overrides += ["optimizer.base_learning_rate=0.01", "optimizer.options={momentum: 0.9}", "schedule.epochs=2"]
        overrides += ["transform.options.do_blur=true", "transform.options.blur_kernel_size=6"]
    else:  # its mask token has no gradient
        vit = "{model_type: dinov2, image_size: 32, patch_size: 8, hidden_size: 8, num_hidden_layers: 1}"
        vit = vit.replace("}", ", num_attention_heads: 2}")
        overrides = [*TINY["densecl"], f"model.backbone_config={vit}"]
    train_in_two_processes(recipe, pictures, tmp_path / "two", overrides)
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "two").config.model_type == method
    if method == "simclr":
        one = train(method, pictures, tmp_path / "one", recipe=recipe, overrides=overrides)
        first, second = weights(one.folder), weights(tmp_path / "two")
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        names = ("loss", "contrastive_loss", "contrast_accuracy", "contrast_entropy")
        logs = [
            [line[name] for line in read_jsonl(folder / "log.jsonl") if "loss" in line for name in names]
            for folder in (one.folder, tmp_path / "two")
        ]
        assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def test_a_linear_probe_learns_the_classes_in_pre_training(pictures, tmp_path):
    overrides = [*TINY["simclr"], "model.linear_probe=true", "probe.every_epochs=0"]
    overrides += ["optimizer.base_learning_rate=0.01", "schedule.warmup_epochs=0"]
    run = train("simclr", pictures, tmp_path / "run", recipe="simclr/small_pretrain", overrides=overrides)
    losses = [line["supervised_loss"] for line in read_jsonl(run.folder / "log.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    model = AutoModelForPreTraining.from_pretrained(run.folder)
    assert model.config.id2label == {0: "dark", 1: "light"}
    assert model.classifier.out_features == 2
    classifier = SimCLRForImageClassification.from_pretrained(run.folder)
    assert torch.equal(classifier.classifier.weight, model.classifier.weight)

    further = [*TINY["simclr"], "schedule.epochs=1", "probe.every_epochs=0"]
    run = train("simclr", pictures, tmp_path / "further", str(run.folder), "simclr/small_pretrain", further)
    assert not AutoModelForPreTraining.from_pretrained(run.folder).config.linear_probe, "the recipe asks for none"


def test_a_linear_probe_needs_classes(pictures, tmp_path):
    overrides = [*TINY["simclr"], "model.linear_probe=true"]
    arguments = {"recipe": "simclr/small_pretrain", "overrides": overrides}
    with pytest.raises(RecipeError, match=r"model.linear_probe in pre-training\) needs labels, and .*dark has none"):
        train("simclr", pictures / "train" / "dark", tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()
    arguments["overrides"] = [*overrides, "regularization.cutmix=1"]
    with pytest.raises(RecipeError, match=r"regularization.cutmix is for labelled tasks"):
        train("simclr", pictures, tmp_path / "mixed", **arguments)


def test_views_depend_on_the_sample_and_the_epoch_alone(pictures):
    images = load_image_dataset(pictures, "train")
    items = [images[index] for index in range(6)]
    collator = ViewsCollator(SimCLRImageProcessor(size=16, do_blur=False), seed=0, train=True)
    whole = collator(items)["pixel_values"]
    torch.testing.assert_close(collator(items[3:])["pixel_values"], whole[3:], rtol=0, atol=0)
    collator.set_epoch(1)
    assert not torch.equal(collator(items)["pixel_values"], whole)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("subset", [False, True])
def test_parts_of_a_batch_share_the_width_of_the_blur(subset, epoch, pictures):
    """Also of a part of the images, whose items keep their numbers."""
    images = load_image_dataset(pictures, "train").select(np.arange(20)[::-1])
    images = Subset(Subset(images, range(2, 20)), list(range(0, 17))) if subset else images
    processor = SimCLRImageProcessor(size=18, blur_kernel_size=6, blur_probability=1.0)
    collator, alone = (ViewsCollator(processor, seed=0, train=True) for _ in range(2))
    sampler = EpochSampler(images, seed=3)
    collator.set_batches(sampler, 8)
    for part in (sampler, collator, alone):
        part.set_epoch(epoch)
    items = [images[place] for place in sampler]
    for start in (0, 8):
        whole = alone(items[start : start + 8])["pixel_values"]
        parts = [collator(items[start + each : start + each + 4])["pixel_values"] for each in (0, 4)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)
    assert not torch.equal(alone(items[12:16])["pixel_values"], whole[4:])


def test_items_with_numbers_of_their_own_are_a_batch_of_their_process(pictures):
    images = load_image_dataset(pictures, "train").select(np.arange(8))
    processor = SimCLRImageProcessor(size=18, blur_kernel_size=6, blur_probability=1.0)
    collator, alone = (ViewsCollator(processor, seed=0, train=True) for _ in range(2))
    collator.set_batches(EpochSampler(images, seed=3), 8)
    items = [images[place] | {"index": 1000 + place} for place in range(4)]
    torch.testing.assert_close(collator(items)["pixel_values"], alone(items)["pixel_values"], rtol=0, atol=0)


def test_parts_of_a_batch_of_a_stream_share_the_width_of_the_blur():
    class Stream:
        class_names = ()
        shuffle = set_epoch = lambda self, _: self

        def __iter__(self):
            for index in range(5):
                yield {"image": torch.full((3, 24, 24), 40 * index, dtype=torch.uint8), "index": index}

    items = list(islice(RepeatedStream(Stream(), seed=0, batch_size=8), 16))
    collator = ViewsCollator(SimCLRImageProcessor(size=24), seed=0, train=True)
    for start in (0, 8):
        whole = collator(items[start : start + 8])["pixel_values"]
        parts = [collator(items[start + each : start + each + 4])["pixel_values"] for each in (0, 4)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_a_step_is_never_divided(pictures, tmp_path):
    overrides = [*TINY["simclr"], "run.device_batch_size=2", "schedule.epochs=1", "probe.every_epochs=0"]
    run = train("simclr", pictures, tmp_path / "run", recipe="simclr/small_pretrain", overrides=overrides)
    steps = [line["step"] for line in read_jsonl(run.folder / "log.jsonl") if "loss" in line]
    assert steps[-1] == 3


def test_a_smaller_last_batch_is_refused_in_pre_training(tmp_path):
    """Its images would have fewer negatives, and a batch of one has none."""
    views = [{"pixel_values": torch.rand(2, 3, 16, 16)} for _ in range(9)]
    arguments = HubTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, dataloader_drop_last=False, use_cpu=True, report_to="none"
    )
    message = r"dataloader_drop_last must be True for SimCLRForPreTraining, .* got False"
    with pytest.raises(ValueError, match=message):
        HubTrainer(SimCLRForPreTraining(SimCLRConfig(**SIZES)), arguments, train_dataset=views)
    HubTrainer(SimCLRForPreTraining(SimCLRConfig(**SIZES)), arguments)
    HubTrainer(SimCLRForImageClassification(SimCLRConfig(**SIZES)), arguments, train_dataset=views)


def test_a_timm_network_becomes_the_backbone(pictures, tmp_path):
    overrides = [*COMMON, "model.image_size=32", "schedule.epochs=1", "probe.every_epochs=0"]
    run = train("simclr", pictures, tmp_path / "run", "resnet10t", "simclr/small_pretrain", overrides)
    model = AutoModel.from_pretrained(run.folder)
    assert model.config.backbone_config.backbone == "resnet10t"


@pytest.mark.parametrize(("method", "name"), [("simclr", "simclr-small-32"), ("densecl", "densecl-small-64")])
def test_a_packaged_checkpoint_keeps_its_stages_and_heads(method, name, pictures, tmp_path):
    overrides = ["schedule.epochs=1", "schedule.batch_size=8", "schedule.warmup_epochs=0", "run.tensorboard=false"]
    overrides += ["probe.every_epochs=0"] + (["model.queue_length=16"] if method == "densecl" else [])
    folder = packaged_path(name)
    run = train(method, pictures, tmp_path, str(folder), f"{method}/small_pretrain", overrides)
    start, end = AutoModel.from_pretrained(folder), AutoModel.from_pretrained(run.folder)
    assert {key: value.shape for key, value in start.state_dict().items()} == {
        key: value.shape for key, value in end.state_dict().items()
    }


@pytest.mark.parametrize("start", ["other method", "positional-label-small-32", "vit"])
@pytest.mark.parametrize("method", ["simclr", "densecl"])
def test_pre_training_goes_on_from_any_encoder(method, start, pictures, tmp_path):
    source = tmp_path / "vit"
    if start == "vit":
        shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(source)
    elif start == "other method":
        source = packaged_path("densecl-small-64" if method == "simclr" else "simclr-small-32")
    else:
        source = start
    overrides = [*COMMON, "schedule.epochs=1", "probe.every_epochs=0", "optimizer.base_learning_rate=1.0e-12"]
    overrides += ["transform.size=32", "model.queue_length=16"] if method == "densecl" else []
    run = train(method, pictures, tmp_path / "run", str(source), f"{method}/small_pretrain", overrides)
    model = AutoModelForPreTraining.from_pretrained(run.folder)
    own_head = {"simclr": ("num_proj_layers", 2), "densecl": ("projection_size", 64)}[method]
    assert getattr(model.config, own_head[0]) == own_head[1], "that of the recipe"
    assert isinstance(model.config.backbone_config, PreTrainedConfig)
    backbone = model.backbone if method == "simclr" else model.momentum_encoder.backbone
    if start == "other method":
        expected = (DenseCLBackbone if method == "simclr" else SimCLRBackbone).from_pretrained(source)
    else:
        backbone = backbone.model
        expected = AutoModel.from_pretrained(packaged_path(source)).backbone if start != "vit" else None
        expected = ViTModel.from_pretrained(source, add_pooling_layer=False) if expected is None else expected
    for name, value in expected.named_parameters():
        torch.testing.assert_close(backbone.get_parameter(name), value, msg=name)


def test_only_what_simclr_pre_trained_is_fine_tuned():
    recipe = Recipe.load("simclr/small_finetune", [f"init_from={packaged_path('mae-small-32')}"])
    with pytest.raises(RecipeError, match=r"is a model of type mae; simclr fine-tunes models of its own: pre-train"):
        build_model(recipe, ["a", "b"])


def test_a_pair_of_networks_is_no_encoder():
    recipe = Recipe.load("simclr/small_pretrain", [f"init_from={packaged_path('sanm-small-32')}"])
    with pytest.raises(RecipeError, match=r"holds a SANMEnsembleForImageClassification"):
        build_model(recipe, [])


def test_runs_do_not_start_from_a_part_of_another_backbone(tmp_path):
    """The official ResNets check themselves; other backbones are checked here, without a prefix of transformers."""
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = SimCLRForPreTraining(SimCLRConfig(backbone_config=resnet, proj_out_dim=8))
    state = {name: tensor for name, tensor in model.state_dict().items() if "stages.1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    recipe = Recipe.from_dict({"method": "simclr", "task": "finetune", "init_from": str(tmp_path)})
    with pytest.raises(RecipeError, match=r"holds no encoder that fits: backbone\.encoder\.stages\.1"):
        build_model(recipe, ["a", "b"])


def test_fine_tuning_starts_with_the_classifier_that_the_recipe_says(tmp_path):
    """Official files carry one of a thousand classes; plain loading keeps it."""
    SimCLRForImageClassification(SimCLRConfig(**SIZES, num_labels=2)).save_pretrained(tmp_path)
    for zero in (True, False):
        settings = {"task": "linear_probe", "init_from": str(tmp_path), "model": {"zero_init_logits_layer": zero}}
        model = build_model(Recipe.from_dict({"method": "simclr", **settings}), ["a", "b"])
        assert bool(model.classifier.weight.any()) != zero
        assert not model.classifier.bias.any()


@pytest.mark.parametrize(
    "overrides, in_loss, in_optimizer",
    [
        ([], 1e-4, 0.0),
        (["model.weight_decay=0.01"], 0.01, 0.0),
        (["task=pretrain", "model.linear_probe=true"], 1e-4, 0.0),
        (["optimizer.decay_vectors=true"], 0.0, 1e-4),
        (["optimizer.name=sgd"], 0.0, 1e-4),
    ],
)
def test_the_classifier_is_decayed_once(overrides, in_loss, in_optimizer, tmp_path):
    """In the loss under LARS, as in the official code; also where the loaded config was made for another optimiser."""
    started = SimCLRForImageClassification(SimCLRConfig(**SIZES, num_labels=2, weight_decay=0.5))
    started.save_pretrained(tmp_path)
    values = {"method": "simclr", "task": "finetune", "init_from": str(tmp_path)}
    recipe = Recipe.from_dict(values, ["optimizer.name=lars", "optimizer.weight_decay=1e-4", *overrides])
    model, optimizer = build_model(recipe, ["a", "b"]), recipe.optimizer
    lars = optimizer.name == "lars"
    groups = parameter_groups(model, 0.1, optimizer.weight_decay, None, optimizer.decay_vectors, lars)
    groups = layer_adaptation_groups(model, groups) if lars else groups
    group = next(group for group in groups if any(each is model.classifier.weight for each in group["params"]))
    assert (model.config.weight_decay, group["weight_decay"]) == (in_loss, in_optimizer)


def test_a_fine_tuned_run_is_measured_as_its_users_prepare_images(pictures, tmp_path):
    """On pictures that are larger than the model's images: the processor resizes them as the run did."""
    overrides = [*COMMON[:3], "model.stem_width=2", "model.image_size=18", "schedule.epochs=1"]
    for number, options in enumerate(([], ["transform.crop_padding=null"])):
        run = train(
            "simclr", pictures, tmp_path / str(number), recipe="simclr/small_finetune", overrides=overrides + options
        )
        classify = pipeline("image-classification", model=str(run.folder))
        test = load_image_dataset(pictures, "test")
        assert test[0]["image"].shape[-2:] != (18, 18)
        names = [test.class_names[test[index]["label"]] for index in range(len(test))]
        images = [to_pil_image(test[index]["image"]) for index in range(len(test))]
        hits = [result[0]["label"] == name for result, name in zip(classify(images), names, strict=True)]
        assert sum(hits) / len(hits) == pytest.approx(run.metrics["eval_accuracy"])


def test_labelled_images_are_cropped_as_the_processor_crops():
    recipe = Recipe.load("simclr/paper_linear_probe_cifar10")
    config = SimCLRConfig(**SIZES | {"image_size": 32})
    train_collator, test_collator = build_collators(recipe, config)
    image = torch.randint(0, 256, (3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    items = [{"image": image, "index": 5, "label": 1}]
    processor = SimCLRImageProcessor(size=32, crop_proportion=1.0)
    table = uniforms(recipe.run.seed, 0, [5], processor.draws, 0)
    for collator, expected in (
        (train_collator, processor(image, mode="finetune", uniforms=table)),
        (test_collator, processor(image)),
    ):
        batch = collator(items)
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert batch["labels"].tolist() == [1]


def test_simclr_refuses_to_normalise(pictures, tmp_path):
    with pytest.raises(
        RecipeError, match=r"transform.mean and transform.std must be 0 and 1, .* got \[0.5, 0.5, 0.5\]"
    ):
        train("simclr", pictures, tmp_path / "run", overrides=[*TINY["simclr"], "transform.mean=[0.5]"])
    assert not (tmp_path / "run").exists()


def test_a_loaded_encoder_takes_images_of_another_size(tmp_path):
    SimCLRForPreTraining(SimCLRConfig(**SIZES)).save_pretrained(tmp_path)

    def built(**model):
        values = {"method": "simclr", "task": "finetune", "init_from": str(tmp_path), "model": model}
        return build_model(Recipe.from_dict(values), ["a", "b"]).config

    assert built(image_size=20).image_size == 20
    assert built(image_size=[20, 24]).image_height_width == (20, 24)
    with pytest.raises(RecipeError, match=r"model.image_size = 64 .* model.cifar_stem must be true to keep it"):
        built(image_size=64)
    assert built(image_size=64, cifar_stem=True).uses_cifar_stem


def test_convolutional_models_need_a_size(pictures, tmp_path):
    with pytest.raises(RecipeError, match=r"transform.size must be the size of the images in pixels, got None"):
        train("densecl", pictures, tmp_path, recipe="densecl/small_pretrain", overrides=["transform.size=null"])
    with pytest.raises(RecipeError, match=r"unknown key model.image_size; this model takes .*: set transform.size"):
        train("densecl", pictures, tmp_path, recipe="densecl/small_pretrain", overrides=["model.image_size=64"])


def test_queues_fit_a_batch_that_is_asked_for(pictures):
    asked = ["schedule.batch_size=5"]
    recipe, _ = run_module._resolve_recipe("densecl", str(pictures / "train"), None, None, asked)
    assert (recipe.schedule.batch_size, recipe.model["queue_length"]) == (5, 10)
    recipe, _ = run_module._resolve_recipe(
        "densecl", str(pictures / "train"), None, None, [*asked, "model.queue_length=12"]
    )
    with pytest.raises(RecipeError, match=r"queue_length must be a multiple of schedule.batch_size \(5\), got 12"):
        method_training("densecl").check_settings(recipe)


def test_queues_fit_the_number_of_images(pictures):
    recipe, _ = run_module._resolve_recipe("densecl", pictures, None, None, [])
    assert (recipe.schedule.batch_size, recipe.model["queue_length"]) == (4, 12)
    training = method_training("densecl")
    assert training.advice(recipe, 24) is None
    recipe.model["queue_length"] = 32
    assert "model.queue_length = 32 is more than the 24 images" in training.advice(recipe, 24)
    assert "65536" in training.advice(Recipe.load("densecl/paper_pretrain_coco"), 5000)
    assert method_training("simclr").advice(Recipe.load("simclr/small_pretrain"), 10) is None


def test_small_batches_of_simclr_are_announced():
    training = method_training("simclr")
    recipe = Recipe.load("simclr/small_pretrain", ["schedule.batch_size=64"])
    assert "schedule.batch_size = 64 leaves every view 126 negatives" in training.advice(recipe, 1000)
    assert training.advice(Recipe.load("simclr/small_finetune", ["schedule.batch_size=64"]), 1000) is None
