"""From `kill -9` to `/ready` again, beside a warm read of the weights.

python3 benches/restart.py target/release/nemoserve MODEL_DIR [--rounds 5] [-- flags of serve]

The process is killed, the weights are read once from first to last byte (they lie in the page cache then, as they do after
a crash), and it is started again.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

ADDRESS = "127.0.0.1:18321"


def started(binary, model, flags):
    """A daemon that is ready, and the seconds that it took."""
    begin = time.perf_counter()
    command = [binary, "serve", "--listen", ADDRESS, "--model", model, *flags]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://{ADDRESS}/ready")
            return server, time.perf_counter() - begin
        except OSError:
            time.sleep(0.002)
    sys.exit(f"the server ended with code {server.returncode}")


def read(folder):
    """Seconds that reading every shard takes."""
    begin, buffer = time.perf_counter(), bytearray(16 << 20)
    for shard in pathlib.Path(folder).glob("*.safetensors"):
        with open(shard, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def main():
    own, flags = sys.argv[1:], []
    if "--" in own:
        own, flags = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(own)
    server, _ = started(args.binary, args.model, flags)
    ready, reads = [], []
    for _ in range(args.rounds):
        server.kill()
        server.wait()
        reads.append(read(args.model))
        server, seconds = started(args.binary, args.model, flags)
        ready.append(seconds)
    server.kill()
    print("| | median, s | least to most |\n| --- | --- | --- |")
    for name, times in [("kill -9 to /ready", ready), ("a warm read of the weights", reads)]:
        print(f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} to {max(times):.3f} |")
    print(f"\n{statistics.median(ready) / statistics.median(reads):.2f} times the read")


main()
