"""A checkpoint of random bf16 weights for a configuration, and the same weights as GGUF files.

python3 benches/dummy_checkpoint.py benches/configs/dense-0.3b OUT --tekken tekken_240911.json [--gguf bf16,q8_0]

OUT gets what nemoserve opens: config.json, model.safetensors, tokenizer.json, tokenizer_config.json. With --gguf,
OUT-bf16.gguf and OUT-q8_0.gguf beside it, for llama.cpp: q8_0 is rounded from the same bf16 numbers. The
vocabulary is the beginning of a tekken file, which comes with the package mistral-common (in mistral_common/data).
Needs numpy, and for GGUF the package gguf (that of llama.cpp's own source, by PYTHONPATH, if the published one does
not know the architecture).
"""

import argparse
import base64
import json
import os
import struct

import numpy as np

NUM_SPECIAL = 1000
SEED = 1


def to_bf16(values):
    """Bits of the nearest bf16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_f32(values):
    return values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)


class Weights:
    """Tensors by the names of the Hugging Face layout: bf16 as uint16, or f32."""

    def __init__(self, config):
        self.tensors, self.rng = {}, np.random.default_rng(SEED)
        self.depth = len(config["hybrid_override_pattern"]) ** -0.5
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        self.matrix("backbone.embeddings.weight", vocabulary, hidden, std=1.0)
        layers = {"M": self.mamba, "*": self.attention, "-": self.mlp, "E": self.experts}
        for number, kind in enumerate(config["hybrid_override_pattern"]):
            prefix = f"backbone.layers.{number}."
            self.constant(prefix + "norm.weight", hidden)
            layers[kind](prefix + "mixer.", config, hidden)
        self.constant("backbone.norm_f.weight", hidden)
        self.matrix("lm_head.weight", vocabulary, hidden)

    def matrix(self, name, *shape, std=None):
        values = self.rng.standard_normal(shape, dtype=np.float32)
        self.tensors[name] = to_bf16(values * (std or shape[-1] ** -0.5))

    def constant(self, name, length, value=1.0):
        self.tensors[name] = to_bf16(np.full(length, value, np.float32))

    def down(self, name, outputs, inputs):
        """Back into the residual stream: smaller, the more layers there are."""
        self.matrix(name, outputs, inputs, std=inputs**-0.5 * self.depth)

    def mamba(self, prefix, config, hidden):
        heads = config["mamba_num_heads"]
        inner = heads * config["mamba_head_dim"]
        convolved = inner + 2 * config["n_groups"] * config["ssm_state_size"]
        self.matrix(prefix + "in_proj.weight", inner + convolved + heads, hidden)
        self.matrix(prefix + "conv1d.weight", convolved, 1, config["conv_kernel"])
        self.matrix(prefix + "conv1d.bias", convolved, std=0.02)
        self.tensors[prefix + "A_log"] = to_bf16(np.log(self.rng.uniform(1, 16, heads)))
        self.constant(prefix + "D", heads)
        # As Mamba-2 begins: softplus(dt_bias) is between a thousandth and a tenth.
        dt = np.exp(self.rng.uniform(np.log(1e-3), np.log(0.1), heads))
        self.tensors[prefix + "dt_bias"] = to_bf16(dt + np.log(-np.expm1(-dt)))
        self.constant(prefix + "norm.weight", inner)
        self.down(prefix + "out_proj.weight", hidden, inner)

    def attention(self, prefix, config, hidden):
        queries = config["num_attention_heads"] * config["head_dim"]
        keys = config["num_key_value_heads"] * config["head_dim"]
        self.matrix(prefix + "q_proj.weight", queries, hidden)
        self.matrix(prefix + "k_proj.weight", keys, hidden)
        self.matrix(prefix + "v_proj.weight", keys, hidden)
        self.down(prefix + "o_proj.weight", hidden, queries)

    def mlp(self, prefix, config, hidden):
        self.matrix(prefix + "up_proj.weight", config["intermediate_size"], hidden)
        self.down(prefix + "down_proj.weight", hidden, config["intermediate_size"])

    def experts(self, prefix, config, hidden):
        number, inner = config["n_routed_experts"], config["moe_intermediate_size"]
        latent, shared = config["moe_latent_size"], config["moe_shared_expert_intermediate_size"]
        self.matrix(prefix + "gate.weight", number, hidden)
        self.tensors[prefix + "gate.e_score_correction_bias"] = np.zeros(number, np.float32)
        for expert in range(number):
            self.matrix(prefix + f"experts.{expert}.up_proj.weight", inner, latent)
            self.down(prefix + f"experts.{expert}.down_proj.weight", latent, inner)
        self.matrix(prefix + "shared_experts.up_proj.weight", shared, hidden)
        self.down(prefix + "shared_experts.down_proj.weight", hidden, shared)
        self.matrix(prefix + "fc1_latent_proj.weight", latent, hidden)
        self.down(prefix + "fc2_latent_proj.weight", hidden, latent)


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, values in tensors.items():
        kind = "BF16" if values.dtype == np.uint16 else "F32"
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def byte_letters():
    """GPT-2's letters for bytes: those that can be shown stand for themselves."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}


def tokenizer(tekken, vocab_size):
    """The first words of a tekken vocabulary as a tokenizer.json."""
    words = [base64.b64decode(word["token_bytes"]) for word in tekken["vocab"][: vocab_size - NUM_SPECIAL]]
    letters = byte_letters()
    show = lambda word: "".join(letters[byte] for byte in word)
    ranks = {word: rank for rank, word in enumerate(words)}

    def merge(word):
        """The two words that this one was made of."""
        parts = [bytes([byte]) for byte in word]
        while len(parts) > 2:
            pairs = [a + b for a, b in zip(parts, parts[1:])]
            best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(words)) if pairs[at] != word else len(words))
            parts[best : best + 2] = [pairs[best]]
        return [show(part) for part in parts]

    named = {0: "<unk>", 1: "<s>", 2: "</s>"}
    special = [named.get(at, f"<SPECIAL_{at}>") for at in range(NUM_SPECIAL)]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": tekken["config"]["pattern"]}, "behavior": "Isolated", "invert": False}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": at, "content": content, **added} for at, content in enumerate(special)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_of]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {name: at for at, name in enumerate(special)}
            | {show(word): at + NUM_SPECIAL for at, word in enumerate(words)},
            "merges": [merge(word) for word in words if len(word) > 1],
        },
    }


def write_gguf(path, kind, config, tensors, words):
    """As llama.cpp's converter names things; tensors in their order of use."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    pattern, moe = config["hybrid_override_pattern"], "E" in config["hybrid_override_pattern"]
    out = gguf.GGUFWriter(path, "nemotron_h_moe" if moe else "nemotron_h")
    out.add_name("dummy")
    out.add_block_count(len(pattern))
    out.add_context_length(1 << 20)
    out.add_embedding_length(config["hidden_size"])
    out.add_vocab_size(config["vocab_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv([config["num_key_value_heads"] if kind == "*" else 0 for kind in pattern])
    out.add_key_length(config["head_dim"])
    out.add_value_length(config["head_dim"])
    out.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    out.add_layer_norm_eps(config["layer_norm_epsilon"])
    inner = config["moe_intermediate_size"] if moe else config["intermediate_size"]
    out.add_feed_forward_length([inner if kind in "-E" else 0 for kind in pattern])
    heads = config["mamba_num_heads"]
    out.add_ssm_conv_kernel(config["conv_kernel"])
    out.add_ssm_state_size(config["ssm_state_size"])
    out.add_ssm_group_count(config["n_groups"])
    out.add_ssm_inner_size(heads * config["mamba_head_dim"])
    out.add_ssm_time_step_rank(heads)
    out.add_rope_scaling_finetuned(False)
    out.add_rope_dimension_count(config["head_dim"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if kind == "bf16" else gguf.LlamaFileType.MOSTLY_Q8_0)
    if moe:
        out.add_expert_used_count(config["num_experts_per_tok"])
        out.add_expert_feed_forward_length(inner)
        out.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
        out.add_expert_count(config["n_routed_experts"])
        out.add_expert_shared_count(1)
        out.add_expert_weights_norm(True)
        out.add_expert_weights_scale(config["routed_scaling_factor"])
        out.add_expert_group_count(1)
        out.add_moe_latent_size(config["moe_latent_size"])
    by_id = {at: word for word, at in words["vocab"].items()}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("tekken")
    out.add_token_list([by_id[at] for at in range(config["vocab_size"])])
    out.add_token_types([3 if at < NUM_SPECIAL else 1 for at in range(config["vocab_size"])])
    out.add_token_merges([" ".join(merge) for merge in words["merges"]])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)

    def matrix(name, *parts):
        values = np.stack([tensors[part] for part in parts]) if len(parts) > 1 else tensors[parts[0]]
        if kind == "bf16":
            out.add_tensor(name, np.ascontiguousarray(values).view(np.uint8), raw_dtype=kinds.BF16)
        else:
            out.add_tensor(name, gguf.quants.quantize(to_f32(values), kinds.Q8_0), raw_dtype=kinds.Q8_0)

    def plain(name, values):
        out.add_tensor(name, np.ascontiguousarray(values, np.float32))

    matrix("token_embd.weight", "backbone.embeddings.weight")
    plain("output_norm.weight", to_f32(tensors["backbone.norm_f.weight"]))
    matrix("output.weight", "lm_head.weight")
    for number, layer in enumerate(pattern):
        theirs, ours = f"blk.{number}.", f"backbone.layers.{number}.mixer."
        of = lambda name: to_f32(tensors[ours + name])
        plain(theirs + "attn_norm.weight", to_f32(tensors[f"backbone.layers.{number}.norm.weight"]))
        if layer == "M":
            matrix(theirs + "ssm_in.weight", ours + "in_proj.weight")
            plain(theirs + "ssm_conv1d.weight", of("conv1d.weight")[:, 0, :])
            plain(theirs + "ssm_conv1d.bias", of("conv1d.bias"))
            plain(theirs + "ssm_dt.bias", of("dt_bias"))
            plain(theirs + "ssm_a", -np.exp(of("A_log")).reshape(-1, 1))
            plain(theirs + "ssm_d", of("D").reshape(-1, 1))
            plain(theirs + "ssm_norm.weight", of("norm.weight").reshape(config["n_groups"], -1))
            matrix(theirs + "ssm_out.weight", ours + "out_proj.weight")
        elif layer == "*":
            for to, name in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
                matrix(theirs + f"attn_{to}.weight", ours + f"{name}_proj.weight")
        elif layer == "-":
            matrix(theirs + "ffn_up.weight", ours + "up_proj.weight")
            matrix(theirs + "ffn_down.weight", ours + "down_proj.weight")
        else:
            plain(theirs + "ffn_gate_inp.weight", of("gate.weight"))
            plain(theirs + "exp_probs_b.bias", of("gate.e_score_correction_bias"))
            for way in ("up", "down"):
                experts = [ours + f"experts.{at}.{way}_proj.weight" for at in range(config["n_routed_experts"])]
                matrix(theirs + f"ffn_{way}_exps.weight", *experts)
                matrix(theirs + f"ffn_{way}_shexp.weight", ours + f"shared_experts.{way}_proj.weight")
            matrix(theirs + "ffn_latent_down.weight", ours + "fc1_latent_proj.weight")
            matrix(theirs + "ffn_latent_up.weight", ours + "fc2_latent_proj.weight")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a folder with config.json")
    parser.add_argument("out")
    parser.add_argument("--tekken", required=True)
    parser.add_argument("--gguf", default="", help="bf16, q8_0 or both")
    args = parser.parse_args()
    with open(os.path.join(args.config, "config.json")) as file:
        config = json.load(file)
    with open(args.tekken) as file:
        words = tokenizer(json.load(file), config["vocab_size"])
    tensors = Weights(config).tensors
    out = args.out.rstrip("/")
    os.makedirs(out, exist_ok=True)
    write_safetensors(out + "/model.safetensors", tensors)
    plain_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer.json": words,
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "chat_template": plain_template},
    }
    for name, content in files.items():
        with open(f"{out}/{name}", "w") as file:
            json.dump(content, file)
    for kind in filter(None, args.gguf.split(",")):
        write_gguf(f"{out}-{kind}.gguf", kind, config, tensors, words["model"])
    print(f"{out}: {sum(values.size for values in tensors.values()) / 1e6:.1f} M parameters")


main()
