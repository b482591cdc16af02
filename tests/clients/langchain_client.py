"""LangChain's ChatOpenAI: tools, structured output, streaming.

Usage: langchain_client.py DEMO_URL SCRIPTED_URL
"""

import asyncio
from importlib.metadata import version
from typing import Literal

from checks import MODEL, base_urls, check, run
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

demo, scripted = base_urls()


def chat(base, **options):
    return ChatOpenAI(
        model=MODEL, base_url=f"{base}/v1", api_key="unused", temperature=0, max_retries=0, **options
    )


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of the coming days."""
    return f"21 degrees and sunny in {city} for {days} days"


class Person(BaseModel):
    """A person."""

    name: str = Field(description="first name", max_length=12)
    age: int = Field(ge=0, le=150)
    languages: list[Literal["notes", "tables", "Rust"]] = Field(max_length=3)


@check
def invoke():
    """invoke answers, with usage"""
    answer = chat(scripted).invoke("Count to five.")
    assert answer.content == "One, two, three, four, five. Ünïcödé 🦀 too.", answer.content
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"


@check
def stream():
    """stream yields the same text in pieces, then usage"""
    chunks = list(chat(scripted, stream_usage=True).stream("Count to five."))
    text = "".join(chunk.content for chunk in chunks)
    assert text == "One, two, three, four, five. Ünïcödé 🦀 too.", text
    assert len(chunks) > 5
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0


@check
def astream():
    """astream does the same in eight tasks at once"""

    async def one():
        return "".join([chunk.content async for chunk in chat(scripted).astream("Count to five.")])

    async def all():
        return await asyncio.gather(*(one() for _ in range(8)))

    assert set(asyncio.run(all())) == {"One, two, three, four, five. Ünïcödé 🦀 too."}


@check
def tool_loop():
    """bind_tools: call, result, answer"""
    model = chat(scripted).bind_tools([get_weather])
    messages = [HumanMessage("What is the weather in Paris?")]
    call = model.invoke(messages)
    assert call.response_metadata["finish_reason"] == "tool_calls"
    assert [(c["name"], c["args"]) for c in call.tool_calls] == [
        ("get_weather", {"city": "Paris", "days": 2})
    ], call.tool_calls
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    final = model.invoke([*messages, call, result])
    assert final.content == "It is 21 degrees and sunny in Paris." and not final.tool_calls


@check
def streamed_tools():
    """bind_tools: two parallel calls gather from a stream"""
    model = chat(scripted).bind_tools([get_weather])
    whole = None
    for chunk in model.stream("What is the weather in Paris and in Rome?"):
        whole = chunk if whole is None else whole + chunk
    calls = [(c["name"], c["args"]) for c in whole.tool_calls]
    assert calls == [
        ("get_weather", {"city": "Paris", "days": 2}),
        ("get_weather", {"city": "Rome", "days": 3}),
    ], calls
    assert len({c["id"] for c in whole.tool_calls}) == 2


@check
def forced_tool():
    """tool_choice forces the demo model into a call that fits the schema"""
    model = chat(demo, max_tokens=400).bind_tools([get_weather], tool_choice="get_weather")
    call = model.invoke("What is the weather in Peru for 3 days?").tool_calls
    assert len(call) == 1 and call[0]["name"] == "get_weather", call
    assert isinstance(call[0]["args"]["city"], str) and isinstance(call[0]["args"]["days"], int)


def structured(method):
    model = chat(demo, max_tokens=600).with_structured_output(Person, method=method)
    person = model.invoke("Who are you?")
    assert isinstance(person, Person), person


@check
def structured_by_schema():
    """with_structured_output(json_schema) makes the demo model answer in shape"""
    structured("json_schema")


@check
def structured_by_call():
    """with_structured_output(function_calling) makes the demo model answer in shape"""
    structured("function_calling")


@check
def structured_stream():
    """with_structured_output streams an object that grows"""
    model = chat(scripted).with_structured_output(Person, method="json_schema")
    last = None
    for part in model.stream("Who was the first programmer?"):
        last = part
    assert last == Person(name="Ada", age=36, languages=["notes", "tables"]), last


run(f"langchain-openai {version('langchain-openai')}")
