"""The official ZigMa forward pass in plain float64 NumPy, which an imported model must reproduce.

Time runs as in the release: t = 0 is noise, t = 1 is data, and the output is x_data - noise.
"""

import math

import numpy as np

# Parameters of a mixer's forward direction -> those of the reversed one in the bidirectional baseline.
SECOND_DIRECTION = {
    "conv1d.weight": "conv1d_b.weight",
    "conv1d.bias": "conv1d_b.bias",
    "x_proj.weight": "x_proj_b.weight",
    "dt_proj.weight": "dt_proj_b.weight",
    "dt_proj.bias": "dt_proj_b.bias",
    "A_log": "A_b_log",
    "D": "D_b",
}


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def rms_norm(x, weight, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, eps=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def serpentines(side):
    """The eight zigzags of a square grid as lists of raster indices, from the four corners, rows then columns."""
    orders = []
    for bottom in (False, True):
        for right in (False, True):
            for by_rows in (True, False):
                order = []
                for outer in range(side):
                    for inner in range(side):
                        back_and_forth = inner if outer % 2 == 0 else side - 1 - inner
                        row, column = (outer, back_and_forth) if by_rows else (back_and_forth, outer)
                        row = side - 1 - row if bottom else row
                        column = side - 1 - column if right else column
                        order.append(row * side + column)
                orders.append(order)
    return orders


def mixer(x, p, prefix, order):
    """x (L, D) -> (L, D): Mamba along the order, or in raster order and its reverse where a second set exists."""
    if prefix + "D_b" not in p:
        return direction(x, p, prefix, order)
    raster = list(range(len(x)))
    second = {prefix + name: p[prefix + other] for name, other in SECOND_DIRECTION.items()}
    return direction(x, p, prefix, raster) + direction(x, p | second, prefix, raster[::-1])


def direction(x, p, prefix, order):
    """x (L, D) -> (L, D): gather along the order, Mamba, scatter back."""
    xz = x[order] @ p[prefix + "in_proj.weight"].T
    inner = xz.shape[1] // 2
    u, z = xz[:, :inner], xz[:, inner:]
    kernel = p[prefix + "conv1d.weight"][:, 0]
    padded = np.concatenate([np.zeros((kernel.shape[1] - 1, inner)), u])
    u = np.stack([(padded[k : k + kernel.shape[1]] * kernel.T).sum(0) for k in range(len(u))])
    u = silu(u + p[prefix + "conv1d.bias"])
    A = -np.exp(p[prefix + "A_log"])
    num_states = A.shape[1]
    projected = u @ p[prefix + "x_proj.weight"].T
    rank = projected.shape[1] - 2 * num_states
    dt = softplus(projected[:, :rank] @ p[prefix + "dt_proj.weight"].T + p[prefix + "dt_proj.bias"])
    B, C = projected[:, rank : rank + num_states], projected[:, rank + num_states :]
    state, rows = np.zeros_like(A), []
    for k in range(len(u)):
        state = np.exp(dt[k][:, None] * A) * state + (dt[k] * u[k])[:, None] * B[k]
        rows.append(state @ C[k] + p[prefix + "D"] * u[k])
    y = (np.stack(rows) * silu(z)) @ p[prefix + "out_proj.weight"].T
    out = np.empty_like(y)
    out[order] = y
    return out


def attention(x, text, p, prefix, num_heads=8):
    query, key, value = (x_ @ p[f"{prefix}to_{n}.weight"].T for n, x_ in (("q", x), ("k", text), ("v", text)))
    head_dim = query.shape[1] // num_heads
    heads = []
    for h in range(num_heads):
        part = slice(h * head_dim, (h + 1) * head_dim)
        scores = query[:, part] @ key[:, part].T / math.sqrt(head_dim)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(heads, 1) @ p[prefix + "to_out.0.weight"].T + p[prefix + "to_out.0.bias"]


def official_forward(parameters, x, t, y=None):
    """Evaluate one sample: x (C, H, W), t a number, y class id or caption features (T, d)."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    x = np.asarray(x, dtype=np.float64)
    patch = p["x_embedder.proj.weight"].shape[-1]
    channels, side = x.shape[0], x.shape[1] // patch
    patches = x.reshape(channels, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    weight = p["x_embedder.proj.weight"].reshape(len(p["x_embedder.proj.bias"]), -1)
    tokens = patches @ weight.T + p["x_embedder.proj.bias"] + p["pos_embed"][0]
    frequencies = np.exp(-math.log(10000) * np.arange(128) / 128)
    angles = 1000 * t * frequencies
    features = np.concatenate([np.cos(angles), np.sin(angles)])
    hidden = silu(p["t_embedder.mlp.0.weight"] @ features + p["t_embedder.mlp.0.bias"])
    c = p["t_embedder.mlp.2.weight"] @ hidden + p["t_embedder.mlp.2.bias"]
    text = None
    if "y_embedder.weight" in p:
        text = np.asarray(y, dtype=np.float64) @ p["y_embedder.weight"].T + p["y_embedder.bias"]
        c = c + text.mean(0)
    elif "y_embedder.embedding_table.weight" in p:
        c = c + p["y_embedder.embedding_table.weight"][int(y)]
    residual, orders = None, serpentines(side)
    depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    for layer in range(depth):
        prefix = f"blocks.{layer}."
        residual = tokens if residual is None else tokens + residual
        n = rms_norm(residual, p[prefix + "norm.weight"])
        modulation = p[prefix + "adaLN_modulation.1.weight"] @ silu(c) + p[prefix + "adaLN_modulation.1.bias"]
        parts = np.split(modulation, 6 if text is not None else 3)
        tokens = n + parts[2] * mixer(n * (1 + parts[1]) + parts[0], p, prefix + "mixer.", orders[layer % 8])
        if text is not None:
            query = layer_norm(tokens) * (1 + parts[4]) + parts[3]
            tokens = tokens + parts[5] * attention(query, text, p, prefix + "msa.")
    tokens = layer_norm(rms_norm(tokens + residual, p["norm_f.weight"]))
    out = tokens @ p["final_layer.linear.weight"].T + p["final_layer.linear.bias"]
    out = out.reshape(side, side, patch, patch, channels).transpose(4, 0, 2, 1, 3)
    return out.reshape(channels, side * patch, side * patch)


def random_checkpoint(
    seed, *, width=32, depth=9, side=4, patch=1, channels=3, num_classes=None, caption_dim=None, bidirectional=False
):
    """Draw an official state dict, no parameter zero, as a dict of float32 arrays."""
    rng = np.random.default_rng(seed)
    inner, rank, tokens = 2 * width, math.ceil(width / 16), side * side
    shapes = {
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "pos_embed": (1, tokens, width),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "norm_f.weight": (width,),
        "final_layer.linear.weight": (patch * patch * channels, width),
        "final_layer.linear.bias": (patch * patch * channels,),
    }
    if num_classes:
        shapes["y_embedder.embedding_table.weight"] = (num_classes, width)
    if caption_dim:
        shapes |= {"y_embedder.weight": (width, caption_dim), "y_embedder.bias": (width,)}
    for layer in range(depth):
        block = {
            "norm.weight": (width,),
            "adaLN_modulation.1.weight": ((6 if caption_dim else 3) * width, width),
            "adaLN_modulation.1.bias": ((6 if caption_dim else 3) * width,),
            "mixer.in_proj.weight": (2 * inner, width),
            "mixer.conv1d.weight": (inner, 1, 4),
            "mixer.conv1d.bias": (inner,),
            "mixer.x_proj.weight": (rank + 32, inner),
            "mixer.dt_proj.weight": (inner, rank),
            "mixer.dt_proj.bias": (inner,),
            "mixer.A_log": (inner, 16),
            "mixer.D": (inner,),
            "mixer.out_proj.weight": (width, inner),
        }
        if bidirectional:
            block |= {f"mixer.{other}": block[f"mixer.{name}"] for name, other in SECOND_DIRECTION.items()}
        if caption_dim:
            block |= {f"msa.to_{n}.weight": (512, width) for n in "qkv"}
            block |= {"msa.to_out.0.weight": (width, 512), "msa.to_out.0.bias": (width,)}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    scales = {name: 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.5 for name, shape in shapes.items()}
    return {name: (scales[name] * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
