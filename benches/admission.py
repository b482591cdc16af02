"""How long a turn on a long history takes to reach the engine: from the last byte of its request to the answer's head.

python3 benches/admission.py target/release/nemoserve [--history 8000,64000,256000] [--turns 15]

A stream's head goes out at admission, before any token, so nothing is computed for long here: every client leaves at once.
The first request of a conversation fills the cache of texts; the turns after it are measured.
"""

import argparse
import json
import socket
import statistics
import subprocess
import time
import urllib.request

PORT = 18321
MODEL = "turns"
SENTENCE = "The capital of France is Paris. "


def num_tokens(messages):
    body = json.dumps({"model": MODEL, "messages": messages}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions/render", body, {"content-type": "application/json"}
    )
    return len(json.load(urllib.request.urlopen(request))["token_ids"])


def admitted_after(messages):
    """Milliseconds; everything but the last byte is there before."""
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 1, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode() + body[:-1])
        time.sleep(0.05)
        begin = time.perf_counter()
        connection.sendall(body[-1:])
        got = connection.recv(65536)
        took = time.perf_counter() - begin
    assert got.startswith(b"HTTP/1.1 200"), got[:300]
    return 1e3 * took


def converse(history, turns):
    messages = []

    def say(num_sentences):
        role = "assistant" if len(messages) % 2 else "user"
        messages.append({"role": role, "content": f"{len(messages)} is it? {SENTENCE * num_sentences}"})

    for _ in range(8):
        say(60)
    per_message = num_tokens(messages) / 8
    while len(messages) * per_message < history or len(messages) % 2:
        say(60)
    say(1)
    cold, times = admitted_after(messages), []
    for _ in range(turns):
        say(1)
        say(1)
        times.append(admitted_after(messages))
        time.sleep(0.2)
    print(
        f"| {num_tokens(messages)} | {cold:.0f} | {statistics.median(times):.1f} | {min(times):.1f} to {max(times):.1f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--history", default="8000,64000,256000")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    histories = [int(tokens) for tokens in args.history.split(",")]
    command = [
        args.binary, "serve", "--listen", f"127.0.0.1:{PORT}", "--served-model-name", MODEL,
        "--max-model-len", str(max(histories) + 65536),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "the server ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready")
                break
            except OSError:
                time.sleep(0.05)
        print("| tokens | first time, ms | a turn, ms (median) | range |")
        print("| --- | --- | --- | --- |")
        for history in histories:
            converse(history, args.turns)
    finally:
        server.terminate()
        server.wait()


main()
