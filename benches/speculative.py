"""Drafts on the demo model, or on the same shape with random weights (no draft comes true).

python3 benches/speculative.py target/release/nemoserve [--random] [--past-the-end] [--rounds 5] [--drafts 0,1,3,5,auto]

A server for each number of drafts, all at once; in each round each answers the same prompts in turn, so
that whatever else the machine does hits all of them alike. Medians of the rounds, by time and by CPU time
(of all threads), beside the first. Answers end where the model ends them; --past-the-end goes on to 200
tokens, into what no user sees.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import threading
import time
import urllib.request

PORT = 18317
DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../server/demo/model")
PROMPTS = [
    "Tell me a short story.",
    "Tell me a story about a fox.",
    "Tell me a story about a dragon.",
    "Tell me a story about a happy bird.",
]


class Server:
    def __init__(self, args, drafts, port):
        self.drafts, self.address = drafts, f"127.0.0.1:{port}"
        command = [args.binary, "serve", "--listen", self.address, "--speculative-tokens", drafts]
        if args.random:
            command += ["--model", DEMO, "--load-format", "dummy"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            assert self.process.poll() is None, f"{' '.join(command)} ended"
            try:
                self.get("/ready")
                break
            except OSError:
                time.sleep(0.1)
        self.model = json.loads(self.get("/v1/models"))["data"][0]["id"]

    def get(self, path):
        return urllib.request.urlopen(f"http://{self.address}{path}").read().decode()

    def ask(self, body, answers):
        body = {"model": self.model, **body}
        request = urllib.request.Request(
            f"http://{self.address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        answers.append(json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"])

    def cpu_seconds(self):
        threads = glob.glob(f"/proc/{self.process.pid}/task/*/schedstat")
        return sum(int(open(thread).read().split()[0]) for thread in threads) / 1e9

    def accepted(self):
        """Tokens drafted, and accepted by position."""
        drafted, positions = 0, {}
        for line in self.get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("nemoserve_draft_tokens_total"):
                drafted = float(value)
            if name.startswith("nemoserve_drafted_rows_total"):
                positions[""] = float(value)
            if name.startswith("nemoserve_accepted_draft_tokens_by_position_total"):
                positions[name.split('"')[1]] = float(value)
        return drafted, positions

    def round(self, bodies, num_streams):
        answers, start, cpu = [], time.time(), self.cpu_seconds()
        for at in range(0, len(bodies), num_streams):
            threads = [threading.Thread(target=self.ask, args=(body, answers)) for body in bodies[at : at + num_streams]]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        tokens = sum(answers)
        return (time.time() - start) / tokens, (self.cpu_seconds() - cpu) / tokens, tokens


def bodies(args, temperature, num_streams, nth_round):
    count = max(num_streams, len(PROMPTS))
    common = {"max_tokens": 200, "temperature": temperature, "ignore_eos": args.past_the_end}
    return [
        {**common, "seed": 100 * nth_round + at, "messages": [{"role": "user", "content": PROMPTS[at % len(PROMPTS)]}]}
        for at in range(count)
    ]


def measure(args, servers, temperature, num_streams):
    kinds = [server.drafts for server in servers]
    rounds, before = {kind: [] for kind in kinds}, {server.drafts: server.accepted() for server in servers}
    for nth in range(args.rounds + 1):
        for server in servers:
            measured = server.round(bodies(args, temperature, num_streams, nth), num_streams)
            # The first warms caches.
            if nth > 0:
                rounds[server.drafts].append(measured)
    middle = lambda kind, what: statistics.median(measured[what] for measured in rounds[kind])
    for server in servers:
        kind, (_, old), (_, new) = server.drafts, before[server.drafts], server.accepted()
        rows = new.get("", 0) - old.get("", 0)
        rates = [
            f"{100 * (new[position] - old.get(position, 0)) / rows:.0f}"
            for position in sorted(new)
            if position and rows and new[position] > old.get(position, 0)
        ]
        seconds, cpu = middle(kind, 0), middle(kind, 1)
        first = kinds[0]
        print(
            f"| {temperature} | {num_streams} | {kind} | {1 / seconds:.0f} | {middle(first, 0) / seconds:.2f} "
            f"| {1e3 * cpu:.3f} | {middle(first, 1) / cpu:.2f} | {', '.join(rates) or '-'} |",
            flush=True,
        )


parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("--random", action="store_true")
parser.add_argument("--past-the-end", action="store_true")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--drafts", default="0,1,3,5,auto")
args = parser.parse_args()
servers = []
try:
    for at, drafts in enumerate(args.drafts.split(",")):
        servers.append(Server(args, drafts, PORT + at))
    print("| temperature | streams | drafts | tokens/s | of plain | CPU ms/token | of plain | rows with so many true, % |")
    print("|---|---|---|---|---|---|---|---|")
    for temperature in [0, 0.7]:
        for num_streams in [1, 16]:
            measure(args, servers, temperature, num_streams)
finally:
    for server in servers:
        server.process.terminate()
        server.process.wait()
