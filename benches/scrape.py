"""How long /metrics takes while a server has more to do than it can.

python3 benches/scrape.py http://127.0.0.1:8000 [--streams 256] [--scrapes 200] [--key KEY]

So many clients stream answers without end, more than run at once, and come again when they are refused; meanwhile one
scraper, on a fresh connection each time, reads all of /metrics.
"""

import argparse
import json
import statistics
import threading
import time
import urllib.error
import urllib.request


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--key", default="")
    args = parser.parse_args()
    headers = {"content-type": "application/json", "authorization": f"Bearer {args.key}"}
    with urllib.request.urlopen(urllib.request.Request(f"{args.url}/v1/models", headers=headers)) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "stream": True})
    over = threading.Event()
    counts = {"events": 0, "refused": 0}

    def stream():
        while not over.is_set():
            try:
                request = urllib.request.Request(f"{args.url}/v1/completions", body.encode(), headers)
                with urllib.request.urlopen(request) as answer:
                    for _ in answer:
                        counts["events"] += 1
                        if over.is_set():
                            return
            except (urllib.error.URLError, OSError):
                counts["refused"] += 1
                over.wait(0.05)

    clients = [threading.Thread(target=stream, daemon=True) for _ in range(args.streams)]
    for client in clients:
        client.start()
    time.sleep(2)
    times, size = [], 0
    for _ in range(args.scrapes):
        begin = time.perf_counter()
        with urllib.request.urlopen(f"{args.url}/metrics") as answer:
            text = answer.read()
        times.append(1000 * (time.perf_counter() - begin))
        size = len(text)
        time.sleep(0.05)
    waiting = next(line for line in text.decode().splitlines() if line.startswith("nemoserve_requests_waiting "))
    over.set()
    times.sort()
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
    print(f"{args.streams} clients, {waiting.split()[1]} waiting, {counts['refused']} refused, {size} bytes of metrics")
    print(
        f"{args.scrapes} scrapes: median {statistics.median(times):.1f} ms, p90 {at(0.9):.1f}, p99 {at(0.99):.1f}, "
        f"longest {times[-1]:.1f}"
    )


if __name__ == "__main__":
    main()
