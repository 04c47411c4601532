"""One contender of `benchmarks.positional_label_heads`: runs the steps that it is asked for, and times them.

python -m benchmarks.positional_label_heads_worker CONTENDER SIDE BATCH
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from benchmarks.contender import serve, start_of_memory

THREADS = 2
WIDTH = 768


def looped_pairs(tokens: torch.Tensor) -> torch.Tensor:
    """All pairs, anchor by anchor, each joined to those before: what the official code does, in other words."""
    half, count = tokens.shape[2] // 2, tokens.shape[1]
    others = tokens[:, :, half:]
    pairs = None
    for anchor in range(count):
        own = tokens[:, anchor : anchor + 1, :half].repeat(1, count, 1)
        row = torch.cat([own, others], dim=2)
        pairs = row if pairs is None else torch.cat([pairs, row], dim=1)
    return pairs


def broadcast_pairs(tokens: torch.Tensor) -> torch.Tensor:
    """All pairs in one go."""
    half, count = tokens.shape[2] // 2, tokens.shape[1]
    first = tokens[:, :, None, :half].expand(-1, -1, count, -1)
    second = tokens[:, None, :, half:].expand(-1, count, -1, -1)
    return torch.cat([first, second], dim=-1).flatten(1, 2)


class Pairwise(nn.Module):
    """The layers of the head on a tensor of pairs."""

    def __init__(self, head: nn.Module, labels: torch.Tensor, make_pairs):
        super().__init__()
        self.head, self.labels, self.make_pairs = head, labels, make_pairs

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The loss."""
        hidden = functional.gelu(self.head.fc1(self.make_pairs(tokens)))
        logits = self.head.classifier(self.head.fc2(hidden)).flatten(0, 1)
        return functional.cross_entropy(logits, self.labels.repeat(len(tokens)))


def main() -> None:
    """Serves steps until standard input ends."""
    contender, side, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    from hubmodels.modeling.positional_label import RelativePositionHead, relative_labels

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    head = RelativePositionHead(WIDTH, (side, side))
    tokens = torch.randn(batch, side * side, WIDTH, requires_grad=True)
    pairs = {"official loop": looped_pairs, "broadcast": broadcast_pairs}.get(contender)
    labels = relative_labels((side, side)).flatten()
    module = head if pairs is None else Pairwise(head, labels, pairs)
    before = start_of_memory()

    def step() -> float:
        tokens.grad = None
        head.zero_grad()
        loss = module(tokens)
        loss = loss.loss if pairs is None else loss
        loss.backward()
        return loss.item()

    serve(step, before, loss=step())


if __name__ == "__main__":
    main()
