"""A round as people write it with Transformers and PEFT, on the arrays of W8's kind.

The model has the workload's frozen weights and an adapter on queries and values. Each client's
adapter is loaded, trained by torch.optim.AdamW, read back and averaged.
"""

from typing import TYPE_CHECKING

import peft
import torch
import transformers
import workloads
from torch import Tensor

if TYPE_CHECKING:
    import torch_peers

SIDES = {"query": "self_attn.q_proj", "value": "self_attn.v_proj"}
LAYERS = {
    **SIDES,
    "key": "self_attn.k_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm_0": "input_layernorm",
    "norm_1": "post_attention_layernorm",
}
OUTSIDE = {
    "token/embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}


def local(shard: "torch_peers.Shard") -> "torch_peers.Local":
    """start [P] -> (sum over clients of their ends [P], of their first and last losses [2])."""
    import torch_peers

    optimizer = workloads.WORKLOADS[shard.name].optimizer
    model = made(shard)

    def one_round(start: Tensor) -> tuple[Tensor, Tensor]:
        total, losses = torch.zeros_like(start), start.new_zeros(2)
        adapter = state(torch_peers.views(start, shard.theta))
        for inputs, labels in zip(shard.inputs, shard.labels, strict=True):
            del labels  # the model takes the tokens themselves
            peft.set_peft_model_state_dict(model, adapter)
            trained = [p for p in model.parameters() if p.requires_grad]
            step = torch.optim.AdamW(trained, optimizer.rate, weight_decay=optimizer.decay)
            values = []
            for tokens in inputs:
                loss = model(input_ids=tokens, labels=tokens.long()).loss
                loss.backward()
                step.step()
                step.zero_grad()
                values.append(loss.detach())
            total += flat(peft.get_peft_model_state_dict(model), shard.theta)
            losses += torch.stack([values[0], values[-1]])
        return total, losses

    return one_round


def made(shard: "torch_peers.Shard") -> peft.PeftModel:
    """The model with the frozen weights of the shard and adapters beside them."""
    workload = workloads.WORKLOADS[shard.name]
    width, feedforward, depth, heads, groups = workloads.DECODERS[shard.name]
    config = transformers.LlamaConfig(
        vocab_size=workload.vocabulary,
        hidden_size=width,
        intermediate_size=feedforward,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=workload.shape[0],
        rms_norm_eps=1e-5,
        use_cache=False,
    )
    kept = shard.base["head/kernel"]
    model = transformers.LlamaForCausalLM(config).to(kept.device, kept.dtype)
    model.load_state_dict(weights(shard.base))
    adapters = peft.LoraConfig(
        r=workload.rank,
        lora_alpha=workload.scale * workload.rank,
        target_modules=["q_proj", "v_proj"],
        lora_dropout=0.0,
    )
    return peft.get_peft_model(model, adapters)


def weights(base: "torch_peers.Weights") -> dict[str, Tensor]:
    """The base under the names of Transformers, whose kernels are [out, in]."""
    found = {}
    for path, weight in base.items():
        if path in OUTSIDE:
            found[OUTSIDE[path]] = weight.T if path.endswith("kernel") else weight
            continue
        _, layer, _ = path.split("/")
        for i, each in enumerate(weight):
            name = f"model.layers.{i}.{LAYERS[layer]}.weight"
            found[name] = each.T if path.endswith("kernel") else each
    return found


def state(mine: "torch_peers.Weights") -> dict[str, Tensor]:
    """Factors {path:a [n, in, r], path:b [n, r, out]} under the names of PEFT."""
    return {
        name(path, i): each.T.contiguous()
        for path, stacked in mine.items()
        for i, each in enumerate(stacked)
    }


def name(path: str, layer: int) -> str:
    which = SIDES[path.split("/")[1]]
    return f"base_model.model.model.layers.{layer}.{which}.lora_{path[-1].upper()}.weight"


def flat(adapter: dict[str, Tensor], theta: "torch_peers.Weights") -> Tensor:
    """The vector [P] of torch_peers, from PEFT's names."""
    return torch.cat(
        [
            torch.stack([adapter[name(path, i)].T for i in range(len(stacked))]).flatten()
            for path, stacked in theta.items()
        ]
    )
