"""One contender of `benchmarks.densecl_step`: reads a number of steps per line, runs them, answers with the seconds.

python -m benchmarks.densecl_step_worker CONTENDER BATCH QUEUE
"""

import copy
import sys

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from benchmarks.contender import serve, start_of_memory

THREADS = 2
SIZE = 224
TEMPERATURE, MOMENTUM, LOSS_LAMBDA = 0.2, 0.999, 0.5
# Published; a rate of 0.03 for the batch of 256 is far less for that of a race.
SGD = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}


def reference_model(queue_length: int, loss_lambda: float = LOSS_LAMBDA):
    """The weights all contenders start from."""
    from hubmodels.modeling.densecl import DenseCLConfig, DenseCLForPreTraining

    torch.manual_seed(0)
    config = DenseCLConfig(
        queue_length=queue_length, temperature=TEMPERATURE, momentum=MOMENTUM, loss_lambda=loss_lambda
    )
    return DenseCLForPreTraining(config).train()


class Ours(nn.Module):
    """hubmodels' DenseCL, or MoCo-v2 in the same code."""

    def __init__(self, queue_length: int, loss_lambda: float):
        super().__init__()
        self.model = reference_model(queue_length, loss_lambda)

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and its unweighted global part."""
        output = self.model(views)
        return output.loss, output.loss_global


class Neck(nn.Module):
    """The two projection heads under their official names."""

    def __init__(self, channels: int = 2048, hidden: int = 2048, size: int = 128):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, size))
        self.mlp2 = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, size, 1))

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Global embedding `[B, D]`, dense ones `[B, D, L]` and their mean `[B, D]`."""
        dense = self.mlp2(feature_map)
        pooled = F.adaptive_avg_pool2d(dense, 1).flatten(1)
        return self.mlp(F.adaptive_avg_pool2d(feature_map, 1).flatten(1)), dense.flatten(2), pooled


class FeatureMap(torchvision.models.ResNet):
    """torchvision's ResNet-50 up to its last map."""

    def __init__(self):
        super().__init__(torchvision.models.resnet.Bottleneck, [3, 4, 6, 3])
        del self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W] -> [B, 2048, H / 32, W / 32]`."""
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(hidden))))


class Plain(nn.Module):
    """
    The arithmetic of the official step on one process, written down as it stands: queues are cloned, all logits are
    stored and concatenated, the similarity of the matching is computed with autograd, parameters are averaged one by
    one. The images are not shuffled, which one process does not need.
    """

    def __init__(self, queue_length: int):
        super().__init__()
        from hubmodels.conversion.densecl_names import official_state

        self.encoder_q = nn.ModuleList([FeatureMap(), Neck()])
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        for name in ("queue", "queue2"):
            self.register_buffer(name, torch.empty(128, queue_length))
            self.register_buffer(f"{name}_ptr", torch.zeros(1, dtype=torch.long))
        state = official_state(reference_model(queue_length))
        self.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("backbone.")})

    @staticmethod
    def encode(encoder: nn.ModuleList, images: torch.Tensor) -> list[torch.Tensor]:
        """Normalised: global embedding, dense embeddings, their normalised mean, features of the backbone."""
        feature_map = encoder[0](images)
        return [F.normalize(part, dim=1) for part in (*encoder[1](feature_map), feature_map.flatten(2))]

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Moves the key encoder."""
        for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            key.data = key.data * MOMENTUM + query.data * (1 - MOMENTUM)

    @torch.no_grad()
    def enqueue(self, name: str, keys: torch.Tensor) -> None:
        """Writes keys over the oldest ones."""
        queue, pointer = getattr(self, name), getattr(self, f"{name}_ptr")
        start = int(pointer)
        queue[:, start : start + len(keys)] = keys.T
        pointer[0] = (start + len(keys)) % queue.shape[1]

    @staticmethod
    def contrast(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        """Cross entropy of `[N, 1]` against `[N, K]`."""
        logits = torch.cat((positive, negative), dim=1)
        logits /= TEMPERATURE
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and its unweighted global part."""
        query, query_grid, _, query_features = self.encode(self.encoder_q, views[:, 0])
        with torch.no_grad():
            self.update_key_encoder()
            key, key_grid, key_pooled, key_features = self.encode(self.encoder_k, views[:, 1])
        positive = torch.einsum("nc,nc->n", query, key).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", query, self.queue.clone().detach())
        match = torch.matmul(query_features.permute(0, 2, 1), key_features).max(dim=2)[1]
        matched = torch.gather(key_grid, 2, match.unsqueeze(1).expand(-1, key_grid.shape[1], -1))
        dense_positive = (query_grid * matched).sum(dim=1).view(-1, 1)
        dense_query = query_grid.permute(0, 2, 1).reshape(-1, query_grid.shape[1])
        dense_negative = torch.einsum("nc,ck->nk", dense_query, self.queue2.clone().detach())
        loss_global = self.contrast(positive, negative)
        loss_dense = self.contrast(dense_positive, dense_negative)
        self.enqueue("queue", key)
        self.enqueue("queue2", key_pooled)
        return (1 - LOSS_LAMBDA) * loss_global + LOSS_LAMBDA * loss_dense, loss_global


def build(contender: str, queue_length: int) -> nn.Module:
    """The module of a contender."""
    if contender == "official arithmetic":
        return Plain(queue_length).train()
    return Ours(queue_length, LOSS_LAMBDA if contender == "hubmodels" else 0.0)


def main() -> None:
    """Serves steps until standard input ends."""
    contender, batch, queue_length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(THREADS)
    module = build(contender, queue_length)
    views = torch.randn(batch, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, **SGD)
    before = start_of_memory()

    def step() -> tuple[float, float]:
        loss, loss_global = module(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), loss_global.item()

    first, first_global = step()
    step()
    serve(step, before, loss=first, loss_global=first_global)


if __name__ == "__main__":
    main()
