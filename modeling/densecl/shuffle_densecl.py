"""Shuffling batch normalisation and gathering over processes (He et al., MoCo, arXiv 1911.05722, section 3.3)."""

import torch
import torch.distributed as dist


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_equal_batches(batch: int, device: torch.device) -> None:
    """
    Args:
        batch (`int`): images of this process.
        device (`torch.device`): a device of the processes' backend.

    Raises:
        ValueError: on every process, if they do not have equally many images.
    """
    mine = torch.tensor([batch], device=device)
    batches = gather_rows(mine).tolist()
    if len(set(batches)) > 1:
        raise ValueError(
            f"every process needs a batch of the same size, got {batches} by rank; drop the last incomplete batch "
            "(dataloader_drop_last=True)"
        )


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows `[B, ...]` of all processes, `[R * B, ...]` in the order of their ranks."""
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    gathered = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


class BatchShuffle:
    """
    Gives every process rows of the whole batch, and the results back to the processes that own them.

    Only rows that are needed travel, so nothing of size `R * B` is ever held.

    Args:
        batch (`int`): images of a process, B.
        permutation (`torch.Tensor` of shape `[R * B]`, *optional*):
            Process r computes the rows `permutation[r * B : (r + 1) * B]`, counted in rank order. Must be the same on
            all processes; by default it is drawn by rank 0.
        device (`torch.device`): where the images are.

    """

    def __init__(self, batch: int, permutation: torch.Tensor | None, device: torch.device):
        ranks, rank = dist.get_world_size(), dist.get_rank()
        if permutation is None:
            permutation = torch.randperm(ranks * batch).to(device)
            dist.broadcast(permutation, src=0)
        plan = permutation.cpu().view(ranks, batch)  # [r, i]: the row that process r computes as its i-th
        owners = plan // batch
        # What I send to process r, in its order, and what I get from process s, in mine.
        self._send = [plan[r][owners[r] == rank] % batch for r in range(ranks)]
        self._receive = [(owners[rank] == s).nonzero().flatten() for s in range(ranks)]
        self._device = device

    def scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[B, ...]` of this process in, the rows that it has to compute out."""
        return self._exchange(rows, self._send, self._receive)

    def restore(self, rows: torch.Tensor) -> torch.Tensor:
        """Results `[B, ...]` of the computed rows in, those of the rows of this process out."""
        return self._exchange(rows, self._receive, self._send)

    def _exchange(self, rows: torch.Tensor, leaving: list[torch.Tensor], arriving: list[torch.Tensor]) -> torch.Tensor:
        sent = rows[torch.cat(leaving).to(self._device)].contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, [len(i) for i in arriving], [len(i) for i in leaving])
        result = torch.empty_like(received)
        result[torch.cat(arriving).to(self._device)] = received
        return result


def check_permutation(permutation: torch.Tensor, rows: int) -> None:
    """
    Raises:
        ValueError: if `permutation` is no tensor that holds every number from 0 to `rows - 1` once, as an integer.
    """
    if not isinstance(permutation, torch.Tensor):
        raise ValueError(f"shuffle_index must be a tensor, got {type(permutation).__name__}")
    if permutation.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"shuffle_index must be integers, got {permutation.dtype}")
    if permutation.shape != (rows,) or permutation.sort().values.tolist() != list(range(rows)):
        raise ValueError(
            f"shuffle_index must be a permutation of the {rows} images of all processes, got {permutation.tolist()}"
        )


__all__ = ["BatchShuffle", "check_equal_batches", "check_permutation", "gather_rows", "world_size"]
