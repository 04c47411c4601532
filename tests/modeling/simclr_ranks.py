"""What one process computes for `test_simclr_ranks.py`: `simclr_ranks.py FOLDER`, under torchrun."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.modeling.simclr import SimCLRForImageClassification, SimCLRForPreTraining
from torch.nn.parallel import DistributedDataParallel
from transformers import Dinov2Config, ResNetConfig, TimmBackboneConfig

from tests.modeling.tiny_simclr import images, perturbed, tiny_config

IMAGES = 6
LABELS = torch.arange(IMAGES) % 3
VIT = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
CASES = {
    "plain": {},
    "selective": {"sk_ratio": 0.0625, "proj_head_mode": "linear"},
    "probe": {"linear_probe": True, "num_labels": 3, "weight_decay": 0.1, "loss_reduction": "mean"},
    "resnet": {"backbone_config": ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1])},
    "timm_with_activations": {"backbone_config": TimmBackboneConfig(backbone="test_efficientnet")},
    "vit_in_chunks": {"backbone_config": VIT, "encoder_chunk_size": 2},
    "finetune": {"num_labels": 3},
    "finetune_selector": {"num_labels": 3, "ft_proj_selector": 1, "fine_tune_after_block": 1},
}


def step(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """The state after a step of one of `world` processes on its share of the images, and its loss."""
    torch.manual_seed(0)
    finetunes = name.startswith("finetune")
    model_class = SimCLRForImageClassification if finetunes else SimCLRForPreTraining
    model = perturbed(model_class(tiny_config(**CASES[name]))).double().train()
    share = slice(rank * IMAGES // world, (rank + 1) * IMAGES // world)
    pixels = images(IMAGES, *(() if finetunes else (2,)), dtype=torch.float64)[share]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    # The mask token of the ViT is never used.
    unused = "backbone_config" in CASES[name]
    wrapped = DistributedDataParallel(model, find_unused_parameters=unused) if world > 1 else model
    loss = wrapped(pixels, labels=LABELS[share]).loss
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach(), **model.state_dict()}


def main(folder: Path) -> None:
    """Runs all cases in a group of processes and saves what they gave."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.save({name: step(name, rank, world) for name in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
