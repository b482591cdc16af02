"""Time to first token of each turn of a conversation, beside its floor.

python3 benches/turns.py target/release/nemoserve [--history 8192,65536] [--streams 1,16] [--turns 20]
                         [-- flags of serve, such as --model DIR --load-format dummy]

A turn's floor: a cold prompt of as many tokens as the turn has new ones, sent right after it, plus what attention of
those tokens over the history takes (`nemoserve bench attention`). With several streams all ask at once, and so do the
cold prompts. The conversations of a run begin with one long document and part after it.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

ADDRESS = "127.0.0.1:18319"
WORDS = "river stone bridge the green of a lantern under seven market north quiet paper window and".split()
MODEL = "turns"
ANSWER_TOKENS = 24


def words(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def post(path, body):
    request = urllib.request.Request(
        f"http://{ADDRESS}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request)


def ask(out, messages, thinking, salt=""):
    """One streamed chat completion: seconds to its first token, its answer, its usage."""
    body = {
        "model": MODEL, "messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}, "cache_salt": salt,
        "chat_template_kwargs": {"enable_thinking": thinking},
    }
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{ADDRESS}/v1/chat/completions", data, {"content-type": "application/json"}
    )
    begin, first, text, usage = time.perf_counter(), None, "", None
    for line in urllib.request.urlopen(request):
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            said = (delta.get("content") or "") + (delta.get("reasoning_content") or delta.get("reasoning") or "")
            if said and first is None:
                first = time.perf_counter() - begin
            text += delta.get("content") or ""
    out.append((first or time.perf_counter() - begin, text, usage))


def all_at_once(calls):
    outs = [[] for _ in calls]
    threads = [threading.Thread(target=ask, args=(out, *call)) for call, out in zip(calls, outs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [out[0] for out in outs]


def attention_ms(binary, flags, tokens, context):
    command = [binary, "bench", "--json", "attention", "--tokens", str(tokens), "--context", str(context), *flags]
    return json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))["rows"][0]["ms"]


def converse(args, history, streams, thinking):
    """Medians over the turns and streams: new tokens, time to first token, the cold prompt's."""
    # One document for all runs at a length: only the first of them reads it.
    document = words(random.Random(history), int(history / args.tokens_per_word))
    rng = random.Random(history + streams)
    talks = [[{"role": "system", "content": document}] for _ in range(streams)]
    news, times, colds, cached, prompts = [], [], [], 0, 0
    for turn in range(args.turns + 1):
        for talk in talks:
            talk.append({"role": "user", "content": words(rng, args.new_words)})
        got = all_at_once([(talk, thinking) for talk in talks])
        for talk, (_, text, _) in zip(talks, got):
            talk.append({"role": "assistant", "content": text})
        if turn == 0:
            # The document is read now, and the branch point behind it known.
            continue
        usages = [usage for _, _, usage in got]
        hits = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
        new = [usage["prompt_tokens"] - hit for usage, hit in zip(usages, hits)]
        cached, prompts = cached + sum(hits), prompts + sum(usage["prompt_tokens"] for usage in usages)
        news += new
        times += [first for first, _, _ in got]
        # As many tokens, cold: a lone message of the right length under a salt of its own.
        short = [
            ([{"role": "user", "content": words(rng, max(1, int((count - args.overhead) / args.tokens_per_word)))}], thinking)
            for count in new
        ]
        salted = [(*call, f"{turn} {at}") for at, call in enumerate(short)]
        colds += [first for first, _, _ in all_at_once(salted)]
    return statistics.median(news), statistics.median(times), statistics.median(colds), cached / prompts


def main():
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--history", default="8192,65536")
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--new-words", type=int, default=64)
    parser.add_argument("--drafts", default="0,auto")
    parser.add_argument("--thinking", default="off,on")
    args = parser.parse_args(own)
    histories = [int(tokens) for tokens in args.history.split(",")]
    print("| history | streams | drafts | thinking | new tokens | TTFT, ms | cold, ms | attention, ms | times the floor | cached |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for drafts in args.drafts.split(","):
        longest = max(histories) + 64 * 1024
        command = [
            args.binary, "serve", "--listen", ADDRESS, "--speculative-tokens", drafts,
            "--max-model-len", str(longest), "--max-num-seqs", "16", "--served-model-name", MODEL, *flags,
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open("/tmp/turns.log", "w"))
        try:
            while True:
                assert server.poll() is None, "the server ended: see /tmp/turns.log"
                try:
                    urllib.request.urlopen(f"http://{ADDRESS}/ready")
                    break
                except OSError:
                    time.sleep(0.05)
            count = lambda text: len(json.load(post("/tokenize", {"model": MODEL, "prompt": text}))["tokens"])
            sample = words(random.Random(1), 2000)
            args.tokens_per_word = count(sample) / 2000
            out = []
            ask(out, [{"role": "user", "content": "a"}], False)
            args.overhead = out[0][2]["prompt_tokens"] - 1
            for history in histories:
                for streams in [int(count) for count in args.streams.split(",")]:
                    for thinking in args.thinking.split(","):
                        new, first, cold, cached = converse(args, history, streams, thinking == "on")
                        attention = attention_ms(args.binary, flags, int(new), history) * streams
                        floor = 1e3 * cold + attention
                        print(
                            f"| {history} | {streams} | {drafts} | {thinking} | {new:.0f} | {1e3 * first:.1f} | {1e3 * cold:.1f} "
                            f"| {attention:.1f} | {1e3 * first / floor:.2f} | {100 * cached:.1f} % |",
                            flush=True,
                        )
        finally:
            server.terminate()
            server.wait()


main()
