"""Training steps of DenseCL on the golden cases, by official names.

`densecl_steps.py CASE FOLDER` under torchrun is one of the processes that train together; it writes what it computed to
`FOLDER/rankRANK.safetensors`.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.conversion.densecl_names import KEY_MAP
from hubmodels.modeling.densecl import DenseCLForPreTraining
from safetensors.torch import save_file
from torch import nn

from tests.golden.harness import load_case

# Official names of what the model returns.
OUTPUTS = {
    "q": "query_features",
    "q_grid": "query_dense_features",
    "backbone": "query_feature_map",
    "k": "key_features",
    "k2": "key_pooled_features",
    "k_grid": "key_dense_features",
    "k_backbone": "key_backbone_features",
    "match_index": "match_index",
    "loss_global": "loss_global",
    "loss_dense": "loss_dense",
    "loss_contra_single": "contra_single",
    "loss_contra_dense": "contra_dense",
    "loss": "loss",
}


def load_model(case, folder):
    """The model of a case in training mode, from its official checkpoint."""
    config = case.manifest["config"]
    options = {name: config[name] for name in ("momentum", "temperature", "loss_lambda", "strides")}
    return DenseCLForPreTraining.from_pretrained(case.convert(folder, **options)).train()


def train(case, model, rank=0, parallel=None):
    """Every tensor of the case that the steps of one process give, by its official name."""
    config, actual = case.manifest["config"], {}
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config["lr"],
        momentum=config["sgd_momentum"],
        weight_decay=config["weight_decay"],
    )
    rows = slice(rank * config["batch"], (rank + 1) * config["batch"])
    images = case.inputs["images"][rows].to(model.dtype)
    for step in range(1, config["steps"] + 1):
        output = (parallel or model)(images, shuffle_index=case.inputs["shuffle"][step - 1])
        actual |= {f"rank{rank}.step{step}.{name}": output[ours] for name, ours in OUTPUTS.items() if ours in output}
        optimizer.zero_grad()
        output.loss.backward()
        if step == 1:
            learned = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            for name, gradient in KEY_MAP.to_official(learned).items():
                actual |= {f"grad/{name}": gradient, f"gradnorm/{name}": gradient.norm()}
        optimizer.step()
        for name, tensor in KEY_MAP.to_official(model.state_dict()).items():
            actual |= {f"{owner}after_step{step}/{name}": tensor.clone() for owner in ("", f"rank{rank}.")}
    return {name: tensor.detach() for name, tensor in actual.items() if name in case.outputs}


def refusals(model, images, rank):
    """Messages of the errors that every process must raise, and raise alike."""
    bad = {
        "unequal batches": (images[: 3 - rank], None),
        "short permutation": (images[:3], torch.arange(3)),
        "repeated row": (images[:3], torch.tensor([0, 1, 2, 3, 4, 4])),
        "queue": (images[:5], None),
    }
    messages = {}
    for name, (views, shuffle_index) in bad.items():
        try:
            model(views, shuffle_index=shuffle_index)
        except ValueError as error:
            messages[name] = str(error)
    return messages


def train_without_dense_loss(case, model, rank):
    """Two steps under DDP, which waits for a gradient of every parameter, also of the idle head."""
    model.config.loss_lambda = 0
    model.zero_grad()
    train(case, model, rank, nn.parallel.DistributedDataParallel(model))
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in model.encoder.dense_head.parameters())
    model.config.loss_lambda = 0.5


def main():
    """Trains in one of several processes; DDP is told nothing about buffers."""
    case, folder = load_case("densecl", sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    model = load_model(case, folder / f"converted{rank}")  # before: together only the first process would write
    dist.init_process_group("gloo")
    actual = train(case, model, rank, nn.parallel.DistributedDataParallel(model))
    model.check_queues()
    save_file({name: tensor.contiguous() for name, tensor in actual.items()}, folder / f"rank{rank}.safetensors")
    messages = refusals(model, case.inputs["images"], rank)
    train_without_dense_loss(case, model, rank)
    drawn = model(case.inputs["images"][: case.manifest["config"]["batch"]])  # the same images, shuffled by rank 0
    assert torch.isfinite(drawn.loss)
    model.check_queues()
    (folder / f"rank{rank}.json").write_text(json.dumps(messages))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
