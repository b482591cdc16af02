"""What others notice of one who floods, how a refusal is timed, a scrape meanwhile, and a drain at the end.

python3 benches/overload.py target/release/nemoserve [--seconds 20] [--max-scrape-ms 50] [-- flags of serve]

Four calm keys each have one request in flight and rest between them; then a fifth keeps 40 in flight, ten times as
many as they have together, and comes again as soon as it is refused. Time to first token of the calm ones alone and
beside it; what the flood was answered; /metrics on a fresh connection all the while, read by another process; the
server's own nemoserve_refusal_seconds; and SIGTERM while all of it runs. Clients run on the same cores. Fails if any
scrape took --max-scrape-ms or longer.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter

PORT = 18331
CALM = [f"calm-{number}" for number in range(4)]
FLOODING = 40
TEXT = "Once upon a time there was a little fox who lived by the river and wanted to see the sea. "


async def ask(key, number, num_tokens=32):
    """A streamed completion: status, seconds to the first text or refusal, how it ended."""
    body = {
        "model": "nemoserve-demo", "prompt": f"{number} {TEXT * 3}", "max_tokens": num_tokens, "ignore_eos": True,
        "temperature": 0, "stream": True,
    }
    body = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    try:
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        if status != 200:
            return status, time.perf_counter() - begin, "refused"
        first, end = None, "cut"
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                end = "done"
                break
            event = json.loads(line[6:])
            if "error" in event:
                end = "told"
                break
            if first is None and any(choice.get("text") for choice in event["choices"]):
                first = time.perf_counter() - begin
        return status, first, end
    finally:
        writer.close()


async def calm(key, until, times):
    number = 0
    while time.perf_counter() < until:
        number += 1
        status, first, _ = await ask(key, f"{key} {number}")
        assert status == 200, f"{key} was answered {status}"
        times.append(first)
        await asyncio.sleep(0.05)


async def flood(number, until, tally, refusals):
    count = 0
    while time.perf_counter() < until:
        count += 1
        status, took, end = await ask("flood", f"{number} {count}", 200)
        tally[status] += 1
        if end == "refused":
            refusals.append(took)
            await asyncio.sleep(0.05)


def generate(seconds, flooding, results):
    """In a process of its own."""

    async def run():
        until = time.perf_counter() + seconds
        times, refusals, tally = [], [], Counter()
        tasks = [calm(key, until, times) for key in CALM]
        tasks += [flood(number, until, tally, refusals) for number in range(flooding)]
        await asyncio.gather(*tasks)
        results.put((times, refusals, dict(tally)))

    asyncio.run(run())


def drain(results):
    async def run():
        results.put([end for _, _, end in await asyncio.gather(*(ask("flood", number, 3000) for number in range(16)))])

    asyncio.run(run())


def get(path):
    return urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}").read().decode()


def percentile(values, percent):
    ordered = sorted(values)
    return 1e3 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def told(name, values):
    print(f"| {name} | {len(values)} | {percentile(values, 50):.1f} | {percentile(values, 99):.1f} | {1e3 * max(values):.1f} |")


def phase(seconds, flooding):
    """Runs the clients, and reads /metrics while they run."""
    results, scrapes = multiprocessing.Queue(), []
    clients = multiprocessing.Process(target=generate, args=(seconds, flooding, results))
    clients.start()
    while results.empty():
        assert clients.is_alive() or not results.empty(), "the clients failed"
        begin = time.perf_counter()
        get("/metrics")
        scrapes.append(time.perf_counter() - begin)
        time.sleep(0.1)
    got = results.get()
    clients.join()
    return *got, scrapes


def main():
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--max-scrape-ms", type=float, default=50, help="of a release build [default: 50]")
    args = parser.parse_args(own)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as keys:
        for name in [*CALM, "flood"]:
            keys.write(f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n')
        keys.flush()
        os.chmod(keys.name, 0o600)
        command = [args.binary, "serve", "--listen", f"127.0.0.1:{PORT}", "--api-key-file", keys.name, "--max-num-seqs", "16"]
        server = subprocess.Popen([*command, "--max-queue", "24", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                assert server.poll() is None, "the server ended"
                try:
                    get("/ready")
                    break
                except OSError:
                    time.sleep(0.05)
            phase(2, 0)
            alone, _, _, _ = phase(args.seconds, 0)
            beside, refusals, tally, scrapes = phase(args.seconds, FLOODING)
            metrics = dict(line.rsplit(" ", 1) for line in get("/metrics").splitlines() if not line.startswith("#"))
            results = multiprocessing.Queue()
            clients = multiprocessing.Process(target=drain, args=(results,))
            clients.start()
            time.sleep(1.0)
            begin = time.perf_counter()
            server.send_signal(signal.SIGTERM)
            code = server.wait()
            drained = time.perf_counter() - begin
            ends = Counter(results.get())
        finally:
            server.kill()
            server.wait()
    print("| | number | p50, ms | p99, ms | longest, ms |\n|---|---|---|---|---|")
    told("time to first token, calm keys alone", alone)
    told("the same beside the flood", beside)
    if refusals:
        told("the flood's refusals, as it sees them", refusals)
    told("/metrics meanwhile, each on a fresh connection", scrapes)
    print(f"\np99 beside the flood over alone: {percentile(beside, 99) / percentile(alone, 99):.2f}; the flood was answered {tally}")
    within = metrics.get('nemoserve_refusal_seconds_bucket{le="0.001"}')
    print(f"refusals that the server took at most 1 ms for: {within} of {metrics.get('nemoserve_refusal_seconds_count')}")
    print(f"SIGTERM with 16 streams: exit {code} after {drained:.1f} s, streams ended {dict(ends)}")
    longest = 1e3 * max(scrapes)
    assert longest < args.max_scrape_ms, f"a scrape took {longest:.1f} ms, less than {args.max_scrape_ms:g} is the promise"
    print(f"every scrape took less than {args.max_scrape_ms:g} ms")


if __name__ == "__main__":
    main()
