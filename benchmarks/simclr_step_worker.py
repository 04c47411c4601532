"""One contender of `benchmarks.simclr_step`: reads a number of steps per line, runs them, answers with the seconds.

python -m benchmarks.simclr_step_worker CONTENDER CASE BATCH INPUT

INPUT is "views" (a batch of augmented views, the same in every step) or "images" (a data loader without workers, which
augments decoded images in every step).
"""

import sys
from itertools import cycle
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.contender import serve, start_of_memory
from benchmarks.torchvision_names import torchvision_state

THREADS = 2
TEMPERATURE = 0.5
LEARNING_RATE, WEIGHT_DECAY = 0.1, 1e-6


class Case(NamedTuple):
    """A network and its images."""

    network: str
    size: int
    width: int
    strength: float
    blur: bool


# CIFAR's and STL-10's sizes; colours and blur as published for CIFAR and for ImageNet.
CASES = {
    "resnet18": Case("resnet18", size=32, width=512, strength=0.5, blur=False),
    "resnet50": Case("resnet50", size=96, width=2048, strength=1.0, blur=True),
}


class Images(Dataset):
    """Decoded random images, as the contender's users have them; `transform` makes an item of an uint8 image."""

    def __init__(self, number: int, size: int, transform):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)
        self.items, self.transform = list(images), transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.transform(self.items[index], index)


def reference_model(case: Case):
    """The weights both contenders start from."""
    from hubmodels.modeling.simclr import SimCLRConfig, SimCLRForPreTraining

    torch.manual_seed(0)
    config = SimCLRConfig(
        resnet_depth=int(case.network.removeprefix("resnet")),
        image_size=case.size,
        pool_padding="torch",  # that of torchvision; the official weights need another
        num_proj_layers=2,
        temperature=TEMPERATURE,
        loss_reduction="mean",  # lightly's; the official one is twice that
    )
    return SimCLRForPreTraining(config).train()


class Ours:
    """hubmodels: the model, its image processor in the collator of the trainer, and its LARS."""

    def __init__(self, case: Case):
        from hubmodels.training import LARS

        self.case, self.module = case, reference_model(case)
        self.optimizer = LARS(
            self.module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, momentum_style="classic"
        )

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """NT-Xent of a batch."""
        return self.module(**batch).loss

    def batch(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views `[B, 2, 3, S, S]` as the collator returns them."""
        return {"pixel_values": views}

    def loader(self, batch: int) -> DataLoader:
        """Augmented batches."""
        from hubmodels.modeling.simclr import SimCLRImageProcessor

        from hubmodels.training.methods.contrastive import ViewsCollator

        case = self.case
        processor = SimCLRImageProcessor(size=case.size, strength=case.strength, do_blur=case.blur)
        images = Images(4 * batch, case.size, lambda image, index: {"image": image, "index": index})
        return DataLoader(images, batch, shuffle=True, collate_fn=ViewsCollator(processor, seed=0, train=True))


class Lightly:
    """lightly: its head, loss, LARS and transform around a torchvision ResNet, as in its ImageNet example."""

    def __init__(self, case: Case):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.models.utils import get_weight_decay_parameters
        from lightly.utils.lars import LARS

        self.case, self.criterion = case, NTXentLoss(temperature=TEMPERATURE)
        self.backbone = torchvision_backbone(case)
        self.head = SimCLRProjectionHead(case.width, case.width, 128)
        self.module = nn.ModuleList([self.backbone, self.head]).train()
        self._load(reference_model(case))
        decayed, others = get_weight_decay_parameters([self.backbone, self.head])
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = LARS(groups, lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)

    def _load(self, model) -> None:
        self.backbone.load_state_dict(torchvision_state(model.backbone.state_dict()))
        linears = [module for module in self.head.modules() if isinstance(module, nn.Linear)]
        norms = [module for module in self.head.modules() if isinstance(module, nn.BatchNorm1d)]
        for layer, linear, norm in zip(model.projection_head.layers, linears, norms, strict=True):
            linear.load_state_dict(layer.dense.state_dict())
            # Its last normalisation has a shift, which starts at zero; the official one has none.
            norm.load_state_dict(layer.normalization.state_dict(), strict=layer.normalization.bias is not None)

    def loss(self, views: list[torch.Tensor]) -> torch.Tensor:
        """NT-Xent of a batch; both views pass the encoder together."""
        features = self.backbone(torch.cat(views)).flatten(start_dim=1)
        return self.criterion(*self.head(features).chunk(2))

    def batch(self, views: torch.Tensor) -> list[torch.Tensor]:
        """Views `[B, 2, 3, S, S]` as the default collation of the transform's views returns them."""
        return [view.contiguous() for view in views.unbind(dim=1)]

    def loader(self, batch: int) -> DataLoader:
        """Augmented batches."""
        from lightly.transforms import SimCLRTransform
        from torchvision.transforms.functional import to_pil_image

        case = self.case
        transform = SimCLRTransform(
            input_size=case.size,
            cj_strength=case.strength,
            gaussian_blur=0.5 if case.blur else 0.0,
            normalize=None,  # neither does ours
        )
        images = Images(4 * batch, case.size, lambda picture, index: transform(picture))
        images.items = [to_pil_image(image) for image in images.items]
        return DataLoader(images, batch, shuffle=True)


def torchvision_backbone(case: Case) -> nn.Module:
    """torchvision's ResNet without its classifier, with SimCLR's stem for small images and SimCLR's projections."""
    import torchvision

    network = getattr(torchvision.models, case.network)()
    network.fc = nn.Identity()
    if case.size <= 32:
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if case.network == "resnet18":
        # SimCLR projects in the first block of every group, also where the widths agree.
        network.layer1[0].downsample = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
    return network


CONTENDERS = {"hubmodels": Ours, "lightly": Lightly}


def main() -> None:
    """Serves steps until standard input ends."""
    contender, case, batch, source = CONTENDERS[sys.argv[1]], CASES[sys.argv[2]], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(THREADS)
    racer = contender(case)
    views = torch.rand(batch, 2, 3, case.size, case.size, generator=torch.Generator().manual_seed(1))
    batches = cycle([racer.batch(views)]) if source == "views" else forever(racer.loader(batch))
    before = start_of_memory()

    def step() -> float:
        loss = racer.loss(next(batches))
        loss.backward()
        racer.optimizer.step()
        racer.optimizer.zero_grad()
        return loss.item()

    first = step()
    serve(step, before, loss=first)


def forever(loader: DataLoader):
    """Epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
