"""Checkpoints of a few thousand weights that transformers draws and saves."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

LENGTH, VOCABULARY = 24, 30
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
SETTINGS = {
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": LENGTH,
            "initializer_range": 0.3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "llama": ("Llama", LLAMA),
    "smollm": ("Llama", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama3": ("Llama", {**LLAMA, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 3, "head_dim": 6}),
    "qwen2": ("Qwen2", {**LLAMA, "use_sliding_window": False}),
    "qwen3": ("Qwen3", {**LLAMA, "use_sliding_window": False, "head_dim": 8}),
}


@functools.cache
def small(kind: str) -> tuple[Path, torch.nn.Module]:
    """(folder, model); large weights, so that every part of the model is seen in the logits."""
    family, settings = SETTINGS[kind]
    config = getattr(transformers, f"{family}Config")(**settings)
    name = f"{family}LMHeadModel" if kind == "gpt2" else f"{family}ForCausalLM"
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    theirs.save_pretrained(folder)
    return folder, theirs
