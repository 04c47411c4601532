"""One contender of `benchmarks.contrastive_losses`: reads a number of steps per line, runs them, answers with seconds.

python -m benchmarks.contrastive_losses_worker LOSS CONTENDER SIZE THREADS
"""

import sys

import torch
import torch.nn.functional as F

from benchmarks.contender import matmul_peak, peak_mib, serve, start_of_memory

WIDTH = 128
QUERIES = 32 * 49
NT_XENT_TEMPERATURE, INFO_NCE_TEMPERATURE = 0.1, 0.2


def plain_nt_xent(projections):
    """The definition, all logits at a time."""
    first, second = F.normalize(projections, dim=1).chunk(2)
    labels = torch.arange(len(first))
    own = torch.eye(len(first), dtype=torch.bool)
    aa, ab, bb = (x @ y.T / NT_XENT_TEMPERATURE for x, y in ((first, first), (first, second), (second, second)))
    rows = torch.cat([ab, aa.masked_fill(own, -torch.inf)], 1), torch.cat([ab.T, bb.masked_fill(own, -torch.inf)], 1)
    return sum(F.cross_entropy(row, labels) for row in rows)


def nt_xent_contender(contender: str, images: int):
    """A step on `images` images, and its number of operations if all logits are computed once and used twice."""
    projections = torch.randn(2 * images, WIDTH, requires_grad=True)
    if contender == "hubmodels":
        from hubmodels.modeling.simclr.losses_simclr import nt_xent

        def loss():
            return nt_xent(projections, NT_XENT_TEMPERATURE).loss

    elif contender == "lightly":
        from lightly.loss import NTXentLoss

        peer = NTXentLoss(NT_XENT_TEMPERATURE)

        def loss():
            return 2 * peer(*projections.chunk(2))  # it takes the mean over all rows

    else:

        def loss():
            return plain_nt_xent(projections)

    return loss, projections, 6 * (2 * images) ** 2 * WIDTH


def plain_info_nce(query, positive, queue):
    """The definition, all logits at a time."""
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue], 1) / INFO_NCE_TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def info_nce_contender(contender: str, length: int):
    """A step against a queue of `length` keys, and its number of operations as above."""
    query, positive = F.normalize(torch.randn(2, QUERIES, WIDTH), dim=2)
    queue = F.normalize(torch.randn(WIDTH, length), dim=0)
    query.requires_grad_()
    if contender == "hubmodels":
        from hubmodels.modeling.densecl.losses_densecl import info_nce

        def loss():
            return info_nce(query, positive, queue, INFO_NCE_TEMPERATURE).loss

    elif contender == "lightly":
        from lightly.loss import NTXentLoss

        peer = NTXentLoss(INFO_NCE_TEMPERATURE, memory_bank_size=(length, WIDTH))
        peer.memory_bank.bank = queue.T.contiguous()

        def loss():
            return peer(query, positive)

    else:

        def loss():
            return plain_info_nce(query, positive, queue.clone())  # as the queue is overwritten before the backward

    return loss, query, 4 * QUERIES * length * WIDTH


def main() -> None:
    """Serves steps until standard input ends."""
    name, contender, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(int(sys.argv[4]))
    torch.manual_seed(0)
    loss, leaf, operations = {"nt_xent": nt_xent_contender, "info_nce": info_nce_contender}[name](contender, size)
    before = start_of_memory()

    def step() -> float:
        leaf.grad = None
        value = loss()
        value.backward()
        return value.item()

    first = step()
    step()
    memory = peak_mib() - before
    peak = matmul_peak(torch.float32)
    serve(step, before, loss=first, operations=operations, step_mib=memory, peak_gflops=peak)


if __name__ == "__main__":
    main()
