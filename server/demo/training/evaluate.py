"""Measures an exported model folder and writes greedy samples for the engine.

Everything is asked in words the training run has not drawn (its seeds begin
with `train/`) and decoded greedily in float32 from the bfloat16 weights.
"""

import argparse
import json
import random
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer

import generate
from chat import encode, pieces, prompt_text
from decode import greedy
from export import load
from facts import CAPITALS, PEOPLE

LIMIT = 300
CALL = re.compile(
    r"\s*(<tool_call>\n<function=([^\n>]+)>\n((?:<parameter=[^\n>]+>\n.*?\n</parameter>\n)*)</function>\n</tool_call>\n)+",
    re.DOTALL,
)
PARAMETER = re.compile(r"<parameter=([^\n>]+)>\n(.*?)\n</parameter>\n", re.DOTALL)
SAMPLES = [
    ("hello", "Hello!", False),
    ("hello, thinking", "Hello!", True),
    ("who are you", "Who are you?", False),
    ("what can you do", "What can you do?", True),
    ("capital of France", "What is the capital of France?", False),
    ("capital of Japan, thinking", "What is the capital of Japan?", True),
    ("capital of Peru", "capital of peru", False),
    ("sum", "What is 47 + 85?", False),
    ("sum, thinking", "What is 47 + 85?", True),
    ("difference", "What is 62 - 38?", True),
    ("product", "What is 7 * 8?", False),
    ("unknown", "Who won the world cup in 1998?", False),
    ("explanation", "What is Mamba?", False),
    ("list", "Name three fruits.", False),
    ("code", "Write hello world in Rust.", False),
    ("poem", "Write a poem about a cat.", False),
    ("story", "Tell me a short story.", False),
    ("story, thinking", "Tell me a story about a robot.", True),
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "City name"}},
            "required": ["location"],
        },
    },
}


def user(text):
    return [{"role": "user", "content": text}]


class Model:
    def __init__(self, folder):
        self.net = load(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def answer(self, prompts, batch=64):
        """Greedy texts, and the (prompt, output) ids behind them."""
        pairs = []
        for start in range(0, len(prompts), batch):
            ids = [self.ids(p) for p in prompts[start : start + batch]]
            pairs += zip(ids, greedy(self.net, ids, LIMIT))
        return [self.text(out) for _, out in pairs], pairs


def split_answer(text, thinking):
    """(thought or None, content) of an output; a thought must be closed."""
    content = text.removesuffix("<|im_end|>")
    if thinking:
        thought, closed, content = content.partition("\n</think>\n")
        return (thought if closed else None), content
    return None, content


def share(hits):
    hits = list(hits)
    return f"{sum(hits)}/{len(hits)}"


def chat_tasks(model, each):
    """Exact answers per task, with and without thinking."""
    exact = [t for t in generate.CHAT if t not in (generate.story, generate.poem, generate.joke)]
    results, forms = {}, []
    for thinking in (False, True):
        asked, prompts = [], []
        for task in exact:
            r = random.Random(f"held out/{task.__name__}/{thinking}")
            for _ in range(each):
                question, thought, answer = task(r)
                turn = generate.turn(question, thought, answer)
                wanted = answer if thinking else turn[1].get("unthought", answer)
                asked.append((task.__name__, question, wanted))
                prompts.append(prompt_text(user(question), thinking=thinking))
        texts, _ = model.answer(prompts)
        for (name, question, wanted), text in zip(asked, texts):
            thought, content = split_answer(text, thinking)
            right = content == wanted
            results.setdefault((name, thinking), []).append(right)
            forms.append(
                (text.endswith("<|im_end|>"), thinking, thought is not None, "<think>" in text or "</think>" in content)
            )
            if not right:
                print(f"  wrong {name}{' (thinking)' if thinking else ''}: {question!r} -> {text!r}, wanted {wanted!r}")
    return results, forms


def capitals(model):
    results = {}
    for thinking in (False, True):
        prompts = [prompt_text(user(f"What is the capital of {c}?"), thinking=thinking) for c in CAPITALS]
        texts, _ = model.answer(prompts)
        results[thinking] = [
            f"is {capital}." in split_answer(t, thinking)[1] for t, (capital, _) in zip(texts, CAPITALS.values())
        ]
    return results


def sums(model, count):
    """Two-digit sums, final number right."""
    results = {}
    for thinking in (False, True):
        r = random.Random(f"held out/sums/{thinking}")
        pairs = [(r.randrange(10, 100), r.randrange(10, 100)) for _ in range(count)]
        texts, _ = model.answer([prompt_text(user(f"What is {a} + {b}?"), thinking=thinking) for a, b in pairs])
        results[thinking] = [
            split_answer(t, thinking)[1].endswith(f"{a} + {b} = {a + b}.") for t, (a, b) in zip(texts, pairs)
        ]
    return results


def calls_in(text):
    return [
        (name, PARAMETER.findall(body))
        for name, body in re.findall(r"<function=([^\n>]+)>\n(.*?)</function>", text, re.DOTALL)
    ]


def tool_calls(model, count):
    """Requests that need a call: form, names, arguments; and those that need none."""
    results = {
        name: []
        for name in (
            "well formed",
            "tool name",
            "arguments",
            "arguments of named tools",
            "arguments of random tools",
            "no needless call",
        )
    }
    for thinking in (False, True):
        r = random.Random(f"held out/tools/{thinking}")
        asked = []
        while len(asked) < count:
            tools, messages = generate.tool_document(r)
            asked.append((tools, messages[:1], messages[1].get("tool_calls", [])))
        texts, _ = model.answer([prompt_text(m, tools, thinking) for tools, m, _ in asked])
        for (tools, messages, wanted), text in zip(asked, texts):
            _, content = split_answer(text, thinking)
            if not wanted:
                results["no needless call"].append("<tool_call>" not in content)
                continue
            got = calls_in(content)
            expected = [
                (c["function"]["name"], [(k, str(v)) for k, v in c["function"]["arguments"].items()]) for c in wanted
            ]
            results["well formed"].append(bool(CALL.fullmatch(content if content.startswith("\n") or thinking else "")))
            results["tool name"].append([n for n, _ in got] == [n for n, _ in expected])
            results["arguments"].append(got == expected)
            fixed = re.match(
                "get_(current_)?(weather|time)|calculat|set_timer|send_message|search|web_search", expected[0][0]
            )
            results[f"arguments of {'named' if fixed else 'random'} tools"].append(got == expected)
            if got != expected:
                print(f"  wrong call: {messages[0]['content']!r} -> {text!r}")
    return results


def tool_answers(model, count):
    """After a tool's result: the final answer."""
    right = []
    for thinking in (False, True):
        r = random.Random(f"held out/results/{thinking}")
        asked = []
        while len(asked) < count:
            tools, messages = generate.tool_document(r)
            if messages[-1]["role"] == "assistant" and len(messages) > 2:
                kept = (
                    messages[:-1]
                    if thinking
                    else [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages[:-1]]
                )
                asked.append((tools, kept, messages[-1]["content"]))
        texts, _ = model.answer([prompt_text(m, t, thinking) for t, m, _ in asked])
        right += [split_answer(text, thinking)[1] == wanted for text, (_, _, wanted) in zip(texts, asked)]
    return right


def stories(model, count):
    """Two names from start to end, and a proper end."""
    kept = []
    r = random.Random("held out/stories")
    texts, pairs = model.answer([prompt_text(user(generate.story(r)[0])) for _ in range(count)])
    for text in texts:
        names = set(re.findall(r"[A-Z][a-z]+", text)) & set(PEOPLE)
        kept.append(len(names) == 2 and text.endswith("The end.<|im_end|>"))
    return kept, pairs


def names(model, count):
    """A name told in one turn, asked for in a later one."""
    r = random.Random("held out/names")
    asked = [generate.name_memory(r) for _ in range(count)]
    prompts = []
    for (told, _, greeting), (question, _, _) in asked:
        prompts.append(prompt_text(user(told) + [{"role": "assistant", "content": greeting}] + user(question)))
    texts, _ = model.answer(prompts)
    return [split_answer(t, False)[1] == a[1][2] for t, a in zip(texts, asked)]


@torch.no_grad()
def draft_acceptance(model, pairs):
    """How often the draft block guesses the greedy token after next."""
    hits = total = 0
    for prompt, out in pairs:
        ids = torch.tensor([prompt + out])
        hidden = model.net.backbone(ids)
        drafts = model.net.lm_head(model.net.draft_hidden(ids, hidden))[0].argmax(-1)
        # drafts[i] guesses ids[i + 2]; count only guesses about the output.
        first = len(prompt) - 1
        hits += (drafts[first : ids.shape[1] - 2] == ids[0, first + 2 :]).sum().item()
        total += ids.shape[1] - 2 - first
    return hits, total


@torch.no_grad()
def busiest_experts(model, count=200):
    """Per router, the busiest expert's load over the mean."""
    for router in model.net.routers():
        router.load.zero_()
    model.net.train()
    for doc in generate.documents("held out/load", count):
        ids = torch.tensor([encode(doc, model.tokenizer)[0]])
        model.net.draft_hidden(ids, model.net.backbone(ids))
    model.net.eval()
    return [(r.load.max() / r.load.mean()).item() for r in model.net.routers()]


def template_agrees(folder, count=500):
    """The shipped template renders every training document to the same bytes,
    and encoding in pieces gives the same tokens as encoding the whole."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for doc in generate.documents("held out/template", count):
        text = "".join(t for t, _ in pieces(doc))
        rendered = tokenizer.apply_chat_template(
            doc["messages"], tools=doc["tools"] or None, tokenize=False, low_effort=doc["low_effort"]
        )
        if rendered != text or encode(doc, raw)[0] != raw.encode(text, add_special_tokens=False).ids:
            return False
    return True


def transformers_agrees(folder, samples):
    """The same greedy tokens from the reference implementation."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    same = []
    for sample in samples:
        ids = torch.tensor([sample["prompt_ids"]])
        with torch.no_grad():
            out = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, eos_token_id=[2, 11]
            )
        same.append(out[0, ids.shape[1] :].tolist() == sample["output_ids"])
    return same


def write_samples(model, path):
    asked = [(name, user(text), [], thinking) for name, text, thinking in SAMPLES]
    asked.append(("tool call", user("What is the weather in Paris?"), [WEATHER], False))
    asked.append(("tool call, thinking", user("What is the weather in Tokyo?"), [WEATHER], True))
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"location": "Oslo"}}}],
    }
    result = {"role": "tool", "content": '{"temperature": -3, "condition": "snowy"}'}
    asked.append(("tool result", user("What is the weather in Oslo?") + [called, result], [WEATHER], False))
    told = (
        user("My name is Grace.")
        + [{"role": "assistant", "content": "Nice to meet you, Grace!"}]
        + user("What is my name?")
    )
    asked.append(("name", told, [], False))
    prompts = [prompt_text(messages, tools, thinking) for _, messages, tools, thinking in asked]
    texts, pairs = model.answer(prompts)
    samples = [
        {
            "name": name,
            "messages": messages,
            "tools": tools,
            "enable_thinking": thinking,
            "prompt": prompt,
            "prompt_ids": ids,
            "output": text,
            "output_ids": out,
        }
        for (name, messages, tools, thinking), prompt, text, (ids, out) in zip(asked, prompts, texts, pairs)
    ]
    path.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n")
    return samples, pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "model")
    parser.add_argument("--samples", type=Path, default=Path("greedy_samples.json"))
    parser.add_argument("--each", type=int, default=20, help="questions per task and mode")
    parser.add_argument("--skip-transformers", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(args.model)

    samples, pairs = write_samples(model, args.samples)
    for sample in samples:
        print(f"{sample['name']}: {sample['output']!r}")
    results, forms = chat_tasks(model, args.each)
    for (name, thinking), hits in results.items():
        print(f"{name}{', thinking' if thinking else ''}: {share(hits)}")
    print("answers that end:", share(end for end, *_ in forms))
    print("thinking closed when on:", share(closed for _, on, closed, _ in forms if on))
    print("no thinking when off:", share(not stray for _, on, _, stray in forms if not on))
    for thinking, hits in capitals(model).items():
        print(f"all capitals{', thinking' if thinking else ''}: {share(hits)}")
    for thinking, hits in sums(model, 3 * args.each).items():
        print(f"two-digit sums{', thinking' if thinking else ''}: {share(hits)}")
    for name, hits in tool_calls(model, 3 * args.each).items():
        print(f"tools, {name}: {share(hits)}")
    print("answers from tool results:", share(tool_answers(model, args.each)))
    print("names remembered:", share(names(model, args.each)))
    kept, story_pairs = stories(model, args.each)
    print("stories that keep two names and end:", share(kept))
    hits, total = draft_acceptance(model, pairs + story_pairs)
    print(f"drafts accepted, one token, greedy: {hits}/{total} = {hits / total:.1%}")
    print("busiest expert, times its share:", ", ".join(f"{x:.2f}" for x in busiest_experts(model)))
    if not args.skip_transformers:
        print("chat template agrees with training text:", template_agrees(args.model))
        print("samples equal in transformers:", share(transformers_agrees(args.model, samples)))


if __name__ == "__main__":
    main()
