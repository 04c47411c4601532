"""Recipes: the published numbers, overrides, and errors that help."""

import pytest
import yaml
from hubmodels.modeling.mae import MAEConfig, MAEForPreTraining

from hubmodels.training import Recipe, RecipeError, recipe_names, scaled_learning_rate, train
from hubmodels.training.assembly import build_model, resolved_precision
from hubmodels.training.methods import method_class, method_training

PRETRAIN = {
    "optimizer.name": "adamw",
    "optimizer.base_learning_rate": 1.5e-4,
    "optimizer.weight_decay": 0.05,
    "optimizer.options": {"betas": [0.9, 0.95]},
    "schedule.batch_size": 4096,
    "schedule.epochs": 1600,
    "schedule.warmup_epochs": 40,
    "schedule.min_learning_rate": 0,
    "optimizer.clip_grad_norm": 0,
    "model.mask_ratio": 0.75,
    "model.norm_pix_loss": True,
    "transform.crop_scale": [0.2, 1.0],
}
FINETUNE = {
    "optimizer.options": {"betas": [0.9, 0.999]},
    "optimizer.weight_decay": 0.05,
    "schedule.batch_size": 1024,
    "schedule.warmup_epochs": 5,
    "schedule.min_learning_rate": 1e-6,
    "regularization.mixup": 0.8,
    "regularization.cutmix": 1.0,
    "regularization.label_smoothing": 0.1,
    "transform.auto_augment": "rand-m9-mstd0.5-inc1",
    "transform.random_erasing": 0.25,
    "model.pooling": "mean",
    "model.classifier_init_std": 2e-5,
}
LINEAR_PROBE = {
    "optimizer.name": "lars",
    "optimizer.base_learning_rate": 0.1,
    "optimizer.weight_decay": 0,
    "optimizer.options": {"momentum": 0.9, "trust_coefficient": 0.001, "momentum_style": "plain"},
    "schedule.batch_size": 16384,
    "schedule.warmup_epochs": 10,
    "schedule.min_learning_rate": 0,
    "model.pooling": "cls",
    "model.probe_batch_norm": True,
    "model.classifier_init_std": 0.01,
    "model.drop_path_rate": 0.0,
    "transform.crop_scale": [0.08, 1.0],
}
SCRATCH = {
    "optimizer.base_learning_rate": 1e-4,
    "optimizer.weight_decay": 0.3,
    "optimizer.options": {"betas": [0.9, 0.95]},
    "optimizer.layer_decay": None,
    "schedule.batch_size": 4096,
    "schedule.warmup_epochs": 20,
    "regularization.ema_decay": 0.9999,
    "regularization.mixup": 0.8,
    "regularization.cutmix": 1.0,
}
PUBLISHED = {
    "paper_pretrain_base": PRETRAIN | {"model.hidden_size": 768},
    "paper_pretrain_large": PRETRAIN | {"model.hidden_size": 1024, "model.num_hidden_layers": 24},
    "paper_pretrain_huge": PRETRAIN | {"model.hidden_size": 1280, "model.patch_size": 14},
    "paper_finetune_base": FINETUNE
    | {"optimizer.base_learning_rate": 5e-4, "optimizer.layer_decay": 0.65, "schedule.epochs": 100}
    | {"model.drop_path_rate": 0.1},
    "paper_finetune_large": FINETUNE
    | {"optimizer.base_learning_rate": 1e-3, "optimizer.layer_decay": 0.75, "schedule.epochs": 50}
    | {"model.drop_path_rate": 0.2},
    "paper_finetune_huge": FINETUNE
    | {"optimizer.base_learning_rate": 1e-3, "optimizer.layer_decay": 0.75, "schedule.epochs": 50}
    | {"model.drop_path_rate": 0.3},
    "paper_linear_probe_base": LINEAR_PROBE | {"schedule.epochs": 90},
    "paper_linear_probe_large": LINEAR_PROBE | {"schedule.epochs": 50},
    "paper_linear_probe_huge": LINEAR_PROBE | {"schedule.epochs": 50},
    "paper_scratch_base": SCRATCH | {"schedule.epochs": 300, "model.drop_path_rate": 0.1},
    "paper_scratch_large": SCRATCH | {"schedule.epochs": 200, "model.drop_path_rate": 0.2},
    "paper_scratch_huge": SCRATCH | {"schedule.epochs": 200, "model.drop_path_rate": 0.2},
}


def value_of(recipe, key):
    value = recipe.to_dict()
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_recipes_hold_the_published_numbers(name):
    recipe = Recipe.load(name)
    assert {key: value_of(recipe, key) for key in PUBLISHED[name]} == PUBLISHED[name]


def test_every_paper_recipe_is_checked():
    assert {name for name in recipe_names("mae") if "/paper_" in name} == {f"mae/{name}" for name in PUBLISHED}


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_whole(name):
    recipe = Recipe.load(name)
    config_class = method_class(recipe.method, "AutoConfig")
    assert set(recipe.model) <= set(config_class().to_dict())
    config_class(**recipe.model)
    method_training(recipe.method).check_task(recipe)
    method_training(recipe.method).check_settings(recipe)
    if recipe.transform.options:
        method_class(recipe.method, "AutoImageProcessor")(**recipe.transform.options)
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


def test_names_with_and_without_the_method_and_files(tmp_path):
    recipe = Recipe.load("small_pretrain")
    assert Recipe.load("mae/small_pretrain") == recipe
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.to_yaml())
    assert Recipe.load(path) == recipe


def test_overrides_are_typed():
    overrides = [
        "schedule.epochs=3",
        "optimizer.base_learning_rate=1e-3",
        "data.size=0.1",
        "schedule.warmup_epochs=1",
        "model.image_size=[32, 48]",
        "init_from=run/",
        "optimizer.layer_decay=null",
    ]
    recipe = Recipe.load("small_finetune", overrides)
    assert recipe.schedule.epochs == 3
    assert recipe.optimizer.base_learning_rate == 1e-3
    assert recipe.data.size == 0.1
    assert isinstance(recipe.schedule.warmup_epochs, float)
    assert recipe.model["image_size"] == [32, 48]
    assert recipe.init_from == "run/"
    assert recipe.optimizer.layer_decay is None
    assert Recipe.load("small_finetune", ["data.size=100"]).data.size == 100


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.epoch=3", "unknown key schedule.epoch, did you mean epochs"),
        ("shedule.epochs=3", "unknown key shedule, did you mean schedule"),
        ("schedule.epochs=many", "schedule.epochs must be a whole number, got 'many'"),
        ("schedule.epochs=2.5", "schedule.epochs must be a whole number, got 2.5"),
        ("schedule.epochs=0", "schedule.epochs must be at least 1, got 0"),
        ("run.device_batch_size=0", "run.device_batch_size must be at least 1, got 0"),
        ("run.keep_checkpoints=-1", "run.keep_checkpoints must be at least 0, got -1"),
        ("schedule.warmup_epochs=51", r"schedule.warmup_epochs must be in \[0, schedule.epochs = 50\], got 51"),
        ("optimizer=lars", "optimizer is a section with keys of its own, got 'lars'"),
        ("schedule.epochs.n=3", "epochs is a value, not a section"),
        ("task=pretraining", "task must be one of pretrain, finetune, .*, got 'pretraining'"),
        ("transform.crop_scale=0.5", "transform.crop_scale must be a list, got 0.5"),
        ("transform.crop_scale=[0.5, x]", r"transform.crop_scale\[1\] must be a number, got 'x'"),
        ("run.tensorboard=1", "run.tensorboard must be true or false, got 1"),
        ("model=3", "model must hold keys and values, got 3"),
        ("trainable_blocks=2", "trainable_blocks goes with the task partial_finetune"),
        ("data.streaming=true", "data.streaming needs the number of images in data.size"),
        ("schedule.epochs", "has the form key=value, got 'schedule.epochs'"),
        ("schedule.epochs=[1", "is not valid YAML"),
    ],
)
def test_overrides_that_do_not_fit(override, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load("small_pretrain", [override])


def test_recipes_that_are_not_there_or_no_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no recipe 'smal_pretrain', did you mean mae/small_pretrain"):
        Recipe.load("smal_pretrain")
    with pytest.raises(RecipeError, match="no recipe file"):
        Recipe.load(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    for text, message in (("a: [", "not valid YAML"), ("- 1", "must hold keys"), ("method: mae", "missing key task")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(path)


def test_numbers_in_options_are_read_as_those_of_the_sections():
    overrides = ["optimizer.options={eps: 1e-8, betas: [0.9, 1e-1], momentum_style: plain}"]
    options = Recipe.load("small_pretrain", [*overrides, "transform.options.strength=5e-1"]).to_dict()
    assert options["optimizer"]["options"] == {"eps": 1e-8, "betas": [0.9, 0.1], "momentum_style": "plain"}
    assert options["transform"]["options"] == {"strength": 0.5}


def test_how_a_run_is_carried_out_does_not_make_it_another():
    recipe = Recipe.load("small_pretrain")
    assert recipe.differences(Recipe.load("small_pretrain", ["run.workers=4", "run.checkpoints=3"])) == {}
    assert recipe.differences(Recipe.load("small_pretrain", ["run.seed=1", "optimizer.options.eps=1.0e-7"])) == {
        "run.seed": (0, 1),
        "optimizer.options.eps": (None, 1e-7),
    }


def test_spellings_of_a_path_do_not_make_a_run_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    first, *others = (
        Recipe.load("small_finetune", [f"data.source={path}", f"init_from={path}"])
        for path in ("flat", "flat/", "./flat", tmp_path / "flat")
    )
    assert [first.differences(other) for other in others] == [{}, {}, {}]
    assert first.differences(Recipe.load("small_finetune", ["data.source=other", "init_from=flat"])) == {
        "data.source": (str(tmp_path / "flat"), "other")
    }


def test_paper_recipes_of_simclr_follow_the_official_schedule():
    names = [name for name in recipe_names("simclr") if "/paper_" in name]
    assert names and {Recipe.load(name).schedule.name for name in names} == {"simclr"}


@pytest.mark.parametrize(
    ("name", "rate", "batch", "epochs", "warmup", "fraction"),
    [
        ("paper_pretrain_imagenet", 4.8, 4096, 100, 10, None),
        ("paper_pretrain_v2_imagenet", 6.4, 4096, 800, 40, None),
        ("paper_pretrain_cifar10", 2.0, 512, 1000, 10, None),
        ("paper_linear_probe", 1.6, 4096, 90, 0, None),
        ("paper_linear_probe_cifar10", 0.2, 512, 100, 0, None),
        ("paper_finetune_v1_1pct", 0.8, 4096, 60, 0, 0.01),
        ("paper_finetune_v1_10pct", 0.8, 4096, 30, 0, 0.1),
        ("paper_finetune_1pct", 0.16, 1024, 60, 0, 0.01),
        ("paper_finetune_10pct", 0.16, 1024, 30, 0, 0.1),
    ],
)
def test_paper_recipes_of_simclr_hold_the_published_numbers(name, rate, batch, epochs, warmup, fraction):
    recipe = Recipe.load(f"simclr/{name}")
    optimizer, schedule = recipe.optimizer, recipe.schedule
    peak = scaled_learning_rate(optimizer.base_learning_rate, schedule.batch_size, optimizer.lr_scaling)
    assert peak == pytest.approx(rate)
    assert (schedule.batch_size, schedule.epochs, schedule.warmup_epochs) == (batch, epochs, warmup)
    assert recipe.data.fraction == fraction
    assert optimizer.weight_decay == (1e-4 if recipe.task == "pretrain" else 0)
    assert (recipe.task == "pretrain") != bool(recipe.model.get("zero_init_logits_layer"))
    method_class("simclr", "AutoConfig")(**recipe.model)


@pytest.mark.parametrize("name", [name for name in recipe_names("mae") if "linear_probe" in name])
def test_linear_probes_do_not_drop_paths(name, tmp_path):
    """Neither does one whose encoder was trained with stochastic depth."""
    recipe = Recipe.load(name)
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = MAEConfig(**shape, intermediate_size=32, drop_path_rate=0.3)
    MAEForPreTraining(config).save_pretrained(tmp_path)
    recipe.init_from, recipe.model = str(tmp_path), recipe.model | shape | {"intermediate_size": 32}
    silent = {key: value for key, value in recipe.model.items() if key != "drop_path_rate"}
    for settings in (recipe.model, silent):
        recipe.model = settings
        model = build_model(recipe, ["a", "b"])
        assert [layer.drop_path.rate for layer in model.vit.layers] == [0, 0, 0]


def test_half_precision_of_a_gpu_is_not_claimed_elsewhere(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [resolved_precision(name) for name in ("auto", "fp16", "bf16", "fp32")] == ["fp32", "fp32", "bf16", "fp32"]


@pytest.mark.parametrize("method", ["simclr/small_pretrain", "densecl/small_pretrain", "sanm/small_light"])
@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("backbone_config=vit", r"must be a mapping with the key model_type, .* got 'vit'"),
        ("backbone_config.hidden_size=16", r"must be a mapping with the key model_type, .* got \{'hidden_size': 16\}"),
        ("backbone_config={model_type: dinov22}", r"model_type must be .* got 'dinov22', did you mean dinov2"),
        ("backbone_config={model_type: timm_backbone, backbone: resnet19}", r"timm.*, got 'resnet19', did you mean"),
    ],
)
def test_backbones_that_are_none_are_named(method, backbone, message):
    with pytest.raises(RecipeError, match=message):
        build_model(Recipe.load(method, [f"model.{backbone}"]), ["a", "b"])


def test_methods_and_keys_of_the_model_that_are_none_are_named():
    with pytest.raises(RecipeError, match=r"method must be one of mae, simclr, .*, got 'maee', did you mean mae"):
        train("maee", data="fashion-mnist-small")
    with pytest.raises(RecipeError, match=r"method must be one of mae, simclr, .*, got 'foo'"):
        train(data="fashion-mnist-small", recipe="mae/small_pretrain", overrides=["method=foo"])
    with pytest.raises(RecipeError, match=r"unknown key model\.1 \(keys here"):
        build_model(Recipe.load("small_pretrain", ["model={1: 3, hidden_size: 16}"]), [])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("mask_ratio=0", 0),
        ("initializer_range=1e-2", 0.01),
        ("layer_norm_eps=1e-6", 1e-6),
        ("norm_pix_loss=true", True),
        ("image_size=[32, 32]", [32, 32]),
    ],
)
def test_settings_of_the_model_are_typed(override, value):
    key = override.partition("=")[0]
    actual = getattr(build_model(Recipe.load("small_pretrain", [f"model.{override}"]), []).config, key)
    assert list(actual) == value if isinstance(value, list) else actual == value
    assert isinstance(value, list) or type(actual) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=abc", "model.hidden_size: .* expected int, got str .*'abc'"),
        ("model.norm_pix_loss=1", "model.norm_pix_loss: .* expected bool, got int .*1"),
        ("model.mask_ratio=much", "model.mask_ratio: .* expected float, got str .*'much'"),
        ("model.mask_ratio=2", "mask_ratio"),
        ("model.hidden_size=17", "hidden_size"),
    ],
)
def test_settings_of_the_model_that_do_not_fit(override, message):
    with pytest.raises(ValueError, match=message):
        build_model(Recipe.load("small_pretrain", [override]), [])


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "simclr/small_pretrain",
            "transform.options.color_strenght=0",
            "options.color_strenght, did you mean strength",
        ),
        ("densecl/small_pretrain", "transform.options.croop_scale=1", "options.croop_scale, did you mean crop_scale"),
        ("mae/small_pretrain", "transform.options.foo=1", r"options.foo \(keys of mae: none\)"),
        ("positional_label/small_finetune", "transform.options.foo=1", r"foo \(keys of positional_label: none\)"),
        ("sanm/small_light", "transform.options.foo=1", r"foo \(keys of sanm: resize, crop_padding, flip\)"),
        (
            "simclr/small_pretrain",
            "transform.flip=0",
            r"flip does nothing .*, got 0.0: set transform.options.flip_probability",
        ),
        (
            "simclr/small_pretrain",
            "transform.crop_scale=[0.5, 1]",
            "crop_scale does nothing .* set transform.options.area_range",
        ),
        (
            "densecl/small_pretrain",
            "transform.crop_scale=[0.5, 1]",
            "crop_scale does nothing .* set transform.options.crop_scale",
        ),
        (
            "densecl/small_pretrain",
            "transform.random_erasing=0.5",
            "random_erasing does nothing .* no such augmentation",
        ),
        ("mae/small_pretrain", "regularization.mixup=1", "regularization.mixup is for labelled tasks; .* got 1"),
        ("mae/small_pretrain", "regularization.label_smoothing=0.1", "label_smoothing is for labelled tasks"),
    ],
)
def test_settings_that_would_do_nothing_are_refused_before_the_run(recipe, override, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        train(data="fashion-mnist-small", output=tmp_path / "run", recipe=recipe, overrides=[override])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("sanm/small_light", ["task=pretrain"], "task of sanm must be one of finetune, got 'pretrain'"),
        ("densecl/small_pretrain", ["task=finetune"], "task of densecl must be one of pretrain, got 'finetune'"),
        (
            "simclr/small_finetune",
            ["task=partial_finetune", "trainable_blocks=1"],
            "task of simclr must be one of pretrain, finetune, linear_probe, got 'partial_finetune'",
        ),
    ],
)
def test_tasks_that_a_method_does_not_have_are_named(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message):
        build_model(Recipe.load(recipe, overrides), ["a", "b"])


@pytest.mark.parametrize("recipe", ["mae/small_finetune", "sanm/small_light", "simclr/small_finetune"])
def test_a_classifier_needs_two_classes(recipe):
    with pytest.raises(RecipeError, match=r"at least two classes, and photos has \['cat'\]"):
        build_model(Recipe.load(recipe, ["data.source=photos"]), ["cat"])


def test_a_recipe_of_another_method_than_the_one_asked_for_is_refused(tmp_path):
    arguments = {"data": "fashion-mnist-small", "output": tmp_path / "run", "recipe": "mae/small_pretrain"}
    with pytest.raises(RecipeError, match="the recipe small_pretrain trains mae, got method = 'simclr'"):
        train("simclr", **arguments)
