"""LiteLLM: the OpenAI-compatible route and the Anthropic one.

Usage: litellm_client.py DEMO_URL SCRIPTED_URL
"""

import asyncio
import json
import os
from importlib.metadata import version
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched

import litellm
from checks import MODEL, base_urls, check, run
from pydantic import BaseModel, Field

demo, scripted = base_urls()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of the coming days.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
]
COUNTED = "One, two, three, four, five. Ünïcödé 🦀 too."


class Person(BaseModel):
    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    languages: list[Literal["notes", "tables", "Rust"]] = Field(max_length=3)


def ask(base, question, route="openai", **options):
    prefix = f"{base}/v1" if route == "openai" else base
    return litellm.completion(
        model=f"{route}/{MODEL}",
        api_base=prefix,
        api_key="unused",
        messages=question if isinstance(question, list) else [{"role": "user", "content": question}],
        num_retries=0,
        **{"max_tokens": 400, **options},
    )


def calls_of(message):
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or []]


@check
def completion():
    """completion answers with content, reasoning_content and usage"""
    answer = ask(scripted, "Count to five.")
    message = answer.choices[0].message
    assert message.content == COUNTED
    assert message.reasoning_content == "Counting is easy.", message
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check
def stream():
    """a stream rebuilds to the whole answer"""
    chunks = list(
        ask(scripted, "Count to five.", stream=True, stream_options={"include_usage": True})
    )
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == COUNTED
    assert whole.choices[0].message.reasoning_content == "Counting is easy."
    assert whole.usage.completion_tokens > 0


@check
def astream():
    """acompletion streams, eight at once"""

    async def one():
        stream = await litellm.acompletion(
            model=f"openai/{MODEL}",
            api_base=f"{scripted}/v1",
            api_key="unused",
            messages=[{"role": "user", "content": "Count to five."}],
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all():
        return await asyncio.gather(*(one() for _ in range(8)))

    assert set(asyncio.run(all())) == {COUNTED}


@check
def tool_loop():
    """tools: call, result, answer"""
    question = {"role": "user", "content": "What is the weather in Paris?"}
    answer = ask(scripted, [question], tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert calls_of(message) == [("get_weather", {"city": "Paris", "days": 2})], message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21, sunny"}
    final = ask(scripted, [question, message.model_dump(), result], tools=TOOLS)
    assert final.choices[0].message.content == "It is 21 degrees and sunny in Paris."


@check
def streamed_tools():
    """two parallel calls rebuild from a stream"""
    chunks = list(
        ask(scripted, "What is the weather in Paris and in Rome?", tools=TOOLS, stream=True)
    )
    whole = litellm.stream_chunk_builder(chunks)
    assert calls_of(whole.choices[0].message) == [
        ("get_weather", {"city": "Paris", "days": 2}),
        ("get_weather", {"city": "Rome", "days": 3}),
    ], whole
    assert chunks[-1].choices[0].finish_reason == "tool_calls" or any(
        chunk.choices and chunk.choices[0].finish_reason == "tool_calls" for chunk in chunks
    )


@check
def structured():
    """response_format from a pydantic model binds the demo model"""
    answer = ask(demo, "Who are you?", response_format=Person, max_tokens=600)
    Person.model_validate_json(answer.choices[0].message.content)


@check
def errors():
    """mistakes come back as LiteLLM's own exceptions"""
    try:
        ask(scripted, "Hi", temperature=3)
    except litellm.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("temperature 3 was accepted")
    try:
        ask(scripted, "Hi", max_tokens=10**9)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a billion tokens were accepted")


@check
def anthropic_route():
    """the anthropic route: text, streamed and whole"""
    whole = ask(scripted, "Count to five.", route="anthropic")
    assert whole.choices[0].message.content == COUNTED, whole
    stream = ask(scripted, "Count to five.", route="anthropic", stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == COUNTED


@check
def anthropic_tools():
    """the anthropic route: tools, streamed and whole"""
    whole = ask(scripted, "What is the weather in Paris?", route="anthropic", tools=TOOLS)
    expected = [("get_weather", {"city": "Paris", "days": 2})]
    assert calls_of(whole.choices[0].message) == expected, whole
    chunks = list(
        ask(scripted, "What is the weather in Paris?", route="anthropic", tools=TOOLS, stream=True)
    )
    assert calls_of(litellm.stream_chunk_builder(chunks).choices[0].message) == expected


run(f"litellm {version('litellm')}")
