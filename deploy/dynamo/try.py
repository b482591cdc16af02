"""Asks the worker through Dynamo, once by any route and once by a router that counts prefixes."""

import asyncio

import uvloop
from dynamo.llm import KvRouter, KvRouterConfig
from dynamo.runtime import DistributedRuntime, dynamo_worker

PROMPT = list(range(5, 90))
BLOCK_SIZE = 16


@dynamo_worker()
async def main(runtime: DistributedRuntime):
    endpoint = runtime.endpoint("nemoserve.backend.generate")
    client = await endpoint.client()
    (worker,) = await client.wait_for_instances()
    request = {"token_ids": PROMPT, "stop_conditions": {"max_tokens": 6, "ignore_eos": True},
               "sampling_options": {"temperature": 0.0}}
    router = KvRouter(endpoint, BLOCK_SIZE, KvRouterConfig())
    answers = []
    for _ in range(2):
        tokens, reason = [], None
        async for item in await client.generate(request):
            tokens += item.data()["token_ids"]
            reason = item.data()["finish_reason"] or reason
        assert len(tokens) == 6 and reason == "length", (tokens, reason)
        answers.append(tokens)
    assert answers[0] == answers[1], answers
    print("through Dynamo:", answers[0])
    # Events take their way.
    for _ in range(100):
        _, _, overlap = await router.best_worker(PROMPT)
        if overlap:
            break
        await asyncio.sleep(0.1)
    print(f"the router knows {overlap} blocks of {len(PROMPT) // BLOCK_SIZE}, at worker {worker}")
    assert overlap >= 4, overlap


uvloop.run(main())
