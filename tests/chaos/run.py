#!/usr/bin/env python3
"""Everything at once against the real daemon, and then: has anything leaked, has anybody else noticed?

Usage: run.py PATH/TO/nemoserve [--seconds 60] [--seed N] [--max-scrape-ms 500] [--keep-log FILE]
       1800 seconds make the long run. A failure prints its seed.

Clients that leave, read slowly or not at all, flood, send nonsense, half-close and dawdle, on a cache
that is too small for them, so that sequences are preempted; every while a `kill -9`. Witnesses ask the
same questions all the time and must get, to the letter, what they got when they were alone. After every
life of the daemon: no block, slot, request or connection is held, and descriptors, threads and memory
are where they were. Every scrape of /metrics meanwhile took less than --max-scrape-ms, which allows for a
build for development on a busy machine; benches/overload.py holds a release build to 50 ms.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import FAULTS, Client

# Room for a handful of sequences of the demo: those that are asked for need more.
FLAGS = ["--max-num-seqs", "8", "--max-queue", "24", "--max-body", "256KiB", "--cache-memory", "3MiB",
         "--log-format", "json", "--log", "warn", "--drain-seconds", "5",
         # What is recorded of steps would grow for an hour, to 64 MiB.
         "--flight-memory", "1MiB"]
NUM_ANTAGONISTS = 10
NUM_WITNESSES = 3
# One life of the daemon in a long run, and the share of it that counts as warming up.
LIFE_SECONDS = 300
PATIENCE = 60
# What must not be more than before.
COUNTED = ["descriptors", "threads"]
THREAD_SECONDS = 20


def questions():
    """What witnesses ask: both endpoints, greedy and seeded, whole and streamed."""
    asked = []
    for number, text in enumerate(["Once upon a time", "The capital of Peru is", "1, 2, 3,", "def f(x):"]):
        base = {"model": "nemoserve-demo", "max_tokens": 16 + 8 * number}
        drawn = {"temperature": 0} if number % 2 else {"temperature": 0.9, "seed": number}
        asked.append(("/v1/completions", base | drawn | {"prompt": text * (1 + 10 * number)}))
        chat = {"messages": [{"role": "user", "content": text}], "stream": number < 2}
        asked.append(("/v1/chat/completions", base | drawn | chat))
    return asked


def said(body):
    """All that an answer says, whether it was streamed or not."""
    texts = []
    if body.lstrip().startswith(b"{"):
        events = [json.loads(body)]
    else:
        lines = [line[5:].strip() for line in body.decode().splitlines() if line.startswith("data:")]
        assert lines and lines[-1] == "[DONE]", f"a stream without an end: {body[-200:]!r}"
        events = [json.loads(line) for line in lines[:-1]]
    for event in events:
        assert "error" not in event, event
        for choice in event["choices"]:
            part = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
            texts.append((part.get("reasoning_content") or "", part.get("content") or ""))
    return "".join(text for text, _ in texts), "".join(text for _, text in texts)


class Daemon:
    """One life of the daemon."""

    def __init__(self, binary, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        begin = time.monotonic()
        self.process = subprocess.Popen(
            [binary, "serve", "--listen", f"127.0.0.1:{self.port}", *FLAGS],
            stdout=log, stderr=log, env={k: v for k, v in os.environ.items() if not k.startswith("NEMOSERVE_")})
        self.client = Client(self.port)
        self.begin = begin

    async def ready(self):
        while True:
            assert self.process.poll() is None, f"it ended by itself: {self.process.returncode}"
            try:
                status, _, _ = await self.client.request("GET", "/ready")
                if status == 200:
                    return time.monotonic() - self.begin
            except OSError:
                pass
            assert time.monotonic() - self.begin < PATIENCE, "it never gets ready"
            await asyncio.sleep(0.01)

    def vitals(self):
        pid = self.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        field = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])
        return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": field("Threads"),
                "rss_mib": field("VmRSS") / 1024}

    async def settled(self, before):
        """Threads for what blocks end when they have had nothing to do for ten seconds."""
        deadline = time.monotonic() + THREAD_SECONDS
        while True:
            after = self.vitals()
            if all(after[what] <= before[what] for what in COUNTED) or time.monotonic() > deadline:
                return after
            await asyncio.sleep(0.1)

    async def metrics(self):
        begin = time.monotonic()
        status, _, body = await self.client.request("GET", "/metrics")
        took = time.monotonic() - begin
        assert status == 200, f"/metrics answered {status}"
        samples = {}
        for line in body.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
        return samples, took

    async def rest(self):
        """Waits until nobody is served any more, then looks at what is still held."""
        deadline = time.monotonic() + PATIENCE
        while True:
            samples, _ = await self.metrics()
            status, _, body = await self.client.request("GET", "/debug/cache")
            assert status == 200, body
            cache = json.loads(body)
            held = {
                "running": samples["nemoserve_requests_running"],
                "waiting": samples["nemoserve_requests_waiting"],
                # The request that asks is one, and its connection.
                "in flight": samples["nemoserve_http_requests_in_flight"] - 1,
                "connections": samples["nemoserve_connections_open"] - 1,
                "blocks": cache["blocks"]["used"],
                "slots": cache["slots"]["used"],
            }
            if not any(held.values()):
                for pool in ("blocks", "slots"):
                    counts = cache[pool]
                    assert counts["cached"] <= counts["total"], counts
                return samples
            assert time.monotonic() < deadline, f"never let go: {held}"
            await asyncio.sleep(0.05)

    def kill(self):
        self.process.kill()
        assert self.process.wait(PATIENCE) == -signal.SIGKILL

    def stop(self):
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        assert code == 0, f"SIGTERM: exit {code}"


class Run:
    def __init__(self, args):
        self.args = args
        self.counts = Counter()
        self.scrapes = []
        self.starts = []
        self.expected = None

    async def learn(self, daemon):
        """What each question is answered when nobody else is there, twice."""
        expected = []
        for path, body in questions():
            answers = set()
            for _ in range(2):
                status, _, answer = await daemon.client.request("POST", path, body)
                assert status == 200, answer
                answers.add(said(answer))
            assert len(answers) == 1, f"{path} {body}: {answers}"
            expected.append(answers.pop())
        if self.expected is None:
            self.expected = expected
        assert self.expected == expected, "another life, other answers"

    async def witness(self, daemon, rng, until):
        asked = list(zip(questions(), self.expected))
        while time.monotonic() < until:
            (path, body), expected = rng.choice(asked)
            status, headers, answer = await daemon.client.request("POST", path, body, patience=PATIENCE)
            if status in (429, 503):
                assert "retry-after" in headers, headers
                self.counts["witness told to wait"] += 1
                await asyncio.sleep(0.05)
                continue
            assert status == 200, (status, answer)
            assert said(answer) == expected, f"{path} {body}: {said(answer)}, not {expected}"
            self.counts["witness answered as alone"] += 1

    async def antagonist(self, daemon, rng, until):
        while time.monotonic() < until:
            fault = rng.choice(FAULTS)
            await fault(daemon.client, rng, self.counts)
            self.counts[fault.__name__] += 1

    async def scraper(self, daemon, until):
        while time.monotonic() < until:
            _, took = await daemon.metrics()
            self.scrapes.append(took)
            status, _, body = await daemon.client.request("GET", "/health")
            assert status == 200, f"/health: {status} {body}"
            await asyncio.sleep(0.3)

    async def storm(self, daemon, number, seconds):
        until = time.monotonic() + seconds
        seed = lambda who: random.Random(f"{self.args.seed} {number} {who}")
        tasks = [self.antagonist(daemon, seed(f"a{i}"), until) for i in range(NUM_ANTAGONISTS)]
        tasks += [self.witness(daemon, seed(f"w{i}"), until) for i in range(NUM_WITNESSES)]
        tasks.append(self.scraper(daemon, until))
        async with asyncio.timeout(seconds + 2 * PATIENCE):
            await asyncio.gather(*tasks)

    async def live(self, binary, log, number, seconds, is_last):
        daemon = Daemon(binary, log)
        try:
            self.starts.append(await daemon.ready())
            await self.learn(daemon)
            # Threads, buffers and caches that are made once are made now.
            await self.storm(daemon, f"{number} warm", seconds / 3)
            await daemon.rest()
            before = daemon.vitals()
            await self.storm(daemon, number, 2 * seconds / 3)
            samples = await daemon.rest()
            after = await daemon.settled(before)
            for key in ("nemoserve_preemptions_total", "nemoserve_requests_cancelled_total"):
                self.counts[key] += int(samples[key])
            print(f"life {number}: {before} -> {after}", flush=True)
            for what in COUNTED:
                assert after[what] <= before[what], f"{what}: {before[what]} before, {after[what]} after"
            room = 1.1 * before["rss_mib"] + 16
            assert after["rss_mib"] <= room, f"memory: {before['rss_mib']:.0f} MiB before, {after['rss_mib']:.0f} after"
            if is_last:
                daemon.stop()
            else:
                # In the middle of work, not after it.
                storm = asyncio.create_task(self.storm(daemon, f"{number} end", 1))
                await asyncio.sleep(0.5)
                daemon.kill()
                await asyncio.gather(storm, return_exceptions=True)
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()

    async def all(self, binary, log):
        seconds = self.args.seconds
        num_lives = max(2, round(seconds / LIFE_SECONDS))
        for number in range(num_lives):
            await self.live(binary, log, number, seconds / num_lives, number + 1 == num_lives)

    def report(self, log):
        text = log.read_text(errors="replace")
        assert "panicked" not in text, text[text.index("panicked") - 500:][:2000]
        for name in [fault.__name__ for fault in FAULTS] + [
                "witness answered as alone", "nemoserve_preemptions_total",
                "nemoserve_requests_cancelled_total", "status 429"]:
            assert self.counts[name] > 0, f"{name} never happened: this run shows nothing about it"
        scrapes, limit = sorted(self.scrapes), self.args.max_scrape_ms
        longest = 1e3 * scrapes[-1]
        assert longest < limit, f"a scrape took {longest:.0f} ms, the limit is {limit:.0f} ms"
        print(json.dumps({
            "seed": self.args.seed, "seconds": self.args.seconds, "counts": dict(sorted(self.counts.items())),
            "scrape_ms": {"p50": round(1e3 * scrapes[len(scrapes) // 2], 1),
                          "p99": round(1e3 * scrapes[len(scrapes) * 99 // 100], 1), "longest": round(longest, 1),
                          "limit": limit, "of": len(scrapes)},
            "kill_to_ready_s": [round(start, 3) for start in self.starts[1:]],
        }, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--max-scrape-ms", type=float, default=500)
    parser.add_argument("--keep-log", type=Path)
    args = parser.parse_args()
    print(f"chaos: seed {args.seed}, {args.seconds:.0f} s", flush=True)
    run = Run(args)
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep_log or Path(folder) / "log"
        try:
            with open(path, "wb") as log:
                asyncio.run(run.all(args.binary, log))
            run.report(path)
        except BaseException as error:
            print(f"chaos: seed {args.seed}: {error!r}", file=sys.stderr)
            print(json.dumps(dict(run.counts), indent=1), file=sys.stderr)
            print(path.read_text(errors="replace")[-3000:], file=sys.stderr)
            raise
    print("chaos: nothing leaked, nobody noticed")


if __name__ == "__main__":
    main()
