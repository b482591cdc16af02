"""Drafts on the demo model: tokens/s, CPU per token and drafts that came true, by --speculative-tokens.

python3 benches/speculative.py target/release/nemoserve
"""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request

ADDRESS = "127.0.0.1:18317"
PROMPTS = [
    "Tell me a short story.",
    "What is the capital of France?",
    "Tell me a story about a fox.",
    "What is the capital of Japan?",
]


def ask(prompt, answers):
    body = {
        "model": "nemoserve-demo", "max_tokens": 200, "temperature": 0, "ignore_eos": True,
        "messages": [{"role": "user", "content": prompt}],
    }
    request = urllib.request.Request(
        f"http://{ADDRESS}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    answers.append(json.load(urllib.request.urlopen(request))["usage"])


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def measure(pid, num_streams, num_rounds):
    answers, start, cpu = [], time.time(), cpu_seconds(pid)
    for round in range(num_rounds):
        prompts = [PROMPTS[(stream + round) % len(PROMPTS)] for stream in range(num_streams)]
        threads = [threading.Thread(target=ask, args=(prompt, answers)) for prompt in prompts]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    seconds, cpu = time.time() - start, cpu_seconds(pid) - cpu
    count = lambda name: sum(a.get("completion_tokens_details", {}).get(name) or 0 for a in answers)
    tokens = sum(answer["completion_tokens"] for answer in answers)
    right, wrong = count("accepted_prediction_tokens"), count("rejected_prediction_tokens")
    print(f"| {num_streams} | {tokens / seconds:.0f} | {1e3 * cpu / tokens:.2f} | {right} of {right + wrong} |", flush=True)


for drafts in ["0", "1", "3", "5", "auto"]:
    command = [sys.argv[1], "serve", "--listen", ADDRESS, "--speculative-tokens", drafts]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(f"http://{ADDRESS}/ready")
                break
            except OSError:
                time.sleep(0.1)
        print(f"\n--speculative-tokens {drafts}\n\n| streams | tokens/s | CPU ms/token | drafts came true |\n|---|---|---|---|")
        ask("Hello.", [])
        measure(server.pid, 1, 4)
        measure(server.pid, 16, 1)
    finally:
        server.terminate()
        server.wait()
