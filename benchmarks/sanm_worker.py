"""One contender of SANM's races: reads a number of steps per line, runs them, answers with the seconds.

python -m benchmarks.sanm_worker (masking CONTENDER IMAGES SIZE | epoch CONTENDER IMAGES WIDTH BATCH)
"""

import copy
import sys
import tempfile

import numpy as np
import torch

from benchmarks import sanm_official
from benchmarks.contender import serve, start_of_memory

EPOCH = 18
EPOCHS = 300  # of the whole run: in the last one the trainer would stop
RATE = 0.02


def masking_inputs(count: int, size: int):
    """Images, maps, trust, targets and draws, the same for all contenders."""
    from hubmodels.modeling.sanm import AdversarialNoisyMasking

    generator = torch.Generator().manual_seed(0)
    grid, channels = (4, 512) if size == 32 else (7, 2048)
    images = torch.randn(count, 3, size, size, generator=generator)
    maps = torch.randn(count, channels, grid, grid, generator=generator)
    trust = torch.rand(count, generator=generator)
    targets = torch.rand(count, 10, generator=generator).softmax(1)
    return images, maps, trust, targets, AdversarialNoisyMasking().draw(count, 3, generator=generator)


def masking_step(contender: str, count: int, size: int):
    """A step that masks a batch and returns views and targets."""
    from hubmodels.modeling.sanm import AdversarialNoisyMasking

    *batch, draws = masking_inputs(count, size)
    if contender == "two copies of the images alone":
        return lambda: (batch[0].clone(), batch[0].clone())
    if contender != "hubmodels":
        return lambda: sanm_official.masked_views(*batch, draws)
    masking = AdversarialNoisyMasking()

    def step():
        views = masking(*batch, draws=draws)
        return views.max_views, views.min_views, views.targets

    return step


def epoch_step(contender: str, count: int, width: int, batch: int):
    """A co-training epoch of both networks from the same weights: label quality, both networks, no test."""
    from hubmodels.modeling.sanm import SANMConfig, SANMEnsembleForImageClassification

    if contender != "hubmodels":
        from hubmodels.modeling.sanm import networks_sanm

        networks_sanm.CHANNELS_LAST_WIDTH = 1 << 30  # the official code keeps torch's own order
    torch.manual_seed(0)
    model = SANMEnsembleForImageClassification(SANMConfig(widths=[width * 2**i for i in range(4)], num_labels=10))
    weights = copy.deepcopy(model.state_dict())
    generator = np.random.default_rng(0)
    pixels, labels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, count)
    if contender == "hubmodels":
        trainer = our_trainer(model, pixels, labels, batch)

        def step():
            model.load_state_dict(weights)
            trainer._train_epoch(EPOCH, EPOCHS)
            if trainer.control.should_training_stop:
                raise RuntimeError("the trainer stopped inside the epoch")

        return step
    views, targets = sanm_official.OfficialViews(), torch.from_numpy(labels)
    networks = (model.net1, model.net2)
    optimizers = [torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=5e-4) for net in networks]

    def official_step():
        model.load_state_dict(weights)
        trust = [sanm_official.clean_probabilities(net, pixels, targets) for net in networks]
        for i in range(2):
            arguments = (networks[i], networks[1 - i], optimizers[i], pixels, targets, trust[1 - i])
            sanm_official.train_epoch(*arguments, batch, EPOCH, views)

    return official_step


def our_trainer(model, pixels: np.ndarray, labels: np.ndarray, batch: int):
    """The trainer, ready to train an epoch."""
    from hubmodels.data import EvalTransform
    from hubmodels.data.images import ImageDataset
    from hubmodels.data.sources import ArraySource
    from hubmodels.training import HubTrainingArguments
    from hubmodels.training.cotraining_data import CoTrainingViews
    from hubmodels.training.cotraining_step import CoTrainingSettings
    from hubmodels.training.sanm_trainer import SANMTrainer

    statistics = {"mean": list(sanm_official.MEAN), "std": list(sanm_official.STD)}
    evaluation = EvalTransform(32, crop_fraction=1.0, **statistics)
    source = ArraySource(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    arguments = HubTrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=batch,
        learning_rate=RATE,
        optimizer="momentum",
        weight_decay=5e-4,
        decay_vectors=True,
        jsonl_log=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        logging_steps=10**6,
        dataloader_pin_memory=False,
    )
    trainer = SANMTrainer(
        model,
        arguments,
        CoTrainingSettings(),
        CoTrainingViews.for_mixing("all", evaluation, 32, **statistics),
        save_every=0,
        train_dataset=ImageDataset(source, labels, [str(number) for number in range(10)]),
    )
    trainer.log = lambda *arguments: None
    trainer._begin(EPOCHS, None, None)
    return trainer


def main() -> None:
    """Serves the steps of one contender."""
    race, contender, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    step = {"masking": masking_step, "epoch": epoch_step}[race](contender, *map(int, numbers))
    step()
    serve(step, start_of_memory())


if __name__ == "__main__":
    main()
