#!/usr/bin/env python3
"""nemoserve as a worker of NVIDIA Dynamo: registers a running daemon's model, passes token ids on to its
/v1/completions and tokens back, and relays its cache events to the router.

  pip install -r requirements.txt
  nemoserve serve --model DIR --kv-events-endpoint 'tcp://*:5556' &
  python3 worker.py --model DIR --url http://127.0.0.1:8000 --kv-events tcp://127.0.0.1:5556

It runs beside the daemon (one pod, two containers: see graph.yaml). Dynamo's frontend renders the chat
template and the router counts prefixes; what the daemon is asked is what it would be asked over its own
API, so grammars and logprobs stay with clients of the daemon itself.
"""

import argparse
import asyncio
import json
import time
import urllib.error
import urllib.request
from http.client import HTTPConnection
from urllib.parse import urlsplit

import uvloop
from dynamo.llm import KvEventPublisher, ModelInput, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime, dynamo_worker

SAMPLING = ["temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty",
            "repetition_penalty", "n"]
STOPPING = ["max_tokens", "min_tokens", "ignore_eos", "stop"]


def body(model, request):
    """What the daemon is asked."""
    asked = {"model": model, "prompt": request["token_ids"], "stream": True, "return_token_ids": True}
    for group, names in ("sampling_options", SAMPLING), ("stop_conditions", STOPPING):
        given = request.get(group) or {}
        asked |= {name: given[name] for name in names if given.get(name) is not None}
    hidden = (request.get("stop_conditions") or {}).get("stop_token_ids_hidden")
    if hidden:
        asked["stop_token_ids"] = hidden
    return asked


class Handler:
    def __init__(self, url, key, model):
        self.address, self.key, self.model = urlsplit(url).netloc, key, model

    def send(self, asked):
        connection = HTTPConnection(self.address, timeout=600)
        headers = {"content-type": "application/json"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        connection.request("POST", "/v1/completions", json.dumps(asked), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read().decode(errors='replace')}")
        return connection, response

    async def generate(self, request, context):
        connection, response = await asyncio.to_thread(self.send, body(self.model, request))
        try:
            while line := await asyncio.to_thread(response.readline):
                # Who has gone needs no more tokens: closing ends the request at the daemon.
                if context.is_stopped():
                    return
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    tokens, reason = choice.get("token_ids") or [], choice.get("finish_reason")
                    if tokens or reason:
                        yield {"token_ids": tokens, "finish_reason": reason}
        finally:
            connection.close()


def get(url, path, key):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=30) as response:
        return response.read().decode()


async def ready(url, seconds):
    """Until the daemon takes work: it listens while weights load, and Dynamo would send it requests."""
    end, why = time.monotonic() + seconds, None
    while True:
        try:
            await asyncio.to_thread(get, url, "/ready", None)
            return
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
        except OSError as error:
            said = str(error)
        if said != why:
            why = said
            print(f"{url}/ready: {why}", flush=True)
        if time.monotonic() > end:
            raise TimeoutError(f"{url} is not ready after {seconds:.0f} s: {why}")
        await asyncio.sleep(1)


def block_size(metrics):
    line = next(line for line in metrics.splitlines() if line.startswith("nemoserve_cache_config_info{"))
    return int(line.split('block_size="')[1].split('"')[0])


@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    args = arguments()
    url = args.url.rstrip("/")
    await ready(url, args.patience)
    name = args.name or json.loads(get(url, "/v1/models", args.key))["data"][0]["id"]
    size = block_size(get(url, "/metrics", args.key))
    endpoint = runtime.endpoint(args.endpoint)
    await register_model(ModelInput.Tokens, ModelType.Chat | ModelType.Completions, endpoint, args.model, name,
                         worker_type=WorkerType.Aggregated, kv_cache_block_size=size)
    publisher = args.kv_events and KvEventPublisher(endpoint, kv_block_size=size, zmq_endpoint=args.kv_events)
    try:
        await endpoint.serve_endpoint(Handler(url, args.key, name).generate)
    finally:
        if publisher:
            publisher.shutdown()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with config.json, tokenizer.json and the template")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--name", help="the model's name [default: the first that the daemon lists]")
    parser.add_argument("--key", help="the daemon's key, if it wants one")
    parser.add_argument("--kv-events", help="the daemon's --kv-events-endpoint, as it is reached from here")
    parser.add_argument("--patience", type=float, default=3600, metavar="SECONDS",
                        help="how long the daemon may load before this gives up [default: 3600]")
    parser.add_argument("--endpoint", default="nemoserve.backend.generate")
    return parser.parse_args()


if __name__ == "__main__":
    arguments()
    uvloop.run(worker())
