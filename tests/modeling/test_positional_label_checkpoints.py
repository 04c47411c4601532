"""Positional Label from checkpoints whose classifier cannot be kept, or that have none."""

import pytest
import torch
from hubmodels.modeling.positional_label import (
    PositionalLabelConfig,
    PositionalLabelForImageClassification,
    PositionalLabelForPreTraining,
    PositionalLabelModel,
)
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tests.modeling.tiny_positional_label import MAE, TIMM_VIT, VIT, backbone_configs, images, tiny_classifier

ENCODERS = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "beit": BeitModel,
    "swin": SwinModel,
    "timm_vit": TimmWrapperModel,
    "clip": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "dinov3": DINOv3ViTModel,
}


def encoder_of(kind: str):
    """An encoder with random weights, also where initialisation leaves zeros."""
    others = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig, "dinov3": DINOv3ViTConfig}
    torch.manual_seed(0)
    model = ENCODERS[kind](others[kind](**VIT) if kind in others else backbone_configs()[kind])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    """Whether all weights of a backbone are those of another."""
    stored = theirs.state_dict()
    return all(torch.equal(weight, stored[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_encoders_load_with_a_new_classifier(kind, tmp_path):
    encoder = encoder_of(kind)
    encoder.save_pretrained(tmp_path)
    model, info = PositionalLabelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, position_label="relative", output_loading_info=True
    )
    assert model.config.pooling == "mean" and not model.training
    assert same_weights(model.backbone, encoder)
    heads = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert info["missing_keys"] == heads and {"classifier.weight", "position_head.fc1.weight"} < heads
    assert model(images(model)).logits.shape == (2, 7)
    features = PositionalLabelModel.from_pretrained(tmp_path)
    assert features.config.pooling == "mean" and same_weights(features.backbone, encoder)


def test_encoders_load_with_a_configuration(tmp_path):
    encoder = encoder_of("dinov2")
    encoder.save_pretrained(tmp_path)
    config = PositionalLabelConfig(backbone_config=backbone_configs()["dinov2"], pooling="cls", num_labels=3)
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path, config=config)
    assert model.config.pooling == "cls" and model.num_labels == 3 and same_weights(model.backbone, encoder)


def test_distilled_deit_loads_with_a_new_classifier(tmp_path):
    distilled = DeiTForImageClassificationWithTeacher(DeiTConfig(**VIT, num_labels=5))
    distilled.save_pretrained(tmp_path)
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path)
    assert model.num_labels == 5 and model.config.pooling == "mean" and model.view.num_prefix_tokens == 2
    assert same_weights(model.backbone, distilled.deit)
    assert same_weights(PositionalLabelModel.from_pretrained(tmp_path).backbone, distilled.deit)
    other = PositionalLabelForImageClassification.from_pretrained(tmp_path, num_labels=3, pooling="cls")
    assert other(images(other)).logits.shape == (2, 3)
    config = PositionalLabelConfig(backbone_config=DeiTConfig(**VIT), num_labels=3)
    assert PositionalLabelForImageClassification.from_pretrained(tmp_path, config=config).num_labels == 3


def test_distilled_deit_of_timm_loads_with_a_new_classifier(tmp_path):
    inner = TimmWrapperConfig(architecture="deit_tiny_distilled_patch16_224", model_args=TIMM_VIT)
    inner.num_labels = 4
    distilled = TimmWrapperForImageClassification(inner)
    distilled.save_pretrained(tmp_path)
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path)
    assert model.num_labels == 4 and same_weights(model.backbone, distilled)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_another_width_of_the_classifier_needs_a_new_one(pooling, tmp_path):
    inner = backbone_configs()["dinov2"]
    inner.num_labels = 4
    stock = AutoModelForImageClassification.from_config(inner)
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"pooling '{pooling}' gives .* 16 channels, .* reads 32; from_pretrained of"):
        PositionalLabelForImageClassification.from_pretrained(tmp_path, pooling=pooling)
    model = PositionalLabelForImageClassification.from_pretrained(
        tmp_path, pooling=pooling, ignore_mismatched_sizes=True
    )
    assert model.num_labels == 4 and same_weights(model.backbone, stock.dinov2)
    assert model(images(model)).logits.shape == (2, 4)
    assert same_weights(PositionalLabelModel.from_pretrained(tmp_path, pooling=pooling).backbone, stock.dinov2)


def test_of_clip_the_encoder_of_images_is_taken(tmp_path):
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    text |= {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(vision_config=VIT, text_config=text)).save_pretrained(tmp_path)
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert model.num_labels == 3 and model.config.backbone_config.model_type == "clip_vision_model"
    assert same_weights(model.backbone, CLIPVisionModel.from_pretrained(tmp_path))


def test_what_holds_an_encoder_is_saved_and_loads_again(tmp_path):
    encoder_of("clip").save_pretrained(tmp_path / "clip")
    model = PositionalLabelForImageClassification.from_pretrained(tmp_path / "clip", num_labels=3)
    model.save_pretrained(tmp_path / "own")
    again, info = PositionalLabelForImageClassification.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(again(images(again)).logits, model(images(model)).logits)
    model.save_backbone(tmp_path / "backbone")
    assert same_weights(AutoModel.from_pretrained(tmp_path / "backbone"), model.backbone)


@pytest.mark.parametrize("model_class", [PositionalLabelModel, PositionalLabelForImageClassification])
@pytest.mark.parametrize("source", ["stock", "own", "encoder"])
def test_outputs_asked_for_by_the_configuration(model_class, source, tmp_path):
    stock = ViTForImageClassification(ViTConfig(**VIT))
    saved = {"stock": stock, "own": PositionalLabelForImageClassification.wrap(stock), "encoder": stock.vit}[source]
    saved.save_pretrained(tmp_path / "saved")
    layers = stock.config.num_hidden_layers
    asked = {"attn_implementation": "eager", "output_hidden_states": True, "output_attentions": True}
    model = model_class.from_pretrained(tmp_path / "saved", **asked)
    pixels = images(model)
    output = model(pixels)
    assert (len(output.hidden_states), len(output.attentions)) == (layers + 1, layers)
    output = model(pixels, output_hidden_states=False, output_attentions=False)
    assert (output.hidden_states, output.attentions) == (None, None)
    model.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again", attn_implementation="eager")
    assert len(again(pixels).attentions) == layers


def test_sizes_of_the_backbone_are_refused(tmp_path):
    stock = ViTForImageClassification(ViTConfig(**VIT))
    stock.save_pretrained(tmp_path / "stock")
    PositionalLabelForImageClassification.wrap(stock).save_pretrained(tmp_path / "own")
    for source in ("stock", "own"):
        for name in ("image_size", "num_channels", "hidden_size"):
            with pytest.raises(ValueError, match=f"{name} is that of backbone_config and must be set there.*{name}=8"):
                PositionalLabelForImageClassification.from_pretrained(tmp_path / source, **{name: 8})
    with pytest.raises(ValueError, match=r"image_size is that of backbone_config"):
        PositionalLabelConfig(image_size=48)


def all_new(model, info, name: str) -> bool:
    """Whether no weight of a head comes from the file."""
    return info["missing_keys"] >= {f"{name}.{weight}" for weight in getattr(model, name).state_dict()}


LABELS = ("absolute", "relative", "both")
HEADS = ("position_head", "relative_position_head")


@pytest.mark.parametrize("way", ["argument", "configuration", "folder", "automatic"])
@pytest.mark.parametrize("wanted", LABELS)
@pytest.mark.parametrize("stored", LABELS)
def test_another_position_label_keeps_the_heads_of_its_kinds(stored, wanted, way, tmp_path):
    saved = tiny_classifier(position_label=stored)
    saved.save_pretrained(tmp_path / "own")
    settings = {"position_label": wanted}
    if way == "configuration":
        settings = {"config": PositionalLabelConfig.from_pretrained(tmp_path / "own", **settings)}
    elif way == "folder":
        PositionalLabelConfig.from_pretrained(tmp_path / "own", **settings).save_pretrained(tmp_path / "wanted")
        settings = {"config": str(tmp_path / "wanted"), "state_dict": None}
    else:
        settings |= {"return_dict": True, "attn_implementation": "eager"}
    loader = AutoModelForImageClassification if way == "automatic" else PositionalLabelForImageClassification
    model, info = loader.from_pretrained(tmp_path / "own", output_loading_info=True, **settings)
    assert model.config.position_label == wanted
    assert "return_dict" not in settings or model.config._attn_implementation == "eager"
    assert not info["mismatched_keys"] and not any(name.startswith("position_head") for name in info["unexpected_keys"])
    for label, name in zip(model.config.labels, HEADS, strict=False):
        if label in saved.config.labels:
            assert same_weights(model.position_heads[label], saved.position_heads[label])
        else:
            assert all_new(model, info, name)
    assert same_weights(model.backbone, saved.backbone) and same_weights(model.classifier, saved.classifier)
    model.save_pretrained(tmp_path / "again")
    again, info = PositionalLabelForImageClassification.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info.values()) and same_weights(again, model)


def test_another_feature_split_makes_new_heads(tmp_path):
    saved = tiny_classifier(position_label="both")
    saved.save_pretrained(tmp_path)
    model, info = PositionalLabelForImageClassification.from_pretrained(
        tmp_path, feature_split="full", output_loading_info=True
    )
    assert all_new(model, info, "position_head") and all_new(model, info, "relative_position_head")
    assert same_weights(
        PositionalLabelModel.from_pretrained(tmp_path, position_label="relative").backbone, model.backbone
    )


@pytest.mark.parametrize("kind", ["mae", "vit_mae"])
def test_another_position_label_of_an_autoencoder(kind, tmp_path):
    config = PositionalLabelConfig(backbone_config={"model_type": kind, **MAE}, position_label="both")
    saved = PositionalLabelForPreTraining(config)
    saved.save_pretrained(tmp_path)
    for model_class in (PositionalLabelForPreTraining, PositionalLabelForImageClassification):
        model, info = model_class.from_pretrained(tmp_path, position_label="relative", output_loading_info=True)
        assert same_weights(model.position_head, saved.relative_position_head), model_class
        assert not info["mismatched_keys"]
    saved = PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config={"model_type": kind, **MAE}))
    saved.save_pretrained(tmp_path)
    for model_class in (PositionalLabelForPreTraining, PositionalLabelForImageClassification):
        model, info = model_class.from_pretrained(tmp_path, position_label="relative", output_loading_info=True)
        assert all_new(model, info, "position_head"), model_class


def test_a_subclass_loads_from_an_autoencoder(tmp_path):
    class Own(PositionalLabelForImageClassification):
        pass

    saved = PositionalLabelForPreTraining(PositionalLabelConfig(backbone_config={"model_type": "mae", **MAE}))
    saved.save_pretrained(tmp_path)
    model = Own.from_pretrained(tmp_path, num_labels=3)
    assert type(model) is Own and same_weights(model.position_head, saved.position_head)
