"""DenseCL's forward in training: the method written plainly, its options, what it changes and what it leaves alone."""

import pytest
import torch
from hubmodels.modeling.densecl import losses_densecl
from hubmodels.modeling.densecl.matching_densecl import chance_accuracy, match_accuracy, match_by_geometry
from tiny_densecl import BATCH, plain_step, snapshot, tiny_config, tiny_model, tiny_views

EXACT = {"rtol": 0, "atol": 1e-9}


def assert_equals_plain_step(model, views, match=None, **inputs):
    expected = plain_step(model, views, match)
    output = model(views, **inputs)
    for name in ("loss", "loss_global", "loss_dense"):
        torch.testing.assert_close(output[name], expected[name], **EXACT)
    assert torch.equal(output.match_index, expected["match_index"])
    for name in ("queue", "queue2"):
        torch.testing.assert_close(getattr(model, name), expected[name], **EXACT)
    for ours, theirs in zip(
        model.momentum_encoder.parameters(), expected["momentum_encoder"].parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for ours, theirs in zip(model.momentum_encoder.buffers(), expected["momentum_encoder"].buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    output.loss.backward()
    expected["loss"].backward()
    for ours, theirs in zip(model.encoder.parameters(), expected["encoder"].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)
    assert all(parameter.grad is None for parameter in model.momentum_encoder.parameters())


@pytest.mark.parametrize("num_grid", [None, 4, 3, 2, 1])
@pytest.mark.parametrize("loss_lambda", [0.3, 1])
def test_step_equals_the_method_written_plainly(num_grid, loss_lambda):
    model = tiny_model(num_grid=num_grid, loss_lambda=loss_lambda, momentum=0.9)
    for seed in range(4):  # the queues wrap after three
        model.zero_grad()
        assert_equals_plain_step(model, tiny_views(seed=seed))


def test_grid_of_the_size_of_the_map_changes_nothing():
    views = tiny_views()
    assert torch.equal(tiny_model(num_grid=4)(views).loss, tiny_model()(views).loss)


@pytest.mark.parametrize("length", [10, 3])
def test_partial_queue_wraps(length):
    model = tiny_model(queue_length=length, queue_partial="wrap")
    for seed in range(4):
        model.zero_grad()
        assert_equals_plain_step(model, tiny_views(seed=seed))
        assert int(model.queue_ptr) == int(model.queue2_ptr) == (seed + 1) * BATCH % length


def test_matching_by_projection():
    model, views = tiny_model(matching="projection"), tiny_views()
    reference = tiny_model()(views)
    similarity = torch.einsum("bci,bcj->bij", reference.query_dense_features, reference.key_dense_features)
    assert_equals_plain_step(model, views, match=similarity.argmax(2))


def test_matching_at_random_repeats_with_a_generator():
    matches = []
    for seed in (5, 5, 6):
        output = tiny_model(matching="random")(tiny_views(), generator=torch.Generator().manual_seed(seed))
        matches.append(output.match_index)
    assert torch.equal(matches[0], matches[1])
    assert not torch.equal(matches[0], matches[2])
    assert matches[0].unique().tolist() == list(range(16))


def test_given_matches_are_used():
    match = torch.randint(16, (BATCH, 16), generator=torch.Generator().manual_seed(0))
    assert_equals_plain_step(tiny_model(), tiny_views(), match=match, match_index=match)


@pytest.mark.parametrize("rows", [2048, 40])
@pytest.mark.parametrize("num_grid", [None, 3, 1])
def test_negatives_of_the_same_image(num_grid, rows, monkeypatch):
    monkeypatch.setattr(losses_densecl, "QUERY_ROWS", rows)
    views = tiny_views()
    model = tiny_model(same_image_negatives=True, num_grid=num_grid)
    plain_loss = tiny_model(num_grid=num_grid)(views).loss_dense
    assert_equals_plain_step(model, views)
    loss = tiny_model(same_image_negatives=True, num_grid=num_grid)(views).loss_dense
    assert loss == plain_loss if num_grid == 1 else loss > plain_loss + 0.1


def boxes_and_flips():
    """The same crop twice, once mirrored; the left and the right half; a quarter of the other crop."""
    boxes = [[[0, 0, 32, 32]] * 2] * 2 + [[[0, 0, 32, 16], [0, 16, 32, 16]], [[0, 0, 32, 32], [16, 0, 16, 16]]]
    flips = [[False, False], [False, True], [False, False], [False, False]]
    return torch.tensor(boxes), torch.tensor(flips)


def test_matching_by_geometry():
    boxes, flips = boxes_and_flips()
    match = match_by_geometry(boxes, flips, (4, 4)).view(4, 4, 4)
    same = torch.arange(16).view(4, 4)
    assert torch.equal(match[0], same)
    assert torch.equal(match[1], same.flip(1))
    assert torch.equal(match[2], same[:, :1].expand(4, 4))  # nothing overlaps: the nearest column
    # The lower left cells lie in the quarter, two cells of it apart; all others are nearest to its border.
    assert match[3].tolist() == [[1, 3, 3, 3], [1, 3, 3, 3], [5, 7, 7, 7], [13, 15, 15, 15]]
    model = tiny_model(matching="geometry")
    assert_equals_plain_step(model, tiny_views(), match=match.flatten(1), crop_boxes=boxes, flips=flips)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"geometry.*crop_boxes"):
        model(tiny_views())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_match_accuracy_counts_neighbours_inside_of_the_overlap():
    boxes, flips = boxes_and_flips()
    true_match = match_by_geometry(boxes, flips, (4, 4))
    assert match_accuracy(true_match, boxes, flips, (4, 4)) == 1
    assert match_accuracy(true_match[:1] + 1, boxes[:1], flips[:1], (4, 4)) == 12 / 16  # off the end of each row
    assert match_accuracy(true_match[:1].flip(1), boxes[:1], flips[:1], (4, 4)) == 4 / 16  # the middle is near itself
    assert torch.isnan(match_accuracy(true_match[2:3], boxes[2:3], flips[2:3], (4, 4)))
    # Corners have 4 near cells of 16, edges 6, the middle 9.
    expected = (4 * 4 + 8 * 6 + 4 * 9) / 16**2
    assert chance_accuracy(boxes[:1], flips[:1], (4, 4)) == pytest.approx(expected)


def test_equal_views_are_matched_in_place():
    model = tiny_model(momentum=0.0)  # the keys are encoded by the encoder itself
    views = tiny_views()
    views[:, 1] = views[:, 0]
    boxes = torch.tensor([[[0, 0, 32, 32]] * 2] * BATCH)
    output = model(views, crop_boxes=boxes)
    assert output.match_accuracy == 1
    assert output.match_targets == 16
    assert torch.equal(output.match_index, torch.arange(16).expand(BATCH, 16))


def test_accuracies_and_distinct_targets_are_reported():
    output = tiny_model()(tiny_views())
    assert output.match_targets == sum(len(row.unique()) for row in output.match_index) / BATCH
    assert 0 <= output.accuracy_dense <= 1
    assert 0 <= output.accuracy_global <= 1
    assert not output.accuracy_global.requires_grad


def test_evaluation_changes_nothing():
    model = tiny_model().eval()
    before = snapshot(model)
    output = model(tiny_views(batch=5))  # a batch that does not divide the queues
    assert output.loss > 0
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name


def test_lambda_of_zero_is_moco_v2():
    """The dense branch only fills its queue and is measured."""
    model, full = tiny_model(loss_lambda=0), tiny_model(loss_lambda=0.5)
    output, reference = model(tiny_views()), full(tiny_views())
    assert torch.equal(output.loss, reference.loss_global)
    for name in ("loss_dense", "match_index", "accuracy_dense", "match_targets", "query_dense_features"):
        assert torch.equal(output[name], reference[name]), name
        assert not output[name].requires_grad
    assert output.contra_dense == 0
    output.loss.backward()
    reference.loss_global.backward()
    for parameter in model.encoder.dense_head.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    for (name, ours), theirs in zip(
        model.encoder.backbone.named_parameters(), full.encoder.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad), name
    for name in ("queue", "queue2", "queue_ptr", "queue2_ptr"):
        assert torch.equal(getattr(model, name), getattr(full, name)), name
    assert int(model.queue2_ptr) == BATCH
    assert model.eval()(tiny_views()).loss_dense > 0


def test_warm_up_of_the_dense_loss_is_a_step():
    model = tiny_model(loss_lambda=1, loss_lambda_warmup_steps=2)
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    weights = []
    for seed in range(4):
        for micro_batch in range(2):  # accumulated: optimiser steps count, not forwards
            output = model(tiny_views(seed=10 * seed + micro_batch))
            weights.append((output.contra_dense / output.loss_dense).item())
            output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert weights == [0.0] * 4 + [1.0] * 4
    assert int(model.steps) == 4
    # The queue of pooled dense keys is filled from the beginning.
    assert int(model.queue2_ptr) == int(model.queue_ptr) == 8 * BATCH % 12
    assert model.eval()(tiny_views()).loss_dense is not None


@pytest.mark.parametrize("zero_grad_first", [True, False], ids=["zero_grad after step", "zero_grad after forward"])
def test_momentum_moves_once_per_optimiser_step(zero_grad_first):
    model = tiny_model(momentum=0.5)
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    weight = model.momentum_encoder.global_head[0].weight
    moved = []
    for step in range(3):
        for micro_batch in range(2):
            before = weight.clone()
            output = model(tiny_views(seed=10 * step + micro_batch))
            moved.append(not torch.equal(weight, before))
            if not zero_grad_first and micro_batch == 0:
                optimizer.zero_grad()
            output.loss.backward()
        optimizer.step()
        if zero_grad_first:
            optimizer.zero_grad()
    assert moved == [True, False] * 3
    assert int(model.queue_ptr) == 6 * BATCH % 12


def step_in_data(parameters):
    """As optimisers do that go around torch's count of changes."""
    for parameter in parameters:
        parameter.data.sub_(0.1 * parameter.grad)


def step_to_new_data(parameters):
    for parameter in parameters:
        parameter.data = parameter.data - 0.1 * parameter.grad


def step_fused(parameters):
    torch.optim.SGD(parameters, lr=0.1, fused=True).step()


@pytest.mark.parametrize("take_step", [step_in_data, step_to_new_data, step_fused])
@pytest.mark.parametrize("keep_gradients", [True, False], ids=["gradients of zero", "zero_grad after forward"])
@pytest.mark.parametrize("frozen_stages", [-1, 2])
def test_steps_that_torch_does_not_count_are_recognised(take_step, keep_gradients, frozen_stages):
    model = tiny_model(momentum=0.5, loss_lambda_warmup_steps=2, frozen_stages=frozen_stages)
    parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    weight = model.momentum_encoder.global_head[0].weight
    moved = []
    for step in range(3):
        for micro_batch in range(2):
            before = weight.clone()
            output = model(tiny_views(seed=10 * step + micro_batch))
            moved.append(not torch.equal(weight, before))
            if micro_batch == 0 and not keep_gradients:
                model.zero_grad()
            output.loss.backward()
        take_step(parameters)
        if keep_gradients:
            model.zero_grad(set_to_none=False)
    assert moved == [True, False] * 3
    assert int(model.steps) == 3


def test_gradients_that_wait_on_another_device_or_in_another_type_are_accumulated():
    model = tiny_model(dtype=torch.float32)
    model(tiny_views(dtype=torch.float32)).loss.backward()
    weight = model.double().momentum_encoder.global_head[0].weight
    before = weight.clone()
    model(tiny_views())
    assert torch.equal(weight, before)


def test_momentum_update_can_be_forced():
    model = tiny_model(momentum=0.5)
    weight = model.momentum_encoder.global_head[0].weight
    for wanted in (False, True, True, False):
        before = weight.clone()
        model(tiny_views(), update_momentum=wanted).loss.backward()
        assert torch.equal(weight, before) != wanted


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_repeats_nothing(use_reentrant):
    plain, checkpointed = tiny_model(), tiny_model()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for seed in range(2):
        for model in (plain, checkpointed):
            model(tiny_views(seed=seed)).loss.backward()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(checkpointed.state_dict()[name], tensor, **EXACT, msg=name)
    for ours, theirs in zip(checkpointed.encoder.parameters(), plain.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


def test_autocast_keeps_the_contrast_in_float32():
    model = tiny_model(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(tiny_views(dtype=torch.float32))
    assert output.query_feature_map.dtype == torch.bfloat16
    for name in ("loss", "query_features", "key_dense_features", "key_backbone_features"):
        assert output[name].dtype == torch.float32, name
    assert model.queue.dtype == torch.float32
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(12))
    output.loss.backward()


def test_compiled_steps_equal_plain_ones_and_are_compiled_once():
    plain, model = tiny_model(), tiny_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    optimizers = [torch.optim.SGD(m.encoder.parameters(), lr=0.1) for m in (plain, model)]
    for seed in range(4):
        with torch._dynamo.config.patch(error_on_recompile=seed > 1):
            for network in (plain, compiled):
                network(tiny_views(seed=seed)).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, **EXACT, msg=name)


@pytest.mark.parametrize(
    ("views", "changes", "inputs", "message"),
    [
        (
            (4, 3, 32, 32),
            {},
            {},
            r"expected 5 dimensions \(batch, 2 views, channels, height, width\), got \(4, 3, 32, 32\)",
        ),
        ((4, 3, 3, 32, 32), {}, {}, r"must have shape \[B, 2, C, H, W\].*got \(4, 3, 3, 32, 32\)"),
        ((4, 2, 1, 32, 32), {}, {}, r"must have 3 channels .*\(4, 2, 1, 32, 32\)"),
        ((0, 2, 3, 32, 32), {}, {}, r"pixel_values must not be empty, got shape \(0, 2, 3, 32, 32\)"),
        ((4, 2, 3, 0, 32), {}, {}, r"pixel_values must not be empty, got shape \(4, 2, 3, 0, 32\)"),
        ((5, 2, 3, 32, 32), {}, {}, r"queue_length 12 is not divisible by the global batch 5;.*queue_partial='wrap'"),
        ((4, 2, 3, 32, 32), {"num_grid": 5}, {}, "num_grid must be at most the sides of the feature map, 4x4, got 5"),
        ((1, 2, 3, 8, 8), {}, {}, "batch normalisation needs more than one value per channel.*1x1"),
        ((1, 2, 3, 8, 8), {"frozen_stages": 1}, {}, "batch normalisation needs more than one value per channel.*1x1"),
        ((4, 2, 3, 32, 32), {}, {"shuffle_index": [0, 1, 2, 3]}, r"shuffle_index must be a tensor, got list"),
        ((4, 2, 3, 32, 32), {}, {"match_index": [[0] * 16] * 4}, r"match_index must be a tensor, got list"),
        ((4, 2, 3, 32, 32), {}, {"crop_boxes": [[[0, 0, 1, 1]] * 2] * 4}, r"crop_boxes must be a tensor, got list"),
        ((4, 2, 3, 32, 32), {}, {"shuffle_index": torch.tensor([0, 1, 2, 2])}, "permutation of the 4 images"),
        ((4, 2, 3, 32, 32), {}, {"shuffle_index": torch.arange(8)}, "permutation of the 4 images"),
        (
            (4, 2, 3, 32, 32),
            {},
            {"shuffle_index": torch.arange(4.0)},
            "must be integers, got torch.float32",
        ),
        ((4, 2, 3, 32, 32), {}, {"match_index": torch.zeros(4, 15, dtype=torch.int64)}, r"\(4, 16\) \(batch, cells\)"),
        ((4, 2, 3, 32, 32), {}, {"match_index": torch.full((4, 16), 16)}, r"name cells in \[0, 16\), got 16 to 16"),
        (
            (4, 2, 3, 32, 32),
            {},
            {"crop_boxes": torch.zeros(4, 4)},
            r"crop_boxes must have shape \(4, 2, 4\), ",
        ),
        (
            (4, 2, 3, 32, 32),
            {},
            {"crop_boxes": torch.ones(4, 2, 4), "flips": torch.zeros(4)},
            r"flips must have shape \(4, 2\), .*\(4,\)",
        ),
    ],
)
def test_bad_inputs_are_refused_before_anything_changes(views, changes, inputs, message):
    model = tiny_model(dtype=torch.float32, loss_lambda_warmup_steps=1, **changes)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(views), **inputs)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("changes", [{"norm_eval": True}, {"frozen_stages": 2}])
def test_one_value_per_channel_is_enough_without_batch_statistics(changes):
    assert tiny_model(dtype=torch.float32, **changes)(torch.rand(1, 2, 3, 8, 8)).loss > 0


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (64, 31), (5, 70)])
@pytest.mark.parametrize("changes", [{}, {"strides": [2, 3]}, {"dilations": [2, 4], "style": "caffe"}, {"num_grid": 1}])
@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_cells_are_known_before_the_step(size, changes, layer_type):
    model = tiny_model(dtype=torch.float32, layer_type=layer_type, **changes)
    views = torch.rand(4, 2, 3, *size)
    cells = model(views).match_index.shape[1]
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"shape \(4, {cells}\) \(batch, cells\)"):
        model(views, match_index=torch.zeros(4, cells + 1, dtype=torch.int64))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_pixels_that_are_integers_are_refused():
    model = tiny_model(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"pixel_values must be floats.*got torch\.uint8"):
        model(torch.zeros(4, 2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"pixel_values must be floats.*got torch\.int64"):
        model.encode(torch.zeros(4, 3, 32, 32, dtype=torch.int64))


def test_encoding_is_that_of_the_backbone():
    model = tiny_model(dtype=torch.float32).eval()
    pixels = torch.rand(2, 3, 32, 32)
    encoded = model.encode(pixels, output_hidden_states=True)
    maps = model.encoder.feature_maps(pixels)
    assert all(torch.equal(ours, expected) for ours, expected in zip(encoded.hidden_states, maps, strict=True))
    assert torch.equal(encoded.last_hidden_state, maps[-1])
    assert torch.equal(encoded.pooler_output, maps[-1].mean(dim=(2, 3)))
    assert model.encode(pixels).hidden_states is None


def test_copies_of_data_parallel_are_refused():
    model = tiny_model()
    model._is_replica = True  # as torch marks them
    with pytest.raises(RuntimeError, match=r"DataParallel.*one process per device"):
        model(tiny_views())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_lambda": 1.1}, r"loss_lambda must be in \[0, 1\], got 1.1"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"num_grid": 0}, "num_grid must be at least 1 or None, got 0"),
        ({"matching": "nearest"}, "matching must be one of .*'backbone'.*got 'nearest'"),
        ({"queue_partial": "drop"}, "queue_partial must be one of .*got 'drop'"),
        ({"queue_length": 0}, "queue_length must be at least 1, got 0"),
        ({"style": "tf"}, "style must be one of"),
        ({"layer_type": "wide"}, "layer_type must be one of"),
        ({"num_stages": 5}, r"num_stages must be in \[1, 4\], got 5"),
        ({"num_stages": 3}, "depths must be positive, one for each of the 3 stages"),
        ({"strides": [1, 0]}, r"strides must be positive.*\[1, 0\]"),
        ({"frozen_stages": 3}, r"frozen_stages must be in \[-1, 2\], got 3"),
        ({"loss_lambda_warmup_steps": -1}, "loss_lambda_warmup_steps must be at least 0"),
        ({"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
