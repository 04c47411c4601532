"""Co-training in one of several processes, for `test_sanm_ranks.py`: `sanm_ranks.py OUT`, under torchrun."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification
from transformers import set_seed

from hubmodels.data import EvalTransform, load_image_dataset
from hubmodels.evaluation.sample_predictions import predict_samples
from hubmodels.training import HubTrainingArguments
from hubmodels.training.cotraining_data import CoTrainingViews
from hubmodels.training.cotraining_step import CoTrainingSettings
from hubmodels.training.sanm_trainer import SANMTrainer


def run(out: Path, processes: int) -> SANMTrainer:
    """Trains two tiny networks on 61 images (which two processes cannot share evenly)."""
    torch.set_num_threads(1)
    set_seed(0)
    images = load_image_dataset("fashion-mnist-small", "train").subset(61)
    config = SANMConfig(widths=[2, 4], depths=[1, 1], image_size=28, num_labels=10, num_channels=1)
    evaluation = EvalTransform(28, crop_fraction=1.0, num_channels=1)
    arguments = HubTrainingArguments(
        str(out),
        num_train_epochs=3,
        per_device_train_batch_size=8 // processes,
        learning_rate=0.02,
        optimizer="momentum",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        dataloader_pin_memory=False,
        seed=3,
    )
    settings = CoTrainingSettings(warm_up_epochs=1, min_labelled=8)
    views = CoTrainingViews.for_mixing("all", evaluation, 28, num_channels=1)
    trainer = SANMTrainer(
        SANMEnsembleForImageClassification(config), arguments, settings, views, save_every=0, train_dataset=images
    )
    trainer.train()
    return trainer


def main(out: Path) -> None:
    """Trains and saves what this process ended with."""
    dist.init_process_group("gloo")
    trainer = run(out / "run", dist.get_world_size())
    predictions = predict_samples(trainer.networks, trainer.train_dataset, trainer.views.evaluation)
    state = {
        "weights": trainer.model.state_dict(),
        "clean_prob": trainer.progress.clean_prob,
        "losses": predictions.losses,
        "steps": trainer.state.global_step,
        "momenta": [entry["momentum_buffer"] for entry in trainer.optimizer.state.values()],
    }
    torch.save(state, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
