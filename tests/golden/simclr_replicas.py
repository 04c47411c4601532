"""What one of three processes computes for `test_simclr_replicas.py`: `simclr_replicas.py FOLDER`, under torchrun.

The golden cases of two replicas run in the group of processes 0 and 1, the comparisons with one process in both groups.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.modeling.simclr.losses_simclr import nt_xent
from hubmodels.modeling.simclr.normalization_simclr import SimCLRBatchNorm
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).parent
TEMPERATURE = 0.2
IMAGES = 12
BN_ROWS = {2: [3, 5], 3: [1, 4, 2]}


class TinySimCLR(nn.Module):
    """A convolution and a projection head with both kinds of normalisation, and the loss."""

    def __init__(self, group=None):
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(2, 6, 3)
        self.map_norm = SimCLRBatchNorm(6, process_group=group)
        self.dense = nn.Linear(6, 5)
        self.norm = SimCLRBatchNorm(5, bias=False, process_group=group)
        self.group = group
        self.double()

    def forward(self, views):
        """Loss, accuracy and entropy of views `[B, 2, C, H, W]`."""
        features = self.map_norm(self.convolution(views.transpose(0, 1).flatten(0, 1))).relu().mean((2, 3))
        return nt_xent(self.norm(self.dense(features)), TEMPERATURE, group=self.group, chunk=3)[:3]


def tiny_views():
    """Images of all processes, float64; later images have another mean and scale."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(IMAGES, 2, 2, 6, 7, generator=generator, dtype=torch.float64)
    return images * torch.linspace(1, 3, IMAGES).view(-1, 1, 1, 1, 1) + torch.linspace(0, 9, IMAGES).view(
        -1, 1, 1, 1, 1
    )


def tiny_rows(count):
    """Feature maps and upstream gradients of `count` images, float64, far from zero mean."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(2, count, 4, 3, 2, generator=generator, dtype=torch.float64) * 2 + 50


def golden_loss(rank, group):
    """Case ntxent_global_2replicas: what replica `rank` computes."""
    hidden = load_file(HERE / "simclr/ntxent_global_2replicas/inputs.safetensors")["hidden"][rank].requires_grad_()
    output = nt_xent(hidden, 0.1, group=group, return_logits=True)
    (output.loss / 2).backward()
    return {"loss": output.loss, "logits_ab": output.logits_ab, "labels": output.labels, "grad_hidden": hidden.grad}


def golden_norm(rank, group):
    """Case global_bn_2replicas: what replica `rank` computes."""
    inputs = load_file(HERE / "simclr/global_bn_2replicas/inputs.safetensors")
    x = inputs["x"][rank].requires_grad_()
    norm = SimCLRBatchNorm(x.shape[1], process_group=group)
    state = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    norm.load_state_dict({ours: inputs[theirs] for ours, theirs in state.items()}, strict=False)
    y = norm(x).relu()
    (y * inputs["upstream"][rank]).sum().backward()
    return {"y": y, "grad_x": x.grad, "new_moving_mean": norm.running_mean, "new_moving_variance": norm.running_var}


def training_step(rank, world_size, group):
    """Loss, averaged gradients and moving statistics of the own share of the images, by DistributedDataParallel."""
    model = TinySimCLR(group)
    parallel = nn.parallel.DistributedDataParallel(model, process_group=group)
    share = IMAGES // world_size
    loss, accuracy, entropy = parallel(tiny_views()[rank * share : (rank + 1) * share])
    loss.backward()
    gradients = {f"grad/{name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss, "accuracy": accuracy, "entropy": entropy, **gradients, **dict(model.named_buffers())}


def uneven_norm(rank, world_size, group):
    """Normalisation of unequal shares: output, gradients, and the unbiased moving variance."""
    counts = BN_ROWS[world_size]
    x, upstream = (t.split(counts)[rank].clone() for t in tiny_rows(sum(counts)))
    norm = SimCLRBatchNorm(4, running_var="unbiased", process_group=group, affine=world_size == 3).double()
    y = norm(x.requires_grad_())
    (y * upstream).sum().backward()
    parameters = {f"grad_{name}": parameter.grad for name, parameter in norm.named_parameters()}
    return {"y": y, "grad_x": x.grad, "running_var": norm.running_var, **parameters}


def bfloat16_norm(rank):
    """Normalisation of bfloat16 maps with float32 parameters, as under autocast."""
    x, upstream = (t.split(BN_ROWS[3])[rank].bfloat16() for t in tiny_rows(sum(BN_ROWS[3])))
    norm = SimCLRBatchNorm(4)
    y = norm(x.requires_grad_())
    (y * upstream).sum().backward()
    return {"y": y, "grad_x": x.grad, "running_var": norm.running_var, "grad_bias": norm.bias.grad}


def refusal(rows, group):
    """The message of the error that unequal shares raise."""
    try:
        nt_xent(torch.randn(rows, 4), group=group)
    except ValueError as error:
        return str(error)
    return None


def main():
    """Writes `rankR.safetensors` and `rankR.json`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, rank = Path(sys.argv[1]), dist.get_rank()
    pair = dist.new_group([0, 1])
    results = {"three/step": training_step(rank, 3, None), "three/norm": uneven_norm(rank, 3, None)}
    results["three/bfloat16"] = bfloat16_norm(rank)
    messages = {"unequal": refusal(2 * (2 + rank), None)}
    if rank < 2:
        results |= {"golden/loss": golden_loss(rank, pair), "golden/norm": golden_norm(rank, pair)}
        results |= {"two/step": training_step(rank, 2, pair), "two/norm": uneven_norm(rank, 2, pair)}
    flat = {f"{part}/{name}": t.detach().contiguous() for part, ts in results.items() for name, t in ts.items()}
    save_file(flat, folder / f"rank{rank}.safetensors")
    (folder / f"rank{rank}.json").write_text(json.dumps(messages))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
