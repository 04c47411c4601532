"""One contender of `benchmarks.mae_step`: reads a number of steps per line, runs them, answers with the seconds."""

import sys

import torch

from benchmarks.contender import matmul_peak, serve, start_of_memory

THREADS = 2
SIZES = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-6,
}
MASK_RATIO = 0.75


def reference_model():
    """The weights all contenders start from."""
    from hubmodels.modeling.mae import MAEConfig, MAEForPreTraining

    torch.manual_seed(0)
    return MAEForPreTraining(MAEConfig(**SIZES)).train()


def hubmodels_step(model):
    """Loss of our model."""
    return lambda images, noise: model(images, noise=noise).loss


def transformers_step(model):
    """Loss of the stock model with our weights (its own layout is the same)."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    stock = ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).train()
    stock.load_state_dict(model.state_dict())
    return stock, lambda images, noise: stock(images, noise=noise).loss


def lightly_step(model):
    """Loss of lightly's modules, put together as in its documentation's MAE example, with our weights."""
    from hubmodels.conversion.mae import to_official
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(embed_dim=384, num_heads=6, depth=12, num_classes=0, global_pool="")
    peer = torch.nn.ModuleDict(
        {
            "backbone": MaskedVisionTransformerTIMM(vit=vit),
            "decoder": MAEDecoderTIMM(num_patches=196, patch_size=16, embed_dim=384),
        }
    ).train()
    official = to_official(model)
    decoder = {k: v for k, v in official.items() if k.startswith(("decoder", "mask_token"))}
    peer["decoder"].load_state_dict(decoder)
    encoder = {k: v for k, v in official.items() if k not in decoder}
    peer["backbone"].vit.load_state_dict(encoder)
    peer["backbone"].mask_token.requires_grad_(False)

    def loss(images, noise):
        order = noise.argsort(dim=1) + 1
        num_keep = int(noise.shape[1] * (1 - MASK_RATIO))
        idx_keep = torch.cat([torch.zeros_like(order[:, :1]), order[:, :num_keep]], dim=1)
        idx_mask = order[:, num_keep:]
        encoded = peer["backbone"].encode(images=images, idx_keep=idx_keep)
        decoded = peer["decoder"].embed(encoded)
        tokens = utils.repeat_token(peer["decoder"].mask_token, (images.shape[0], noise.shape[1] + 1))
        tokens = utils.set_at_index(tokens, idx_keep, decoded.type_as(tokens))
        predictions = peer["decoder"].predict(utils.get_at_index(peer["decoder"].decode(tokens), idx_mask))
        target = utils.get_at_index(utils.patchify(images, 16), idx_mask - 1)
        return torch.nn.functional.mse_loss(predictions, target)

    return peer, loss


def build(contender: str):
    """The module of a contender and its loss function."""
    model = reference_model()
    if contender == "hubmodels":
        return model, hubmodels_step(model)
    return {"transformers": transformers_step, "lightly": lightly_step}[contender](model)


def step_gflop(batch: int) -> float:
    """Matrix-product work of one plain step: 6 per weight and token, and 12 L^2 per width for attention."""
    encoder_tokens, decoder_tokens = 50, 197
    encoder = 12 * (12 * 384**2 * encoder_tokens * 6 + 12 * encoder_tokens**2 * 384)
    decoder = 8 * (12 * 512**2 * decoder_tokens * 6 + 12 * decoder_tokens**2 * 512)
    ends = 6 * (768 * 384 * 196 + 384 * 512 * encoder_tokens + 512 * 768 * decoder_tokens)
    return batch * (encoder + decoder + ends) / 1e9


def main() -> None:
    """Serves steps until standard input ends."""
    contender, dtype, batch = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(THREADS)
    peak = matmul_peak(dtype)
    module, loss = build(contender)
    module.to(dtype)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 224, 224, generator=generator).to(dtype)
    noise = torch.rand(batch, 196, generator=generator)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    before = start_of_memory()

    def step() -> float:
        value = loss(images, noise)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    first = step()
    step()
    serve(step, before, loss=first, peak_gflops=peak, stock_gflop=step_gflop(batch))


if __name__ == "__main__":
    main()
