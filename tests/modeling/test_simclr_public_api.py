"""SimCLR where users meet it: Auto classes, pipelines, plain `transformers.Trainer`."""

import pytest
import torch
from hubmodels.modeling.simclr import (
    SimCLRBackbone,
    SimCLRConfig,
    SimCLRForImageClassification,
    SimCLRForPreTraining,
    SimCLRImageProcessor,
    SimCLRModel,
)
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hubmodels
from tests.modeling.tiny_simclr import images, perturbed, tiny_config


@pytest.fixture
def folder(tmp_path):
    """A tiny pre-trained model with its processor."""
    perturbed(SimCLRForPreTraining(tiny_config())).save_pretrained(tmp_path / "pretrained")
    SimCLRImageProcessor(size=16, crop_proportion=0.875).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.fixture
def picture():
    return Image.effect_noise((40, 30), 60).convert("RGB")


@pytest.mark.parametrize(
    "auto_class, model_class",
    [
        (AutoModel, SimCLRModel),
        (AutoModelForPreTraining, SimCLRForPreTraining),
        (AutoModelForImageClassification, SimCLRForImageClassification),
    ],
    ids=lambda value: value.__name__,
)
def test_auto_classes_make_our_models(folder, auto_class, model_class):
    assert type(auto_class.from_pretrained(folder)) is model_class
    assert type(auto_class.from_config(tiny_config())) is model_class
    assert type(AutoConfig.from_pretrained(folder)) is SimCLRConfig
    assert type(AutoImageProcessor.from_pretrained(folder)) is SimCLRImageProcessor
    assert getattr(hubmodels, model_class.__name__) is model_class


def test_auto_backbone_makes_ours():
    assert type(AutoBackbone.from_config(tiny_config(out_features=["stage1"]))) is SimCLRBackbone


def test_configuration_survives_saving(tmp_path):
    config = tiny_config(resnet_depth=None, sk_ratio=0.0625, image_size=(24, 40), out_indices=[1, 3], num_labels=4)
    config.save_pretrained(tmp_path)
    again = SimCLRConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.image_size == (24, 40) and again.out_features == ["stage1", "stage3"]
    changed = SimCLRConfig.from_pretrained(tmp_path, temperature=0.5, out_features=["stem"])
    assert changed.temperature == 0.5 and changed.out_indices == [0]


def test_running_variance_survives_saving_and_follows_global_bn(tmp_path):
    """Also where the file names the one that is the default with global statistics."""
    for stored, local in ((None, "unbiased"), ("biased", "unbiased"), ("unbiased", "unbiased")):
        tiny_config(bn_running_var=stored).save_pretrained(tmp_path)
        assert SimCLRConfig.from_pretrained(tmp_path).bn_running_var == stored
        assert SimCLRConfig.from_pretrained(tmp_path, global_bn=False).running_variance == local
    changes = {"global_bn": False, "bn_running_var": "biased"}
    assert SimCLRConfig.from_pretrained(tmp_path, **changes).running_variance == "biased"
    tiny_config(**changes).save_pretrained(tmp_path)
    assert SimCLRConfig.from_pretrained(tmp_path).running_variance == "biased"


def test_image_classification_pipeline(folder, picture, tmp_path):
    classes = {0: "cat", 1: "dog", 2: "bird"}
    model = SimCLRForImageClassification.from_pretrained(folder, id2label=classes)
    perturbed(model).save_pretrained(tmp_path / "classifier")
    processor = SimCLRImageProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "classifier")
    results = pipeline("image-classification", model=str(tmp_path / "classifier"))(picture, top_k=3)
    with torch.no_grad():
        logits = model.eval()(**processor(picture, return_tensors="pt")).logits[0]
    expected = dict(zip(classes.values(), logits.softmax(dim=0).tolist(), strict=True))
    assert {result["label"]: result["score"] for result in results} == pytest.approx(expected, abs=1e-5)


def test_image_feature_extraction_pipeline(folder, picture):
    features = torch.tensor(pipeline("image-feature-extraction", model=str(folder))(picture, pool=True))
    pixels = SimCLRImageProcessor.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = SimCLRModel.from_pretrained(folder).eval()(pixels).pooler_output
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def arguments(folder, **settings):
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=0.02,
        max_steps=12,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_drop_last=True,
        **settings,
    )


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_plain_trainer_pre_trains(tmp_path):
    """With evaluation; `label_names=[]` says that the loss needs none. The last batch, of one image, is dropped."""
    base = images(17)
    data = [{"pixel_values": torch.stack([image, 0.9 * image])} for image in base]
    model = SimCLRForPreTraining(tiny_config(temperature=0.5))
    trainer = Trainer(model, arguments(tmp_path, label_names=[]), train_dataset=data, eval_dataset=data)
    losses = losses_of(trainer)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_loss"] < 2 * torch.tensor(15.0).log()


def test_plain_trainer_fine_tunes(folder, tmp_path):
    """From a pre-trained folder; colours tell the classes."""
    torch.manual_seed(0)
    labels = torch.arange(16) % 2
    pixels = 0.3 * images(16)
    pixels[range(16), labels] += 0.7
    data = [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]
    model = SimCLRForImageClassification.from_pretrained(folder, num_labels=2)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data)
    losses = losses_of(trainer)
    assert losses[-1] < 0.5 * losses[0]
    predictions = trainer.predict(data).predictions
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    assert (torch.from_numpy(logits).argmax(dim=1) == labels).float().mean() > 0.9
