"""The official procedure of SANM's CIFAR script, written down for races: image by image, network by network."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.mixture import GaussianMixture
from torchvision import transforms

try:
    import cv2
except ImportError:  # the bench extra has it
    cv2 = None

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)
GRID = 4


def resized(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's linear resizing, or the same in numpy where it is not installed."""
    if cv2 is not None:
        return cv2.resize(heat, (size[1], size[0]))
    return _linear(_linear(heat, size[1]).T, size[0]).T


def _linear(values: np.ndarray, length: int) -> np.ndarray:
    old = values.shape[-1]
    position = (np.arange(length) + 0.5) * (old / length) - 0.5
    start = np.floor(position).astype(np.int64)
    weight = np.where((start < 0) | (start >= old - 1), 0, (position - start).astype(np.float32)).astype(np.float64)
    start = start.clip(0, old - 1)
    slope = values[..., np.minimum(start + 1, old - 1)] - values[..., start]
    return (values[..., start] + slope * weight).astype(np.float32)


def masked_views(images, maps, trust, targets, draws=None):
    """Both masked views and the masked targets, in a loop over images.

    Args:
        images: [N, 3, H, W].
        maps: [N, D, h, w].
        trust: [N].
        targets: [N, K].
        draws: [N, 8]; drawn one by one where it is None.
    """
    height, width = images.shape[-2:]
    energy = F.normalize((maps**2).sum(1).flatten(1), dim=1).view(len(maps), *maps.shape[-2:])
    most, least, masked_targets = images.clone(), images.clone(), targets.clone()
    for n in range(len(images)):
        heat = energy[n].cpu().numpy()
        heat = resized(heat, (height, width))
        heat = np.uint8(255 * (heat - heat.min()) / (heat.max() - heat.min() + 1e-12))
        row = [random.uniform(0.02, 0.07), random.uniform(0.8, 1.25)] if draws is None else draws[n].tolist()
        fills = [random.uniform(0, 1) for _ in range(6)] if draws is None else row[2:]
        ratio = row[0] + 0.03 * (1 - trust[n].item())
        area = 0.5 * ratio * height * width
        box_height, box_width = round((area * row[1]) ** 0.5), round((area / row[1]) ** 0.5)
        for view, place, colours in ((most, heat.argmax(), fills[:3]), (least, heat.argmin(), fills[3:])):
            top, left = np.unravel_index(place, heat.shape)
            top, left = min(top, height - box_height), min(left, width - box_width)
            for channel in range(3):
                view[n, channel, top : top + box_height, left : left + box_width] = colours[channel]
        largest = masked_targets[n].argmax().item()
        for k in range(targets.shape[1]):
            if k == largest:
                masked_targets[n, k] -= ratio
            else:
                masked_targets[n, k] += ratio / (targets.shape[1] - 1)
    return most, least, masked_targets


class OfficialViews:
    """Eight views of an image, of which the first two are not used: PIL and torchvision, image by image."""

    def __init__(self):
        from hubmodels.data.noisy_label_views import _strongly_augmented

        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        policy = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, fill=(128, 128, 128))
        self.plain = transforms.Compose([*crop, *end])
        self.weak = transforms.Compose([*crop, policy, *end])
        strong = transforms.Lambda(lambda picture: _strongly_augmented(picture, np.random.rand(10)))
        self.strong = transforms.Compose([*crop, strong, *end])

    def __call__(self, images: np.ndarray) -> list[torch.Tensor]:
        """The views of a batch, [8] x [B, 3, 32, 32]."""
        kinds = (self.plain, self.plain, self.weak, self.weak, self.strong, self.strong, self.weak, self.weak)
        rows = [[view(Image.fromarray(image)) for view in kinds] for image in images]
        return [torch.stack(column) for column in zip(*rows, strict=True)]


def clean_probabilities(network, images: np.ndarray, labels: torch.Tensor) -> np.ndarray:
    """Label quality of one network: a pass over the data, scikit-learn's mixture."""
    end = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    network.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, len(images), 320):  # five times the batch, as the script
            batch = torch.stack([end(Image.fromarray(image)) for image in images[start : start + 320]])
            scores = network(batch).logits
            losses.append(F.cross_entropy(scores, labels[start : start + 320], reduction="none"))
    losses = torch.cat(losses)
    losses = ((losses - losses.min()) / (losses.max() - losses.min())).view(-1, 1).numpy()
    mixture = GaussianMixture(n_components=2, max_iter=10, tol=1e-2, reg_covar=5e-4).fit(losses)
    return mixture.predict_proba(losses)[:, mixture.means_.argmin()]


def train_epoch(network, peer, optimizer, images, labels, trust, batch, epoch, views):
    """One semi-supervised epoch of one network (settings of the CIFAR script, lambda_u 25, warm-up 10)."""
    labelled, unlabelled = (np.random.permutation(np.flatnonzero(mask)) for mask in (trust > 0.5, trust <= 0.5))
    network.train()
    peer.eval()
    steps = -(-len(labelled) // batch)
    for step in range(steps):
        x = labelled[step * batch : (step + 1) * batch]
        u = np.take(unlabelled, np.arange(step * batch, (step + 1) * batch), mode="wrap")
        of_x, of_u = views(images[x]), views(images[u])
        weight = torch.from_numpy(trust[x]).float().view(-1, 1)
        with torch.no_grad():
            first = network(of_u[6])
            guesses = [first.logits, network(of_u[7]).logits, peer(of_u[6]).logits, peer(of_u[7]).logits]
            guess = sum(scores.softmax(1) for scores in guesses) / 4
            targets_u = guess**2 / (guess**2).sum(1, keepdim=True)
            second = network(of_x[6])
            guess = (second.logits.softmax(1) + network(of_x[7]).logits.softmax(1)) / 2
            guess = weight * F.one_hot(labels[x], 10) + (1 - weight) * guess
            targets_x = guess**2 / (guess**2).sum(1, keepdim=True)
        both = torch.cat([of_x[6], of_u[6]])
        maps, targets = (
            torch.cat([second.last_hidden_state, first.last_hidden_state]),
            torch.cat([targets_x, targets_u]),
        )
        most, least, masked = masked_views(both, maps, torch.from_numpy(np.concatenate([trust[x], trust[u]])), targets)
        restored = network(torch.cat([most, least]), output_reconstruction=True).reconstruction
        error = F.mse_loss(restored[: len(both)], both) + F.mse_loss(restored[len(both) :], both)
        count = len(x)
        blocks = [*of_x[2:6], most[:count], least[:count], *of_u[2:6], most[count:], least[count:]]
        soft = [targets_x] * 4 + [masked[:count]] * 2 + [targets_u] * 4 + [masked[count:]] * 2
        inputs, soft = torch.cat(blocks), torch.cat(soft)
        share = np.random.beta(4, 4)
        share, order = max(share, 1 - share), torch.randperm(len(inputs))
        scores = network(share * inputs + (1 - share) * inputs[order]).logits
        soft = share * soft + (1 - share) * soft[order]
        rows = 6 * count
        loss_x = -(scores[:rows].log_softmax(1) * soft[:rows]).sum(1).mean()
        loss_u = (scores[rows:].softmax(1) - soft[rows:]).square().mean()
        mean = scores.softmax(1).mean(0)
        ramp = 25 * min(max((epoch + step / steps - 10) / 16, 0), 1)
        loss = loss_x + ramp * loss_u + (0.1 * torch.log(0.1 / mean)).sum() + 0.02 * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
