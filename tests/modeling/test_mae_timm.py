"""MAE classifiers give the logits of timm's VisionTransformer with the same official weights, both ways."""

from functools import partial

import pytest
import torch
from hubmodels.conversion import convert, to_official
from hubmodels.modeling.mae import MAEForImageClassification
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoModelForImageClassification

from tests.modeling.tiny_mae import images, perturbed, tiny_config


def timm_twin(config):
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        global_pool={"mean": "avg", "cls": "token"}[config.pooling],
        drop_path_rate=config.drop_path_rate,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_timm_gives_our_logits(pooling, channels, tmp_path):
    config = tiny_config(pooling=pooling, num_channels=channels, num_labels=5)
    model = perturbed(MAEForImageClassification(config)).eval()
    model.save_pretrained(tmp_path / "ours")
    official = torch.load(to_official(tmp_path / "ours", tmp_path / "official.pth"), weights_only=True)["model"]
    twin = timm_twin(config).eval()
    twin.load_state_dict(official)
    pixels = images(config)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, twin(pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_we_give_the_logits_of_timm(pooling, tmp_path):
    config = tiny_config(pooling=pooling, num_labels=5)
    twin = perturbed(timm_twin(config)).eval()
    torch.save({"model": twin.state_dict()}, tmp_path / "timm.pth")
    model = AutoModelForImageClassification.from_pretrained(
        convert("mae", tmp_path / "timm.pth", tmp_path / "ours", num_heads=2)
    )
    pixels = images(config)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).logits, twin(pixels), atol=1e-5, rtol=1e-5)
