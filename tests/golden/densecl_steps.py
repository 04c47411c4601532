"""Training steps of DenseCL on the golden cases, by official names.

`python densecl_steps.py CASE FOLDER RANK RANKS` is one of the processes that train together; it writes what it computed
to `FOLDER/rankRANK.safetensors`.
"""

import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hubmodels.modeling.densecl import DenseCLConfig, DenseCLForPreTraining
from safetensors.torch import save_file
from torch import nn

from tests.golden.harness import load_case

# Official names to ours, one after the other.
RULES = [
    (r"^encoder_q\.0\.", "encoder.backbone."),
    (r"^encoder_k\.0\.", "momentum_encoder.backbone."),
    (r"^encoder_q\.1\.", "encoder."),
    (r"^encoder_k\.1\.", "momentum_encoder."),
    (r"backbone\.conv1\.", "backbone.embedder.embedder.convolution."),
    (r"backbone\.bn1\.", "backbone.embedder.embedder.normalization."),
    (r"layer(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."),
    (r"(layers\.\d+)\.conv(\d)\.", lambda match: f"{match[1]}.layer.{int(match[2]) - 1}.convolution."),
    (r"(layers\.\d+)\.bn(\d)\.", lambda match: f"{match[1]}.layer.{int(match[2]) - 1}.normalization."),
    (r"downsample\.0\.", "shortcut.convolution."),
    (r"downsample\.1\.", "shortcut.normalization."),
    (r"encoder\.mlp\.", "encoder.global_head."),
    (r"encoder\.mlp2\.", "encoder.dense_head."),
]
# Official names of what the model returns.
OUTPUTS = {
    "q": "query_features",
    "q_grid": "query_dense_features",
    "backbone": "query_feature_map",
    "k": "key_features",
    "k2": "key_pooled_features",
    "k_grid": "key_dense_features",
    "k_backbone": "key_backbone_features",
    "match_index": "match_index",
    "loss_global": "loss_global",
    "loss_dense": "loss_dense",
    "loss_contra_single": "contra_single",
    "loss_contra_dense": "contra_dense",
    "loss": "loss",
}


def our_name(official):
    """The name of a tensor of the official model in ours."""
    for pattern, replacement in RULES:
        official = re.sub(pattern, replacement, official)
    return official


def load_model(case, **changes):
    """The model of a case in training mode."""
    config = case.manifest["config"]
    model = DenseCLForPreTraining(
        DenseCLConfig(
            layer_type=config["block"],
            depths=config["layers"],
            embedding_size=config["stem_width"],
            strides=config["strides"],
            projection_hidden_size=config["hid"],
            projection_size=config["feat"],
            queue_length=config["queue_len"],
            momentum=config["momentum"],
            loss_lambda=config["loss_lambda"],
            temperature=config["temperature"],
            **changes,
        )
    )
    state = torch.load(case.checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({our_name(k): v for k, v in state.items() if not k.startswith("backbone.")})
    return model.train()


def train(case, model, rank=0, parallel=None):
    """Every tensor of the case that the steps of one process give, by its official name."""
    config, actual = case.manifest["config"], {}
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config["lr"],
        momentum=config["sgd_momentum"],
        weight_decay=config["weight_decay"],
    )
    rows = slice(rank * config["batch"], (rank + 1) * config["batch"])
    images = case.inputs["images"][rows].to(model.dtype)
    for step in range(1, config["steps"] + 1):
        output = (parallel or model)(images, shuffle_index=case.inputs["shuffle"][step - 1])
        actual |= {f"rank{rank}.step{step}.{name}": output[ours] for name, ours in OUTPUTS.items()}
        optimizer.zero_grad()
        output.loss.backward()
        if step == 1:
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            for name in case.outputs:
                kind, _, official = name.partition("/")
                if kind in ("grad", "gradnorm"):
                    gradient = gradients[our_name(official)]
                    actual[name] = gradient if kind == "grad" else gradient.norm()
        optimizer.step()
        state = model.state_dict()
        for name in case.outputs:
            when, _, official = name.partition("/")
            if when in (f"after_step{step}", f"rank{rank}.after_step{step}"):
                actual[name] = state[our_name(official)].clone()
    return {name: tensor.detach() for name, tensor in actual.items() if name in case.outputs}


def main():
    """Trains in one of several processes; DDP is told nothing about buffers."""
    case, folder = load_case("densecl", sys.argv[1]), Path(sys.argv[2])
    rank, ranks = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    model = load_model(case)
    actual = train(case, model, rank, nn.parallel.DistributedDataParallel(model))
    model.check_queues()
    save_file({name: tensor.contiguous() for name, tensor in actual.items()}, folder / f"rank{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
