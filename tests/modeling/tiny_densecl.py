"""Small DenseCL models and views, and a step of the method written plainly."""

import copy

import torch
from hubmodels.modeling.densecl import DenseCLConfig, DenseCLForPreTraining
from torch.nn import functional as F

BATCH = 4


def tiny_config(**changes):
    """Maps of 4 x 4 cells for images of 32 pixels."""
    sizes = {"layer_type": "basic", "embedding_size": 4, "depths": [1, 1], "strides": [1, 2], "dilations": [1, 1]}
    contrast = {"num_stages": 2, "projection_hidden_size": 8, "projection_size": 6, "queue_length": 12}
    return DenseCLConfig(**(sizes | contrast | changes))


def tiny_model(seed=0, dtype=torch.float64, **changes):
    """A model in training mode whose momentum encoder differs from the encoder."""
    torch.manual_seed(seed)
    model = DenseCLForPreTraining(tiny_config(**changes)).to(dtype).train()
    with torch.no_grad():
        for parameter in model.momentum_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny_views(batch=BATCH, seed=1, dtype=torch.float64, size=32):
    """Two views of every image, of which the second one is a changed first one."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(batch, 1, 3, size, size, generator=generator, dtype=torch.float64).repeat(1, 2, 1, 1, 1)
    views[:, 1] += 0.3 * torch.randn(views[:, 1].shape, generator=generator, dtype=torch.float64)
    return views.to(dtype)


def snapshot(model):
    """A copy of the whole state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def plain_step(model, views, match=None):
    """
    One forward of the method in one process, in plain operations on copies of the networks of `model`.

    Returns the losses, the matches, and what the queues and the momentum encoder become.
    """
    config = model.config
    query_net, key_net = copy.deepcopy(model.encoder), copy.deepcopy(model.momentum_encoder)
    b_q, q, q_grid, _ = encode(query_net, views[:, 0], config.num_grid)
    for key_parameter, query_parameter in zip(key_net.parameters(), query_net.parameters(), strict=True):
        key_parameter.data = config.momentum * key_parameter.data + (1 - config.momentum) * query_parameter.data
    with torch.no_grad():
        b_k, k, k_grid, k2 = encode(key_net, views[:, 1], config.num_grid)
    queue, queue2 = model.queue.clone(), model.queue2.clone()
    if match is None:
        match = torch.einsum("bci,bcj->bij", b_q, b_k).argmax(2)
    positive = torch.stack([k_grid[b][:, match[b]] for b in range(len(k_grid))])
    dense_queries = q_grid.permute(0, 2, 1).reshape(-1, q_grid.shape[1])
    further = None
    if config.same_image_negatives:
        cells = torch.arange(k_grid.shape[2])
        further = [k_grid[b].T[cells != i] for b in range(len(match)) for i in match[b]]
    dense_keys = positive.permute(0, 2, 1).reshape(dense_queries.shape)
    loss_dense = cross_entropy(dense_queries, dense_keys, queue2, config, further)
    loss_global = cross_entropy(q, k, queue, config)
    for keys, buffer, pointer in ((k, queue, model.queue_ptr), (k2, queue2, model.queue2_ptr)):
        for offset, vector in enumerate(keys):
            buffer[:, (int(pointer) + offset) % config.queue_length] = vector
    return {
        "loss": (1 - config.loss_lambda) * loss_global + config.loss_lambda * loss_dense,
        "loss_global": loss_global,
        "loss_dense": loss_dense,
        "match_index": match,
        "queue": queue,
        "queue2": queue2,
        "encoder": query_net,
        "momentum_encoder": key_net,
    }


def encode(network, images, num_grid):
    """Normalised features of the cells, global, dense and pooled dense embedding, by loops over the grid's cells."""
    features = network.feature_maps(images)[-1]
    pooled = average_cells(features, num_grid or features.shape[-1])
    dense = network.dense_head(pooled)
    embedding = network.global_head(features.flatten(2).mean(2))
    return (
        F.normalize(pooled.flatten(2), dim=1),
        F.normalize(embedding, dim=1),
        F.normalize(dense.flatten(2), dim=1),
        F.normalize(dense.flatten(2).mean(2), dim=1),
    )


def average_cells(features, side):
    """Mean of the features in each of `side` x `side` cells, which overlap where the size is no multiple."""
    rows = []
    for row in range(side):
        height, width = features.shape[-2:]
        top, bottom = row * height // side, -(-(row + 1) * height // side)
        cells = []
        for column in range(side):
            left, right = column * width // side, -(-(column + 1) * width // side)
            cells.append(features[:, :, top:bottom, left:right].mean((2, 3)))
        rows.append(torch.stack(cells, dim=2))
    return torch.stack(rows, dim=2)


def cross_entropy(queries, positives, queue, config, further=None):
    """Cross entropy of label 0 over all logits at once; `further` are negatives `[M, D]` of each query."""
    logits = [(queries * positives).sum(1, keepdim=True), queries @ queue.clone()]
    if further is not None:
        logits.append(torch.stack([keys @ query for query, keys in zip(queries, further, strict=True)]))
    logits = torch.cat(logits, dim=1) / config.temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
