"""lm-eval's numbers against scores asked for directly.

The harness turns text into ids itself, sends batches with `echo` and adds up the log-probabilities
behind the context. Here every score goes another way through the server: its own chat template and
tokenizer make the ids, `prompt_logprobs` brings the numbers, one prompt at a time, and the choice, the
accuracy and the exact match are computed again. Greedy answers are asked for as chat.

Usage: compare.py URL RESULTS_FOLDER
"""

import json
import math
import pathlib
import sys
import urllib.request

url, results = sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2])
MODEL = "nvidia/nemotron-3-super-120b-a12b"
# Sums of the same f32 numbers, in whatever order.
TOLERANCE = 1e-4


def post(path, **body):
    request = urllib.request.Request(url + path, json.dumps({"model": MODEL, **body}).encode())
    return json.load(urllib.request.urlopen(request))


def samples(task):
    (path,) = results.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def totals(task):
    (path,) = results.rglob("results_*.json")
    return json.loads(path.read_text())["results"][task]


def question(doc):
    return {
        "messages": [{"role": "user", "content": f"What is the capital of {doc['country']}?"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }


def score(doc, choice):
    """(sum of log-probabilities, whether every token of the choice is the likeliest)."""
    prompt = post("/tokenize", **question(doc))["tokens"]
    given = f"The capital of {doc['country']} is"
    num_given = len(post("/tokenize", prompt=given)["tokens"])
    words = post("/tokenize", prompt=f"{given} {choice}")["tokens"]
    ids, num = prompt + words, len(words) - num_given
    answer = post("/v1/completions", prompt=ids, max_tokens=0, prompt_logprobs=1)
    entries = answer["choices"][0]["prompt_logprobs"][-num:]
    mine = [entry[str(token)] for token, entry in zip(ids[-num:], entries, strict=True)]
    return sum(one["logprob"] for one in mine), all(one["rank"] == 1 for one in mine)


def check_scores():
    task, num_scores, widest, hits = "nemoserve_capitals", 0, 0.0, 0
    for sample in samples(task):
        doc = sample["doc"]
        direct = [score(doc, choice) for choice in doc["choices"]]
        for (total, greedy), (theirs, their_greedy) in zip(direct, sample["filtered_resps"], strict=True):
            difference = abs(total - float(theirs))
            widest = max(widest, difference)
            assert difference <= TOLERANCE, (doc, total, theirs)
            assert str(greedy) == str(their_greedy), (doc, greedy, their_greedy)
            num_scores += 1
        best = max(range(len(direct)), key=lambda i: direct[i][0])
        hits += best == doc["answer"]
        assert sample["acc"] == float(best == doc["answer"]), doc
    accuracy = totals(task)["acc,none"]
    num = len(samples(task))
    assert math.isclose(accuracy, hits / num), (accuracy, hits)
    # A model that knows its capitals: far from the 0.25 of guessing.
    assert accuracy >= 0.6, accuracy
    print(f"ok     lm-eval: {num_scores} log-likelihoods as by prompt_logprobs (within {widest:.1e}), accuracy {accuracy}")


def check_answers():
    task, hits = "nemoserve_answers", 0
    for sample in samples(task):
        doc = sample["doc"]
        answer = post("/v1/chat/completions", temperature=0, max_tokens=40, stop=["\n"], **question(doc))
        text = answer["choices"][0]["message"]["content"]
        assert sample["filtered_resps"] == [text], (sample["filtered_resps"], text)
        hits += text == f"The capital of {doc['country']} is {doc['choices'][doc['answer']]}."
    num = len(samples(task))
    exact = totals(task)["exact_match,none"]
    assert math.isclose(exact, hits / num), (exact, hits)
    print(f"ok     lm-eval: {num} greedy answers as by chat, exact match {exact}")


check_scores()
check_answers()
