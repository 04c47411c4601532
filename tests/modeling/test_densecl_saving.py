"""DenseCL's state: saved and loaded with and without what only training needs, and continued bit for bit."""

import pytest
import torch
from hubmodels.modeling.densecl import DenseCLBackbone, DenseCLForPreTraining, DenseCLModel
from safetensors.torch import load_file, save_file
from tiny_densecl import snapshot, tiny_config, tiny_model, tiny_views


def trained_model(**changes):
    """A model after one step."""
    model = tiny_model(dtype=torch.float32, **changes)
    step(model, sgd(model), seed=0)
    return model


def sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9, weight_decay=1e-4)


def step(model, optimizer, seed):
    output = model(tiny_views(seed=seed, dtype=torch.float32))
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return output.loss


@pytest.mark.parametrize("warmup", [0, 2])
def test_continued_training_equals_the_uninterrupted_one_bit_for_bit(warmup, tmp_path):
    model = tiny_model(dtype=torch.float32, loss_lambda_warmup_steps=warmup)
    optimizer = sgd(model)
    step(model, optimizer, seed=0)
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    losses = [step(model, optimizer, seed) for seed in (1, 2)]

    resumed = DenseCLForPreTraining.from_pretrained(tmp_path).train()
    optimizer = sgd(resumed)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert [step(resumed, optimizer, seed) for seed in (1, 2)] == losses
    for name, tensor in snapshot(model).items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert int(resumed.queue_ptr) == 0  # 3 steps of 4 in a queue of 12


def test_whole_state_is_saved_and_loaded(tmp_path, messages):
    model = trained_model()
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    messages.clear()
    loaded, info = DenseCLForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not messages.records
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in loaded.momentum_encoder.parameters())


def test_without_training_state_the_encoder_is_saved(tmp_path, messages):
    model = trained_model()
    model.save_pretrained(tmp_path, include_training_state=False)
    saved = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"encoder"}
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path)
    for name, tensor in saved.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(loaded.state_dict()[f"momentum_{name}"], tensor), name
    for queue in (loaded.queue, loaded.queue2):
        torch.testing.assert_close(queue.norm(dim=0), torch.ones(12))
    assert int(loaded.queue_ptr) == int(loaded.queue2_ptr) == 0
    assert (
        "the momentum encoder is a copy of the encoder; queue starts with random keys; queue2 starts with random keys"
        in messages.text
    )
    assert "heads" not in messages.text.split("No complete training state")[1]
    images = tiny_views(dtype=torch.float32)[:, 0]
    expected = model.eval().encoder(images)
    torch.testing.assert_close(DenseCLModel.from_pretrained(tmp_path)(images).dense_embedding, expected[2].flatten(2))


def rewrite(folder, keep):
    """Keeps only some tensors of a saved model."""
    path = folder / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if keep(n)}, path, metadata={"format": "pt"})


def test_backbone_only_file_gives_new_heads(tmp_path, messages):
    model = trained_model()
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name: name.startswith("encoder.backbone."))
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path)
    assert "the projection heads start at random" in messages.text
    for name, tensor in loaded.encoder.state_dict().items():
        assert torch.equal(loaded.momentum_encoder.state_dict()[name], tensor), name
        assert not name.startswith("backbone.") or torch.equal(tensor, model.encoder.state_dict()[name]), name
    assert loaded.train()(tiny_views(dtype=torch.float32)).loss > 0
    assert DenseCLBackbone.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"] == set()


def test_old_state_without_second_queue(tmp_path, messages):
    model = trained_model()
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name: not name.startswith("queue2"))
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path)
    assert "No complete training state was loaded: queue2 starts with random keys." in messages.text
    assert torch.equal(loaded.queue, model.queue)
    for name, tensor in model.momentum_encoder.state_dict().items():
        assert torch.equal(loaded.momentum_encoder.state_dict()[name], tensor), name


def test_every_class_loads_from_the_pre_training_folder(tmp_path, messages):
    trained_model().save_pretrained(tmp_path)
    messages.clear()
    for model_class in (DenseCLModel, DenseCLBackbone):
        _, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), model_class
    assert not messages.records


@pytest.mark.parametrize(
    ("keep", "changes", "message"),
    [
        (lambda name: name != "encoder.backbone.encoder.stages.1.layers.0.layer.0.convolution.weight", {}, "lacks"),
        (lambda name: "backbone" not in name, {}, r"lacks backbone weights.*hubmodels convert densecl"),
        (lambda name: True, {"depths": [1, 2]}, r"lacks backbone weights .*depths \[1, 2\]"),
    ],
)
@pytest.mark.parametrize("model_class", [DenseCLForPreTraining])
def test_files_that_do_not_fit_are_refused(keep, changes, message, model_class, tmp_path):
    trained_model().save_pretrained(tmp_path)
    rewrite(tmp_path, keep)
    with pytest.raises(ValueError, match=message):
        model_class.from_pretrained(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue_length": 24}, r"queue is \[6, 12\], not \[6, 24\].*ignore_mismatched_sizes=True"),
        ({"projection_size": 5}, r"queue is \[6, 12\], not \[5, 12\].*ignore_mismatched_sizes=True"),
    ],
)
def test_queues_of_other_shapes_are_refused(changes, message, tmp_path):
    trained_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        DenseCLForPreTraining.from_pretrained(tmp_path, **changes)


def test_other_shapes_are_refused_as_in_transformers(tmp_path):
    trained_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="does not fit the configuration"):
        DenseCLForPreTraining.from_pretrained(tmp_path, layer_type="bottleneck")


def test_a_pointer_of_another_shape_is_refused():
    state = trained_model().state_dict() | {"queue_ptr": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match=r"queue_ptr is \[2\], not \[1\]"):
        DenseCLForPreTraining.from_pretrained(None, config=tiny_config(), state_dict=state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue": torch.zeros(6, 12, dtype=torch.int64)}, "queue must be floating-point keys, got torch.int64"),
        ({"queue2": torch.zeros(6, 12, dtype=torch.bool)}, "queue2 must be floating-point keys, got torch.bool"),
        ({"queue_ptr": torch.tensor([3.7])}, "queue_ptr must be torch.int64, got torch.float32"),
        ({"queue2_ptr": torch.tensor([3], dtype=torch.int32)}, "queue2_ptr must be torch.int64, got torch.int32"),
        ({"queue_ptr": torch.tensor([12])}, r"queue_ptr must be a column of the queue, in \[0, 12\), got 12"),
        ({"queue2_ptr": torch.tensor([-3])}, r"queue2_ptr must be a column of the queue, in \[0, 12\), got -3"),
    ],
)
@pytest.mark.parametrize("given", ["file", "state_dict"])
def test_queues_and_pointers_of_a_wrong_kind_are_refused(changes, message, given, tmp_path):
    trained_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path) | changes
    with pytest.raises(ValueError, match=message):
        if given == "file":
            save_file(state, path, metadata={"format": "pt"})
            DenseCLForPreTraining.from_pretrained(tmp_path)
        else:
            config = tiny_config()
            DenseCLForPreTraining.from_pretrained(None, config=config, state_dict=state)


def test_half_precision_queues_are_loaded(tmp_path):
    trained_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file(state | {"queue": state["queue"].half()}, path, metadata={"format": "pt"})
    assert torch.equal(DenseCLForPreTraining.from_pretrained(tmp_path).queue, state["queue"].half().float())


def test_a_missing_pointer_is_named(tmp_path, messages):
    trained_model().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda name: name != "queue_ptr")
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path)
    assert "No complete training state was loaded: queue_ptr starts at 0." in messages.text
    assert (int(loaded.queue_ptr), int(loaded.queue2_ptr)) == (0, 4)


def test_shallower_networks_do_not_drop_weights(tmp_path):
    trained_model(depths=[1, 2]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has too many backbone weights"):
        DenseCLBackbone.from_pretrained(tmp_path, depths=[1, 1])
    # Leaving out whole stages at the end is asked for, not an accident.
    backbone = DenseCLBackbone.from_pretrained(tmp_path, num_stages=1)
    assert (backbone.out_features, backbone.channels) == (["stage1"], [4])


def test_changes_while_loading_are_checked(tmp_path):
    trained_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"loss_lambda must be in \[0, 1\], got 2"):
        DenseCLForPreTraining.from_pretrained(tmp_path, loss_lambda=2.0)
    with pytest.raises(ValueError, match="out_features must be a subset"):
        DenseCLBackbone.from_pretrained(tmp_path, out_features=["stage3"])


def test_other_queues_can_be_started_anew(tmp_path):
    trained_model().save_pretrained(tmp_path)
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path, queue_length=24, ignore_mismatched_sizes=True)
    torch.testing.assert_close(loaded.queue.norm(dim=0), torch.ones(24))
    assert int(loaded.queue_ptr) == int(loaded.queue2_ptr) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queues_stay_in_float32(dtype, tmp_path):
    trained_model().save_pretrained(tmp_path)
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.encoder.global_head[0].weight.dtype == dtype
    assert loaded.queue.dtype == loaded.queue2.dtype == torch.float32
    assert loaded.queue_ptr.dtype == torch.int64


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(dtype=torch.bfloat16)])
def test_queues_of_a_cast_model_stay_in_float32(cast):
    model = trained_model()
    before = snapshot(model)
    cast(model)
    assert model.encoder.global_head[0].weight.dtype in (torch.float16, torch.bfloat16)
    for name in ("queue", "queue2", "queue_ptr", "queue2_ptr"):
        assert model.state_dict()[name].dtype == before[name].dtype, name
        assert torch.equal(model.state_dict()[name], before[name]), name
    assert model.double().queue.dtype == torch.float64
    assert model.half().queue.dtype == torch.float32
    assert model.to("meta").queue.device.type == "meta"


def test_models_cast_to_half_precision_learn():
    model = tiny_model(dtype=torch.bfloat16)
    before = snapshot(model)
    model(tiny_views(dtype=torch.bfloat16)).loss.backward()
    new = model.queue[:, :4]
    torch.testing.assert_close(new.norm(dim=0), torch.ones(4))
    assert not torch.equal(new, new.bfloat16().float())
    assert torch.equal(model.queue[:, 4:], before["queue"][:, 4:])


@pytest.mark.parametrize("arguments", [{}, {"dtype": torch.float64}, {"dtype": "auto"}])
def test_float64_is_loaded_to_the_last_bit(arguments, tmp_path):
    model = tiny_model()
    model.queue.copy_(torch.nn.functional.normalize(torch.randn(6, 12, dtype=torch.float64), dim=0))
    model(tiny_views())
    model.save_pretrained(tmp_path)
    loaded = DenseCLForPreTraining.from_pretrained(tmp_path, **arguments)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_buffers_and_configuration_are_those_of_the_published_state():
    names = {name for name in DenseCLForPreTraining(tiny_config()).state_dict() if "." not in name}
    assert names == {"queue", "queue_ptr", "queue2", "queue2_ptr"}
