"""A tiny pre-training run on generated images: shared by the trainer tests, and a script that can be killed.

Run as a script it trains (or resumes) and prints nothing: `python -m tests.training.tiny_run OUTPUT [--overrides JSON]`
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from hubmodels.modeling.mae import MAEForImageClassification, MAEForPreTraining
from transformers import set_seed

from hubmodels.training import HubTrainer, HubTrainingArguments
from tests.modeling.tiny_mae import tiny_config

CLASSES = 3


class Blobs(torch.utils.data.Dataset):
    """Images with one bright column whose place is the class; a function of the index only."""

    def __init__(self, size: int = 48):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError(index)
        image = np.random.default_rng(index).normal(0, 0.3, (3, 16, 16)).astype(np.float32)
        image[:, :, 5 * (index % CLASSES) : 5 * (index % CLASSES) + 4] += 2
        return {"image": torch.from_numpy(image), "label": index % CLASSES, "index": index}


class NoiseCollator:
    """Batches with masking noise that depends on seed, epoch and sample only."""

    def __init__(self, labels: bool = False, noise: bool = True, dtype: torch.dtype = torch.float32):
        self.labels = labels
        self.noise = noise
        self.dtype = dtype
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __call__(self, samples):
        batch = {"pixel_values": torch.stack([sample["image"] for sample in samples]).to(self.dtype)}
        if self.labels:
            batch["labels"] = torch.tensor([sample["label"] for sample in samples])
        if self.noise:
            rows = [np.random.default_rng([7, self.epoch, s["index"]]).random(16, np.float32) for s in samples]
            batch["noise"] = torch.from_numpy(np.stack(rows))
        return batch


def tiny_pretraining_model(seed: int = 0) -> MAEForPreTraining:
    set_seed(seed)
    return MAEForPreTraining(tiny_config())


def tiny_classifier(seed: int = 0, **config) -> MAEForImageClassification:
    set_seed(seed)
    return MAEForImageClassification(tiny_config(num_labels=CLASSES, classifier_init_std=0.02, **config))


def arguments(output: Path, **overrides) -> HubTrainingArguments:
    values = {
        "output_dir": str(output),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 0.5,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "seed": 3,
    }
    return HubTrainingArguments(**{**values, **overrides})


def trainer(output: Path, model=None, collator=None, size: int = 48, callbacks=None, **overrides) -> HubTrainer:
    return HubTrainer(
        model or tiny_pretraining_model(),
        arguments(output, **overrides),
        train_dataset=Blobs(size),
        eval_dataset=Blobs(12),
        data_collator=collator or NoiseCollator(),
        callbacks=callbacks,
    )


def trainer_of_dtype(output: Path, dtype: torch.dtype, **overrides) -> HubTrainer:
    return trainer(output, tiny_pretraining_model().to(dtype), NoiseCollator(dtype=dtype), **overrides)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--overrides", default="{}", help="arguments of the trainer, JSON")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = trainer_of_dtype(options.output, getattr(torch, options.dtype), **json.loads(options.overrides))
    run.train(resume_from_checkpoint=run.can_resume())
    if run.is_world_process_zero():
        run.model.save_pretrained(options.output / "final")


if __name__ == "__main__":
    main()
