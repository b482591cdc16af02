"""Trains the byte-level BPE tokenizer and writes its two files.

XML tags are one word each, so that a tool list costs a third of what it
would; digits stand alone, so that sums line up.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import pieces
from generate import documents

VOCAB_SIZE = 2048
SEED, DOCUMENTS = 7, 20_000
CONTROL = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>"}
# Visible when decoding without special tokens: the server parses these.
MARKUP = {
    12: "<think>",
    13: "</think>",
    14: "<tool_call>",
    15: "</tool_call>",
    16: "<tool_response>",
    17: "</tool_response>",
}
PATTERN = "|".join(
    [r"</?[a-z]+[>=]\n?", r"[ _]?\p{L}+", r"\p{N}", r" ?[^\s\p{L}\p{N}<]+\n*", r"<", r"\n+", r"\s+(?!\S)", r"\s+"]
)


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [(CONTROL | MARKUP).get(i, f"<SPECIAL_{i}>") for i in range(18)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=reserved,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in pieces(doc)) for doc in documents(SEED, DOCUMENTS))
    tokenizer.train_from_iterator(texts, trainer)
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["id"] not in MARKUP
    return spec


def config(spec):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in spec["added_tokens"]},
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "model")
    model = parser.parse_args().model
    spec = train()
    (model / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False, indent=1) + "\n")
    (model / "tokenizer_config.json").write_text(json.dumps(config(spec), ensure_ascii=False, indent=2) + "\n")
