"""One contender of `benchmarks.positional_label_step`: runs the steps that it is asked for, and times them.

python -m benchmarks.positional_label_step_worker BATCH [LABEL ANCHORS]
"""

import sys

import torch
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.contender import serve, start_of_memory

THREADS = 2
CLASSES = 1000


def main() -> None:
    """Serves steps until standard input ends."""
    batch = int(sys.argv[1])
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=CLASSES)).train()
    if len(sys.argv) > 2:
        from hubmodels.modeling.positional_label import PositionalLabelForImageClassification

        anchors = int(sys.argv[3]) or None
        model = PositionalLabelForImageClassification.wrap(model, position_label=sys.argv[2], num_anchors=anchors)
    pixels, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    before = start_of_memory()

    def step() -> float:
        loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    serve(step, before, loss=step())


if __name__ == "__main__":
    main()
