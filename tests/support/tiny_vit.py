"""A vision transformer of a few hundred weights in a Hugging Face folder, of grey images 8 x 8."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxfed.pretrained import vit

CONFIG = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "layer_norm_eps": 1e-6,
}


def write(folder: Path) -> None:
    """Random weights, and a head of three labels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = vit.shapes_of(vit.vit(CONFIG, 3), CONFIG)
    tensors = {
        vit.tensor_name(p): np.ascontiguousarray(
            vit.as_theirs(p, rng.normal(p.endswith("scale"), 0.2, s.shape))
        )
        for p, s in shapes.items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
