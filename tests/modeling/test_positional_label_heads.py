"""The relative head in tiles against all pairs at once, value and gradients; labels, memory, other grids, errors."""

import pytest
import torch
from hubmodels.modeling.positional_label import (
    AbsolutePositionHead,
    RelativePositionHead,
    num_relative_labels,
    relative_labels,
    smoothed_labels,
)
from hubmodels.modeling.positional_label.losses_positional_label import pair_cross_entropy
from torch.nn import functional

GRID, WIDTH = (3, 5), 12


def relative_head(grid=GRID, **settings) -> RelativePositionHead:
    torch.manual_seed(0)
    head = RelativePositionHead(WIDTH, grid, **settings).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def tokens(images=3, count=15, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, count, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def published_logits(head, states, full=False) -> torch.Tensor:
    """[first half of the anchor; second half of the other token] of all pairs through the layers, one after another."""
    half = WIDTH if full else WIDTH // 2
    count = states.shape[1]
    first = states[..., :half][:, :, None].expand(-1, -1, count, -1)
    second = states[..., -half:][:, None].expand(-1, count, -1, -1)
    pairs = torch.cat([first, second], dim=-1).flatten(1, 2)
    return head.classifier(head.fc2(functional.gelu(head.fc1(pairs))))


def gradients(loss, head, states) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [states, *head.parameters()]))


@pytest.mark.parametrize("tile_bytes", [1, 20_000, 2**22], ids=["one anchor", "some anchors", "several images"])
@pytest.mark.parametrize("split", ["half", "full"])
def test_tiles_equal_all_pairs(split, tile_bytes, monkeypatch):
    module = "hubmodels.modeling.positional_label.heads_positional_label.pair_cross_entropy"
    monkeypatch.setattr(module, lambda *args: pair_cross_entropy(*args, tile_bytes=tile_bytes))
    head, states = relative_head(feature_split=split), tokens()
    logits = published_logits(head, states, full=split == "full")
    labels = relative_labels(GRID).flatten().expand(3, -1)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    prediction = head(states, return_logits=True)
    torch.testing.assert_close(prediction.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prediction.logits, logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prediction.accuracy, (logits.argmax(-1) == labels).double().mean())
    wanted = gradients(expected, head, states)
    torch.testing.assert_close(gradients(3 * prediction.loss, head, states), [3 * g for g in wanted])


def test_anchors_and_counted_pairs():
    """Pairs of the given anchors, and of them those with a counted token; 2 / 15 of all such pairs are expected."""
    head, states = relative_head(), tokens()
    anchors = torch.tensor([[2, 7], [14, 0], [3, 4]])
    counted = torch.rand(3, 15, generator=torch.Generator().manual_seed(2)) < 0.3
    logits = published_logits(head, states).view(3, 15, 15, -1)
    rows = torch.arange(3)[:, None]
    losses = functional.cross_entropy(logits.movedim(-1, 1), relative_labels(GRID).expand(3, -1, -1), reduction="none")
    every = counted[:, :, None] | counted[:, None]
    pairs = every[rows, anchors]
    expected = losses[rows, anchors][pairs].sum() / (every.sum() * 2 / 15)
    prediction = head(states, counted=counted, anchors=anchors)
    hits = (logits.argmax(-1) == relative_labels(GRID))[rows, anchors][pairs]
    torch.testing.assert_close(prediction.accuracy, hits.double().mean())
    torch.testing.assert_close(prediction.loss, expected)
    torch.testing.assert_close(gradients(prediction.loss, head, states), gradients(expected, head, states))


def test_random_anchors_are_an_unbiased_estimate():
    head, states = relative_head(), tokens()
    every = [head(states, anchors=torch.full((3, 1), anchor)).loss for anchor in range(15)]
    torch.testing.assert_close(torch.stack(every).mean(), head(states).loss)


def test_random_anchors_are_an_unbiased_estimate_of_the_counted_pairs():
    """Images with different numbers of counted tokens; the mean over all draws of one anchor per image."""
    head, states = relative_head(), tokens(images=2)
    counted = torch.zeros(2, 15, dtype=torch.bool)
    counted[0, :5], counted[1, 3:5] = True, True
    draws = [torch.tensor([[first], [second]]) for first in range(15) for second in range(15)]
    every = [head(states, counted=counted, anchors=draw).loss for draw in draws]
    torch.testing.assert_close(torch.stack(every).mean(), head(states, counted=counted).loss)


def test_smaller_grids_use_a_part_of_the_trained_offsets():
    head, states = relative_head(), tokens(count=6)
    assert num_relative_labels(GRID) == 45
    labels = relative_labels((2, 3), GRID)
    assert labels[0, 5] == (0 - 1 + 2) * 9 + (0 - 2 + 4)
    expected = functional.cross_entropy(published_logits(head, states).flatten(0, 1), labels.flatten().repeat(3))
    torch.testing.assert_close(head(states, grid=(2, 3)).loss, expected)
    with pytest.raises(ValueError, match=r"position head was built for a 3x5 grid, got 4x5"):
        head(tokens(count=20), grid=(4, 5))
    with pytest.raises(ValueError, match=r"position head was built for a 3x5 grid, got 2x3"):
        AbsolutePositionHead(WIDTH, GRID).double()(states, grid=(2, 3))


def test_half_precision_computes_the_loss_in_float32():
    head, states = relative_head(), tokens().detach()
    exact = head(states).loss
    half = head.bfloat16()(states.bfloat16().requires_grad_())
    assert half.loss.dtype == torch.float32
    half.loss.backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in head.parameters())
    assert abs(half.loss.item() - exact.item()) < 0.03 * exact.item()
    head = relative_head().float()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(states.float().requires_grad_())
    mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32 and head.fc1.weight.grad.dtype == torch.float32
    assert abs(mixed.loss.item() - exact.item()) < 0.03 * exact.item()


def test_float16_gradients_survive_with_a_loss_scale():
    """A pair's share of the mean is too small for float16; the loss scale must reach it before it is rounded."""
    scale, (side, images) = 65536.0, (6, 16)
    torch.manual_seed(0)
    head = RelativePositionHead(32, (side, side))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.02 if parameter.ndim > 1 else 0.0)
    states = torch.randn(images, side * side, 32, requires_grad=True)
    found = []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            loss = head(states).loss
        found.append(torch.autograd.grad(loss * scale, [states, head.fc1.weight, head.classifier.weight]))
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() < 1e-2 * exact.norm()


def test_equal_logits_are_no_hits():
    """A head that says the same of every class is right by chance only."""
    head = relative_head()
    torch.nn.init.zeros_(head.classifier.weight)
    torch.nn.init.zeros_(head.classifier.bias)
    prediction = head(tokens(), return_logits=True)
    labels = relative_labels(GRID).flatten().expand(3, -1)
    torch.testing.assert_close(prediction.accuracy, (prediction.logits.argmax(-1) == labels).double().mean())
    assert prediction.accuracy < 0.05


def test_dropout_draws_after_the_activation():
    head, states = relative_head(dropout=0.5), tokens()
    torch.manual_seed(3)
    first = head(states)
    torch.manual_seed(3)
    assert first.loss == head(states).loss != head(states).loss
    assert head.eval()(states).loss == head(states).loss
    assert all(gradient.isfinite().all() for gradient in gradients(head.train()(states).loss, head, states))


def test_nothing_of_a_pair_is_kept_for_the_backward_pass():
    """What autograd saves grows with the tokens, not with the pairs."""
    sizes = []
    for side in (6, 12):
        head, states = RelativePositionHead(WIDTH, (side, side)), torch.randn(1, side * side, WIDTH, requires_grad=True)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            head(states)
        sizes.append(sum(saved) - 2 * sum(p.numel() for p in head.parameters()))
    assert sizes[1] < 5 * sizes[0]  # four times as many tokens, sixteen times as many pairs


def test_smoothed_labels():
    table = smoothed_labels((3, 4), 1.0, torch.float64, "cpu")
    torch.testing.assert_close(table.sum(1), torch.ones(12, dtype=torch.float64))
    assert torch.equal(table.argmax(1), torch.arange(12))
    torch.testing.assert_close(table[5, 6] / table[5, 5], torch.tensor(-0.5, dtype=torch.float64).exp())
    head = AbsolutePositionHead(WIDTH, (3, 4)).double()
    states = tokens(count=12)
    logits = head(states, return_logits=True).logits
    expected = -(table * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(head(states, sigma=1.0).loss, expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.full((3, 15), 15), r"ids must be in \[0, 15\) for a 3x5 grid, got 15 to 15"),
        (torch.full((3, 15), -1), r"ids must be in \[0, 15\)"),
        (torch.zeros(3, 15), r"ids of tokens must be integers, got torch.float32"),
        (torch.zeros(3, 4, dtype=torch.long), r"ids must have shape \[3, 15\], got \[3, 4\]"),
    ],
)
def test_wrong_indices_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        relative_head()(tokens(), ids)


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (torch.tensor([[0], [15], [2]]), r"anchors must be in \[0, 15\) for 15 tokens, got 0 to 15"),
        (torch.zeros(3, 2), "anchors must be integers, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.long), r"anchors must have shape \[3, S\], got \[2, 2\]"),
    ],
)
def test_wrong_anchors_are_refused(anchors, message):
    with pytest.raises(ValueError, match=message):
        relative_head()(tokens(), anchors=anchors)


def test_indices_may_be_of_any_integer_type():
    ids = torch.arange(15).flip(0).expand(3, -1)
    for head in (relative_head(), AbsolutePositionHead(WIDTH, GRID).double()):
        expected = head(tokens(), ids).loss
        for dtype in (torch.int32, torch.uint8):
            torch.testing.assert_close(head(tokens(), ids.to(dtype)).loss, expected)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="hidden size 13 must be even to split tokens in halves"):
        RelativePositionHead(13, GRID)
    with pytest.raises(ValueError, match="hidden size must be divisible by 4 for absolute position labels, got 14"):
        AbsolutePositionHead(14, GRID)
    with pytest.raises(ValueError, match="expected 3x5 tokens, got 6"):
        relative_head()(tokens(count=6))


def test_many_pairs_are_warned_about(messages):
    head = RelativePositionHead(4, (21, 21))
    head(torch.zeros(1, 441, 4), anchors=torch.zeros(1, 1, dtype=torch.long))
    assert "pairs per image" not in messages.text
    head(torch.zeros(1, 441, 4))
    assert "relative position labels of 441 tokens are 194481 pairs per image" in messages.text
