"""nemoserve and llama.cpp's server on the same weights, machine and requests, over HTTP, in turns.

python3 benches/against_llama.py --nemoserve target/release/nemoserve --model DIR --llama-server PATH --gguf FILE
    [--threads 2] [--cores 0,1] [--rounds 3] [--only decode,prefill,burst,poisson] [--neighbour CORE]

Both servers stay up, and an idle one takes no CPU; each round asks one, then the other, so that whatever else
the machine does hits both alike. Medians of the rounds, and the ratio of the two. CPU time is the server
process's (/proc/PID/stat), prompts included. Prompts are random token ids, none the beginning of another:
no cache knows them. Answers have a fixed length and are greedy. Standard library only.

  decode   64 tokens in, 64 out, at 1, 8 and 32 streams: output tokens per second, CPU ms per output token
  prefill  one prompt of 2,048 and of 8,192 tokens, one token out: prompt tokens per second
  burst    32 requests at once: time to first token
  poisson  arrivals at half the rate that llama.cpp sustains at 32 streams: gaps between tokens
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import time
import urllib.request

TOKENS = 64
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Server:
    """A process that answers /v1/completions."""

    def __init__(self, name, command, port, cores):
        self.name, self.port = name, port
        command = (["taskset", "-c", cores] if cores else []) + command
        begin = time.time()
        self.log = open(f"/tmp/against_llama.{name}.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while True:
            assert self.process.poll() is None, f"{' '.join(command)} ended: see {self.log.name}"
            try:
                # Both say 503 until the model can answer.
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                self.model = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"))["data"][0]["id"]
                asyncio.run(self.ask(prompt(4), 1))
                break
            except (OSError, AssertionError):
                time.sleep(0.01)
        self.ready = time.time() - begin

    def cpu(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self):
        return int(open(f"/proc/{self.process.pid}/statm").read().split()[1]) * PAGE / 1e6

    async def ask(self, ids, num_tokens):
        """Sends one request; when each event came, and the request itself."""
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(body).encode()
        begin = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        times, used = [], None
        status = (await reader.readline()).decode()
        assert " 200 " in status, status + (await reader.read()).decode()[:500]
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                used = event["usage"]["completion_tokens"]
            # nemoserve says at once that it has begun, in an event without text.
            if any(choice.get("text") or choice.get("finish_reason") for choice in event.get("choices") or []):
                times.append(time.perf_counter())
        writer.close()
        assert used == num_tokens, f"{self.name}: {used} tokens of {num_tokens}"
        return begin, times

    def stop(self):
        self.process.terminate()
        self.process.wait()


def prompt(length, vocabulary=30000):
    return [random.randrange(1000, vocabulary) for _ in range(length)]


async def at_once(server, num_streams, length, num_tokens):
    return await asyncio.gather(*(server.ask(prompt(length), num_tokens) for _ in range(num_streams)))


def decode(server, num_streams, repeats):
    """Tokens per second, CPU ms per token."""
    cpu, begin = server.cpu(), time.perf_counter()
    for _ in range(repeats):
        asyncio.run(at_once(server, num_streams, TOKENS, TOKENS))
    count = num_streams * TOKENS * repeats
    return {
        f"tokens/s, {num_streams} streams": count / (time.perf_counter() - begin),
        f"CPU ms/token, {num_streams} streams": (server.cpu() - cpu) * 1e3 / count,
    }


def prefill(server, length):
    cpu, begin = server.cpu(), time.perf_counter()
    asyncio.run(at_once(server, 1, length, 1))
    return {
        f"prompt tokens/s, {length}": length / (time.perf_counter() - begin),
        f"CPU ms/prompt token, {length}": (server.cpu() - cpu) * 1e3 / length,
    }


def burst(server):
    answers = asyncio.run(at_once(server, 32, TOKENS, TOKENS))
    first = sorted((times[0] - begin) * 1e3 for begin, times in answers)
    return {"TTFT p50 at 32, ms": percentile(first, 50), "TTFT p99 at 32, ms": percentile(first, 99)}


def poisson(server, rate, num_requests):
    async def run():
        numbers = random.Random(5)
        tasks = []
        for _ in range(num_requests):
            tasks.append(asyncio.create_task(server.ask(prompt(TOKENS), TOKENS)))
            await asyncio.sleep(numbers.expovariate(rate))
        return await asyncio.gather(*tasks)

    answers = asyncio.run(run())
    gaps = sorted((b - a) * 1e3 for _, times in answers for a, b in zip(times, times[1:]))
    first = sorted((times[0] - begin) * 1e3 for begin, times in answers)
    return {
        "gap p50, Poisson, ms": percentile(gaps, 50),
        "gap p99, Poisson, ms": percentile(gaps, 99),
        "TTFT p99, Poisson, ms": percentile(first, 99),
    }


def percentile(ordered, percent):
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nemoserve", required=True)
    parser.add_argument("--model", required=True, help="a folder that nemoserve opens")
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--gguf", required=True, help="the same weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cores", help="cores that both servers are bound to, as taskset takes them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="decode,prefill,burst,poisson")
    parser.add_argument("--rate", type=float, help="requests per second under Poisson arrivals")
    parser.add_argument("--neighbour", help="a core on which something else is busy all the time")
    parser.add_argument("--nemoserve-args", default="", help="more options for nemoserve, in one string")
    args = parser.parse_args()
    only = args.only.split(",")

    threads = str(args.threads)
    context = 32 * 512 + 16384
    servers = [
        Server(
            "nemoserve",
            [args.nemoserve, "serve", "--model", args.model, "--listen", "127.0.0.1:18321", "--threads", threads]
            + ["--max-num-seqs", "32", "--max-model-len", "16384"]
            + args.nemoserve_args.split(),
            18321,
            args.cores,
        ),
        Server(
            "llama.cpp",
            [args.llama_server, "--model", args.gguf, "--port", "18322", "--threads", threads, "--threads-batch", threads]
            + ["--parallel", "32", "--ctx-size", str(context), "--kv-unified", "--no-webui"],
            18322,
            args.cores,
        ),
    ]
    neighbour = None
    if args.neighbour:
        neighbour = subprocess.Popen(["taskset", "-c", args.neighbour, "sh", "-c", "while :; do :; done"])
    results = {server.name: {} for server in servers}

    def note(server, numbers):
        for name, value in numbers.items():
            results[server.name].setdefault(name, []).append(value)

    try:
        for server in servers:
            note(server, {"time to ready, s": server.ready})
            # The first answers touch memory for the first time.
            decode(server, 8, 1)
        for _ in range(args.rounds):
            for num_streams in (1, 8, 32) if "decode" in only else ():
                for server in servers:
                    note(server, decode(server, num_streams, 4 if num_streams == 1 else 1))
            for length in (2048, 8192) if "prefill" in only else ():
                for server in servers:
                    note(server, prefill(server, length))
            if "burst" in only:
                for server in servers:
                    note(server, burst(server))
            if "poisson" in only:
                rate = args.rate
                if rate is None:
                    measured = results["llama.cpp"].get("tokens/s, 32 streams") or [60.0]
                    rate = statistics.median(measured) / TOKENS / 2
                for server in servers:
                    note(server, poisson(server, rate, 40))
        for server in servers:
            note(server, {"resident, MB": server.resident()})
    finally:
        for server in servers:
            server.stop()
        if neighbour:
            neighbour.kill()

    ours, theirs = results["nemoserve"], results["llama.cpp"]
    print(f"load average {os.getloadavg()[0]:.1f}, {args.threads} threads, {args.rounds} rounds, medians (least to most)\n")
    print("| | nemoserve | llama.cpp | nemoserve over llama.cpp |")
    print("|---|---|---|---|")
    for name in ours:
        cells = []
        for values in (ours[name], theirs[name]):
            cells.append(f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        ratio = statistics.median(ours[name]) / statistics.median(theirs[name])
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
