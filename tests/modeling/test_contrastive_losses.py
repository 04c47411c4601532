"""The streamed losses of SimCLR and DenseCL against their plain forms, in one process."""

import pytest
import torch
import torch.nn.functional as F
from hubmodels.modeling.densecl import losses_densecl
from hubmodels.modeling.densecl.losses_densecl import info_nce
from hubmodels.modeling.simclr.losses_simclr import nt_xent
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def plain_nt_xent(projections, temperature, hidden_norm=True):
    """Loss, accuracy and entropy by the four blocks of logits of the definition."""
    z = projections
    if hidden_norm:
        z = z * torch.rsqrt(z.square().sum(1, keepdim=True).clamp_min(1e-12))
    first, second = z.chunk(2)
    labels = torch.arange(len(first))
    own = torch.eye(len(first), dtype=torch.bool)
    aa = (first @ first.T / temperature).masked_fill(own, -torch.inf)
    bb = (second @ second.T / temperature).masked_fill(own, -torch.inf)
    ab = first @ second.T / temperature
    loss = F.cross_entropy(torch.cat([ab, aa], 1), labels) + F.cross_entropy(torch.cat([ab.T, bb], 1), labels)
    probabilities = ab.softmax(1)
    entropy = -(probabilities * (probabilities + 1e-8).log()).sum(1).mean()
    return loss, (ab.argmax(1) == labels).to(z.dtype).mean(), entropy


def plain_info_nce(query, positive, queue, temperature):
    """Loss and accuracy from all logits."""
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue], 1) / temperature
    loss = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))
    return loss, (logits.argmax(1) == 0).to(query.dtype).mean()


def views(images, width=16, dtype=torch.float64, seed=0):
    """Projections of similar pairs, so that some but not all positives win."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(images, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, images, width, generator=generator, dtype=torch.float64)
    return (common + 1.2 * noise).flatten(0, 1).to(dtype).requires_grad_()


def keys(rows, columns, width=16, dtype=torch.float64, seed=0):
    """Normalised queries and positives `[rows, width]`, similar to each other, and a queue `[width, columns]`."""
    pairs = F.normalize(views(rows, width, seed=seed).detach(), dim=1).to(dtype)
    queue = torch.randn(width, columns, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    query, positive = (half.clone().requires_grad_() for half in pairs.chunk(2))
    return query, positive, F.normalize(queue, dim=0).to(dtype)


def assert_close(actual, expected, tolerance):
    """Relative to the largest number of what is expected."""
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.double().abs().max(), f"{error:.2e}"


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs the operation."""
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.elements = max([self.elements, *(t.numel() for t in tensors if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
@pytest.mark.parametrize(("temperature", "hidden_norm"), [(0.5, True), (0.1, True), (0.01, True), (0.5, False)])
def test_nt_xent_equals_its_plain_form(dtype, chunk, temperature, hidden_norm):
    projections = views(33, dtype=dtype)
    reference = projections.detach().double().requires_grad_()
    ours = nt_xent(projections, temperature, hidden_norm, chunk=chunk)
    loss, accuracy, entropy = plain_nt_xent(reference, temperature, hidden_norm)
    tolerance = TOLERANCE[dtype] * max(1, 0.1 / temperature)
    assert 0.1 < accuracy < 1
    assert ours.loss.dtype == dtype
    assert_close(ours.loss, loss, tolerance)
    assert_close(ours.accuracy, accuracy, tolerance)
    assert_close(ours.entropy, entropy, tolerance)
    (3 * ours.loss).backward()
    (3 * loss).backward()
    assert_close(projections.grad, reference.grad, 4 * tolerance)


def test_nt_xent_gradient_is_that_of_finite_differences():
    projections = views(4, 3)
    assert torch.autograd.gradcheck(lambda p: nt_xent(p, 0.3, chunk=3).loss, projections)


def test_nt_xent_of_one_thousand_images_is_as_exact_as_the_plain_form():
    projections = views(1024, 64, torch.float32).detach()
    exact = plain_nt_xent(projections.double(), 0.1)[0]
    assert_close(nt_xent(projections).loss, exact, 1e-6)


def test_mean_reduction_is_half_of_the_official_one():
    projections = views(5)
    assert nt_xent(projections, reduction="mean").loss == nt_xent(projections).loss / 2


def test_nt_xent_returns_logits_only_when_asked():
    projections = views(6)
    assert nt_xent(projections).logits_ab is None
    output = nt_xent(projections, 0.2, return_logits=True)
    z = F.normalize(projections.detach(), dim=1)
    torch.testing.assert_close(output.logits_ab, z[:6] @ z[6:].T / 0.2)
    assert output.labels.tolist() == list(range(6))


def test_zero_and_huge_rows_give_finite_loss_and_gradient():
    projections = views(5, dtype=torch.float32).detach()
    projections[0] = 0
    projections[1] *= 1e15
    projections.requires_grad_()
    output = nt_xent(projections)
    output.loss.backward()
    assert output.loss.isfinite()
    assert projections.grad.isfinite().all()
    unnormalised = nt_xent((projections.detach() * 100).clamp(-1e4, 1e4), hidden_norm=False)
    assert unnormalised.loss.isfinite()


def test_nt_xent_computes_no_gradient_unless_needed():
    projections = views(5)
    with torch.no_grad():
        assert nt_xent(projections).loss.grad_fn is None
    assert not nt_xent(projections.detach()).loss.requires_grad
    output = nt_xent(projections)
    assert output.loss.requires_grad
    assert not output.accuracy.requires_grad
    assert not output.entropy.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_are_float32_for_half_precision_and_under_autocast(dtype):
    projections = views(20, dtype=dtype)
    query, positive, queue = keys(20, 30, dtype=dtype)
    exact = nt_xent(projections.detach().float()).loss
    exact_queue = info_nce(query.detach().float(), positive.detach().float(), queue.float()).loss
    with torch.autocast("cpu", dtype=dtype):
        loss, queue_loss = nt_xent(projections).loss, info_nce(query, positive, queue).loss
        (loss + queue_loss).backward()
    assert loss.dtype == queue_loss.dtype == torch.float32
    assert loss == exact
    assert queue_loss == exact_queue
    assert projections.grad.dtype == query.grad.dtype == dtype
    reference = projections.detach().float().requires_grad_()
    nt_xent(reference).loss.backward()
    assert_close(projections.grad, reference.grad, 1e-2)


def test_no_tensor_is_as_large_as_the_logits():
    projections = views(300)
    query, positive, queue = keys(200, 3000, 8)
    with LargestTensor() as nt:
        nt_xent(projections, chunk=10).loss.backward()
    with LargestTensor() as nce:
        info_nce(query, positive, queue, chunk=20).loss.backward()
    assert nt.elements <= projections.numel()  # 1 / 37 of the logits
    assert nce.elements <= queue.numel()  # 1 / 25 of the logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"reduction": "sum"}, r"one of \('official', 'mean'\), got 'sum'"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"projections": torch.randn(7, 4)}, "even number of rows.*got 7"),
        ({"projections": torch.randn(0, 4)}, "even number of rows.*got 0"),
        ({"projections": torch.randn(2, 4)}, "1 image.*no negatives.*dataloader_drop_last=True"),
        ({"projections": torch.randn(2, 2, 4)}, r"\[2b, d\], got torch.float32 \[2, 2, 4\]"),
        ({"projections": torch.ones(4, 4, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_nt_xent_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        nt_xent(**{"projections": torch.randn(6, 4), **change})


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", [None, 1, 64, 100, 1000])
@pytest.mark.parametrize("temperature", [0.2, 0.01])
def test_info_nce_equals_its_plain_form(dtype, chunk, temperature, monkeypatch):
    monkeypatch.setattr(losses_densecl, "QUERY_ROWS", 9)
    query, positive, queue = keys(25, 331, dtype=dtype)
    reference = [t.detach().double().requires_grad_() for t in (query, positive)]
    ours = info_nce(query, positive, queue, temperature, chunk=chunk)
    loss, accuracy = plain_info_nce(*reference, queue.double(), temperature)
    tolerance = TOLERANCE[dtype] * max(1, 0.1 / temperature)
    assert 0 < accuracy < 1
    assert ours.loss.dtype == dtype
    assert_close(ours.loss, loss, tolerance)
    assert_close(ours.accuracy, accuracy, tolerance)
    (3 * ours.loss).backward()
    (3 * loss).backward()
    assert_close(query.grad, reference[0].grad, 4 * tolerance)
    assert_close(positive.grad, reference[1].grad, 4 * tolerance)


def test_info_nce_gradient_is_that_of_finite_differences():
    query, positive, queue = keys(3, 11, 4)
    assert torch.autograd.gradcheck(lambda q, p: info_nce(q, p, queue, 0.3, chunk=4).loss, (query, positive))


def test_negatives_of_the_same_image_have_exact_gradients_and_must_fit():
    query, positive, queue = keys(6, 11, 4)
    image_keys = F.normalize(torch.randn(2, 4, 3, dtype=torch.float64), dim=1)
    match = torch.tensor([[0, 2, 2], [1, 0, 2]])

    def loss(q, p):
        return info_nce(q, p, queue, 0.3, image_keys=image_keys, match_index=match).loss

    assert torch.autograd.gradcheck(loss, (query, positive))
    for changes in ({"match_index": None}, {"match_index": match[:, :2]}, {"image_keys": image_keys[:1]}):
        with pytest.raises(ValueError, match=r"image_keys \[G, 4, M\] and match_index \[G, 6 / G\]"):
            info_nce(query, positive, queue, **({"image_keys": image_keys, "match_index": match} | changes))


def test_the_queue_may_be_overwritten_before_the_backward():
    query, positive, queue = keys(8, 50)
    loss, _ = plain_info_nce(query, positive, queue, 0.2)
    expected = torch.autograd.grad(loss, query)[0]
    ours = info_nce(query, positive.detach(), queue)
    queue[:, :8] = positive.detach().T
    torch.testing.assert_close(torch.autograd.grad(ours.loss, query)[0], expected, rtol=0, atol=1e-14)


def test_info_nce_computes_the_gradients_that_are_asked_for():
    query, positive, queue = keys(8, 50)
    with torch.no_grad():
        assert info_nce(query, positive, queue).loss.grad_fn is None
    output = info_nce(query.detach(), positive, queue)
    output.loss.backward()
    assert query.grad is None
    assert positive.grad is not None
    assert not output.accuracy.requires_grad


def test_info_nce_takes_a_half_precision_queue_and_long_vectors():
    query, positive, queue = keys(8, 50, dtype=torch.float32)
    rounded = queue.bfloat16()
    assert info_nce(query, positive, rounded).loss == info_nce(query, positive, rounded.float()).loss
    large = info_nce(query * 1e3, positive, queue)
    assert_close(large.loss, plain_info_nce(query * 1e3, positive, queue, 0.2)[0], 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"chunk": -1}, "chunk must be at least 1, got -1"),
        ({"positive": torch.randn(5, 4)}, r"\[6, 4\] and \[5, 4\]"),
        ({"query": torch.randn(0, 4), "positive": torch.randn(0, 4)}, r"\[0, 4\]"),
        ({"queue": torch.randn(9, 4)}, r"queue must have shape \[4, K\], got \[9, 4\]"),
    ],
)
def test_info_nce_refuses(change, message):
    arguments = {"query": torch.randn(6, 4), "positive": torch.randn(6, 4), "queue": torch.randn(4, 9)}
    with pytest.raises(ValueError, match=message):
        info_nce(**{**arguments, **change})
