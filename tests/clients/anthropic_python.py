"""The official Anthropic SDK for Python on /v1/messages.

Usage: anthropic_python.py DEMO_URL SCRIPTED_URL
"""

import json

import anthropic
import pydantic
from anthropic.types import Message, RawMessageStreamEvent

from checks import MODEL, base_urls, check, run

demo_url, scripted_url = base_urls()
options = {"api_key": "unused", "max_retries": 0}
demo = anthropic.Anthropic(base_url=demo_url, **options)
scripted = anthropic.Anthropic(base_url=scripted_url, **options)
events = pydantic.TypeAdapter(RawMessageStreamEvent)
GREEDY = {"model": MODEL, "max_tokens": 64, "extra_body": {"temperature": 0}}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
THINKING = {"type": "enabled", "budget_tokens": 1024}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of the next days.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


def text(message):
    """All of a message's text."""
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(usage):
    """All of the prompt, however it was come by."""
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def what(message):
    """Everything that two answers to one request have in common."""
    blocks = [block.to_dict() for block in message.content]
    for block in blocks:
        block.pop("id", None)
    usage = message.usage
    return blocks, message.stop_reason, prompt_tokens(usage), usage.output_tokens


@check
def validates():
    """an answer is what the SDK's types require, key by key"""
    for extra in ({}, {"thinking": {"type": "adaptive"}}, {"max_tokens": 2}):
        raw = demo.messages.with_raw_response.create(messages=QUESTION, **{**GREEDY, **extra})
        message = Message.model_validate(json.loads(raw.text()))
        assert message.model == MODEL and message.stop_reason in ("end_turn", "max_tokens")
        assert raw.headers["request-id"].startswith("req_")


@check
def stream_equals_answer():
    """a stream's events validate and add up to the plain answer"""
    for thinking in ({"type": "disabled"}, {"type": "adaptive"}):
        request = {**GREEDY, "messages": QUESTION, "thinking": thinking}
        plain = demo.messages.create(**request)
        for event in demo.messages.create(**request, stream=True):
            events.validate_python(event.to_dict(mode="json"))
        with demo.messages.stream(**request) as stream:
            streamed = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert what(final) == what(plain), (final, plain)
        assert streamed == text(plain)


@check
def thinking():
    """thoughts are blocks of their own, and off unless asked for"""
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Count to five."}]}
    plain = scripted.messages.create(max_tokens=256, **request)
    assert [block.type for block in plain.content] == ["text"]
    with scripted.messages.stream(max_tokens=2048, thinking=THINKING, **request) as stream:
        for _ in stream:
            pass
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == "Counting is easy." and final.content[0].signature
    assert text(final) == text(plain) == "One, two, three, four, five. Ünïcödé 🦀 too."
    short = {"type": "enabled", "budget_tokens": 2}
    cut = scripted.messages.create(max_tokens=64, thinking=short, **request)
    assert cut.usage.output_tokens_details.thinking_tokens <= 3, cut.usage


@check
def tools():
    """a tool is called, streamed and whole, and its result continues the conversation"""
    question = {"role": "user", "content": "What is the weather in Paris?"}
    server_tool = {"type": "web_search_20250305", "name": "web_search"}
    request = {
        "model": MODEL,
        "max_tokens": 2048,
        "tools": [server_tool, WEATHER],
        "thinking": THINKING,
    }
    first = scripted.messages.create(messages=[question], **request)
    assert first.stop_reason == "tool_use"
    call = first.content[-1]
    assert call.name == "get_weather" and call.input == {"city": "Paris", "days": 2}
    with scripted.messages.stream(messages=[question], **request) as stream:
        assert what(stream.get_final_message()) == what(first)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 °C, sunny"}
    messages = [
        question,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    last = scripted.messages.create(messages=messages, **request)
    assert text(last) == "It is 21 degrees and sunny in Paris.", last
    counted = scripted.messages.count_tokens(
        model=MODEL, messages=messages, tools=request["tools"], thinking=THINKING
    )
    assert counted.input_tokens == prompt_tokens(last.usage)


@check
def tool_choice():
    """any and tool force a call, none forbids it, and parallel calls can be turned off"""
    request = {
        "model": MODEL,
        "max_tokens": 512,
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": "What is the weather in Paris and in Rome?"}],
    }
    for choice, cities in (
        ({"type": "auto"}, ["Paris", "Rome"]),
        ({"type": "any"}, ["Paris", "Rome"]),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["Paris"]),
        ({"type": "tool", "name": "get_weather"}, ["Paris"]),
    ):
        answer = scripted.messages.create(tool_choice=choice, **request)
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert [call.input["city"] for call in calls] == cities, (choice, answer.content)
        assert answer.stop_reason == "tool_use"
    answer = scripted.messages.create(tool_choice={"type": "none"}, **request)
    assert all(block.type == "text" for block in answer.content)


@check
def structured():
    """output_config.format binds the text to a schema"""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "languages": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "languages"],
        "additionalProperties": False,
    }
    answer = scripted.messages.create(
        model=MODEL,
        max_tokens=256,
        messages=[{"role": "user", "content": "Who was the first programmer?"}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert json.loads(text(answer))["name"] == "Ada"


@check
def count_tokens():
    """counting agrees with usage, cached or not"""
    long = [{"role": "user", "content": "The sun is up. " * 150}]
    counted = demo.messages.count_tokens(model=MODEL, messages=long).input_tokens
    for _ in range(2):
        usage = demo.messages.create(messages=long, **{**GREEDY, "max_tokens": 1}).usage
        assert prompt_tokens(usage) == counted
    if counted >= 1024:
        assert usage.cache_read_input_tokens >= counted // 2, usage


@check
def errors():
    """mistakes come back as the SDK's own exceptions, naming the parameter"""
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    malformed = {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}}
    for arguments, words in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**7, "timeout": 60}, "prompt is too long"),
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"messages": [{"role": "user", "content": [image]}]}, "messages[0].content[0].type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 64}}, "thinking.budget_tokens"),
        ({"tools": [{**WEATHER, "input_schema": malformed}]}, "tools[0].input_schema"),
    ):
        try:
            demo.messages.create(**{**GREEDY, "messages": QUESTION, **arguments})
        except anthropic.BadRequestError as error:
            assert error.body["error"]["type"] == "invalid_request_error"
            assert words in error.body["error"]["message"], error.body
            assert error.request_id == error.body["request_id"]
        else:
            raise AssertionError(f"{arguments} was accepted")
    try:
        demo.messages.create(messages=QUESTION, **{**GREEDY, "model": "claude-nothing"})
    except anthropic.NotFoundError as error:
        assert error.body["error"]["type"] == "not_found_error"
    else:
        raise AssertionError("an unknown model was accepted")


run(f"anthropic-python {anthropic.__version__}")
