"""Writes a training state as a published-layout model folder.

bfloat16 throughout, except the router's correction bias: rounding that would
choose other experts than training did.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import Experts, NemotronH, Shape


def tensors(model):
    """Published name -> tensor. Only the experts, stacked in training, differ."""
    stacked = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    out = {}
    for name, value in model.state_dict().items():
        owner, _, projection = name.rpartition(".")
        kept = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        if owner in stacked:
            for e, matrix in enumerate(value):
                out[f"{owner}.{e}.{projection}.weight"] = matrix.to(kept).contiguous()
        else:
            out[name] = value.to(kept).contiguous()
    return out


def config(s: Shape):
    """`config.json` with every key that an engine of the family looks for."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "num_hidden_layers": len(s.hybrid_override_pattern),
        **asdict(s),
        "norm_eps": s.layer_norm_epsilon,
        "num_nextn_predict_layers": 1,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "intermediate_size": s.moe_intermediate_size,
        "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu",
        "mamba_ssm_cache_dtype": "float32",
        "expand": 2,
        "use_conv_bias": True,
        "use_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_proj_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        "sliding_window": None,
        "rope_theta": 10000,
        "partial_rotary_factor": 1.0,
        # transformers clamps dt from below at time_step_min; training did not.
        "time_step_min": 1e-9,
        "time_step_max": 0.1,
        "time_step_floor": 1e-9,
        "residual_in_fp32": False,
        "rescale_prenorm_residual": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "num_logits_to_keep": 1,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


# Cool: a small model's second choices are seldom good ones.
GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": [2, 11],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.3,
    "top_p": 0.9,
}


def export(model, folder):
    for name, value in (("config.json", config(model.shape)), ("generation_config.json", GENERATION)):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    new = folder / "model.safetensors.new"
    save_file(tensors(model), new, metadata={"format": "pt"})
    new.chmod(0o644)
    os.replace(new, folder / "model.safetensors")


def load(folder):
    """The inverse: a float32 model from an exported folder."""
    names = set(Shape.__dataclass_fields__)
    values = json.loads((folder / "config.json").read_text())
    model = NemotronH(Shape(**{k: v for k, v in values.items() if k in names}))
    stored = load_file(folder / "model.safetensors")
    state = {}
    for name, value in model.state_dict().items():
        owner, _, projection = name.rpartition(".")
        if name in stored:
            state[name] = stored[name].float()
        else:
            parts = [stored[f"{owner}.{e}.{projection}.weight"] for e in range(len(value))]
            state[name] = torch.stack(parts).float()
    model.load_state_dict(state)
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, default=Path("state.pt"))
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "model")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = NemotronH(Shape())
    if args.state.exists():
        model.load_state_dict(torch.load(args.state)["model"])
    export(model, args.model)
