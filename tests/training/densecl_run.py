"""A tiny DenseCL run, alone or as one of several processes: `python densecl_run.py OUTPUT --trainer stock|hub`.

Every process writes its state to `OUTPUT/rankR.safetensors`, and at its very end an empty `OUTPUT/rankR.left` if it
has left the process group.
"""

import argparse
import atexit
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.modeling.densecl import DenseCLConfig, DenseCLForPreTraining
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments, set_seed

from hubmodels.training import HubTrainer, HubTrainingArguments
from hubmodels.training.process_group import leave_process_group

BATCH = 4


class Views(torch.utils.data.Dataset):
    """Two noisy views of 32 images; a function of the index only."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 32, 32, generator=generator)
        return {"pixel_values": image + 0.2 * torch.randn(2, 3, 32, 32, generator=generator)}


def collate(samples):
    return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}


def model():
    """The same model at every call; the steps of its warm-up tell how often the momentum encoder has moved."""
    set_seed(0)
    return DenseCLForPreTraining(
        DenseCLConfig(
            layer_type="basic",
            num_stages=2,
            depths=[1, 1],
            strides=[1, 2],
            dilations=[1, 1],
            embedding_size=4,
            projection_hidden_size=8,
            projection_size=6,
            queue_length=24,
            momentum=0.9,
            loss_lambda_warmup_steps=1,
        )
    )


def trainer(kind: str, output: Path, **overrides):
    values = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH,
        "max_steps": 3,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": True,
        "report_to": "none",
        "seed": 3,
    }
    if kind == "stock":
        arguments = TrainingArguments(**{**values, "optim": "sgd", **overrides})
        return Trainer(model(), arguments, train_dataset=Views(), data_collator=collate)
    sgd = {"optimizer": "sgd", "weight_decay": 1e-4, "decay_vectors": True, "lr_by_epoch": True}
    arguments = HubTrainingArguments(**{**values, **sgd, **overrides})
    return HubTrainer(model(), arguments, train_dataset=Views(), data_collator=collate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--trainer", choices=("stock", "hub"), required=True)
    parser.add_argument("--overrides", default="{}", help="arguments of the trainer, JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    left = options.output / f"rank{os.environ.get('RANK', 0)}.left"
    atexit.register(lambda: None if dist.is_initialized() else left.touch())
    run = trainer(options.trainer, options.output, **json.loads(options.overrides))
    if run.args.process_index:
        with torch.no_grad():
            run.model.queue.add_(1)  # a process that was seeded otherwise
    run.train()
    run.model.check_queues()
    state = {name: tensor.contiguous() for name, tensor in run.model.state_dict().items()}
    save_file(state, options.output / f"rank{run.args.process_index}.safetensors")
    (options.output / f"rank{run.args.process_index}.json").write_text(json.dumps(run.state.log_history))
    if options.trainer == "stock":
        leave_process_group()  # HubTrainer does it by itself


if __name__ == "__main__":
    main()
