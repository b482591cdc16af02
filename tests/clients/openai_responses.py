"""The official OpenAI SDK for Python on /v1/responses.

Usage: openai_responses.py DEMO_URL SCRIPTED_URL
"""

import json

import openai
import pydantic
from openai.types.responses import Response, ResponseStreamEvent

from checks import MODEL, base_urls, check, run

demo_url, scripted_url = base_urls()
options = {"api_key": "unused", "max_retries": 0}
demo = openai.OpenAI(base_url=f"{demo_url}/v1", **options)
scripted = openai.OpenAI(base_url=f"{scripted_url}/v1", **options)
events = pydantic.TypeAdapter(ResponseStreamEvent)
GREEDY = {"model": MODEL, "temperature": 0, "max_output_tokens": 64}
QUESTION = "What is the capital of France?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of the next days.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(pydantic.BaseModel):
    """What is asked for."""

    name: str
    age: int
    languages: list[str]


def what(response):
    """Everything that two answers to one request have in common."""
    items = [item.to_dict() for item in response.output]
    for item in items:
        item.pop("id")
        for key in ("call_id", "parsed_arguments"):
            item.pop(key, None)
    usage = response.usage
    return items, response.status, usage.input_tokens, usage.output_tokens


@check
def validates():
    """an answer is what the SDK's types require, key by key"""
    for extra in (
        {},
        {"store": False, "include": ["reasoning.encrypted_content"]},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
        {"reasoning": {"effort": "none"}, "max_output_tokens": 2},
    ):
        raw = demo.responses.with_raw_response.create(input=QUESTION, **{**GREEDY, **extra})
        response = Response.model_validate(json.loads(raw.text))
        assert response.object == "response" and response.model == MODEL
        assert response.status in ("completed", "incomplete")
        usage = response.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@check
def stream_equals_answer():
    """a stream's events validate, and its last one is the plain answer"""
    for effort in ("none", "high"):
        request = {**GREEDY, "input": QUESTION, "reasoning": {"effort": effort}}
        plain = demo.responses.create(**request)
        text = ""
        for i, event in enumerate(demo.responses.create(**request, stream=True)):
            events.validate_python(event.to_dict(mode="json"))
            assert event.sequence_number == i
            if event.type == "response.output_text.delta":
                text += event.delta
        assert event.type == f"response.{plain.status}"
        assert what(event.response) == what(plain), (event.response, plain)
        assert text == plain.output_text


@check
def stream_helper():
    """the SDK's own accumulator accepts the events"""
    with scripted.responses.stream(model=MODEL, input="Count to five.") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= kinds, kinds
    assert final.output_text == "One, two, three, four, five. Ünïcödé 🦀 too."
    thought = next(item for item in final.output if item.type == "reasoning")
    assert thought.content[0].text == "Counting is easy."


@check
def tools():
    """a tool is called, streamed and whole, and its result continues the conversation"""
    request = {"model": MODEL, "tools": [WEATHER], "input": "What is the weather in Paris?"}
    first = scripted.responses.create(**request)
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather" and json.loads(call.arguments) == {"city": "Paris", "days": 2}
    with scripted.responses.stream(**request) as stream:
        arguments = "".join(
            event.delta
            for event in stream
            if event.type == "response.function_call_arguments.delta"
        )
        assert what(stream.get_final_response()) == what(first)
    assert arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 °C, sunny"}
    history = [{"role": "user", "content": request["input"]}, *first.output, result]
    for rest in ({"input": history}, {"input": [result], "previous_response_id": first.id}):
        last = scripted.responses.create(**{**request, **rest})
        assert last.output_text == "It is 21 degrees and sunny in Paris.", last.output_text


@check
def parallel_tools():
    """two calls at once, and one where only one is allowed"""
    request = {
        "model": MODEL,
        "tools": [WEATHER, {"type": "web_search"}],
        "input": "What is the weather in Paris and in Rome?",
    }
    for parallel, expect in ((True, ["Paris", "Rome"]), (False, ["Paris"])):
        answer = scripted.responses.create(**request, parallel_tool_calls=parallel)
        calls = [item for item in answer.output if item.type == "function_call"]
        assert [json.loads(call.arguments)["city"] for call in calls] == expect, answer.output


@check
def structured():
    """responses.parse returns the model's object"""
    answer = scripted.responses.parse(
        model=MODEL, input="Who was the first programmer?", text_format=Person
    )
    assert answer.output_parsed == Person(name="Ada", age=36, languages=["notes", "tables"])
    # Whatever a tiny model says under a schema is valid under it, if it comes to an end.
    schema = {"type": "json_schema", "name": "person", "schema": Person.model_json_schema()}
    request = {**GREEDY, "input": QUESTION, "temperature": 1, "max_output_tokens": 200}
    for seed in range(3):
        answer = demo.responses.create(
            **request, text={"format": schema}, extra_body={"seed": seed}
        )
        if answer.status == "completed":
            Person.model_validate_json(answer.output_text)


@check
def stored():
    """answers are retrieved, continued and deleted by id"""
    first = demo.responses.create(input=QUESTION, **GREEDY)
    assert demo.responses.retrieve(first.id).to_dict() == first.to_dict()
    second = demo.responses.create(input="Why?", previous_response_id=first.id, **GREEDY)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    demo.responses.delete(first.id)
    for gone in (
        lambda: demo.responses.retrieve(first.id),
        lambda: demo.responses.create(input="Why?", previous_response_id=first.id, **GREEDY),
    ):
        try:
            gone()
        except openai.NotFoundError:
            pass
        except openai.BadRequestError as error:
            assert error.param == "previous_response_id"
        else:
            raise AssertionError("a deleted response is still there")


@check
def errors():
    """mistakes name the parameter as the client wrote it"""
    malformed = {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}}
    schema = {"type": "json_schema", "name": "n", "schema": malformed}
    image = {"type": "input_image", "detail": "auto", "image_url": "https://example.com/x.png"}
    for arguments, param in (
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**7}, "input"),
        ({"input": [{"role": "user", "content": [image]}]}, "input[0].content[0].type"),
        ({"text": {"format": schema}}, "text.format.schema"),
        ({"tools": [{**WEATHER, "parameters": malformed}]}, "tools[0].parameters"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"background": True}, "background"),
    ):
        try:
            demo.responses.create(**{**GREEDY, "input": QUESTION, **arguments})
        except openai.BadRequestError as error:
            assert error.param == param, (error.param, param)
        else:
            raise AssertionError(f"{arguments} was accepted")


run(f"openai-python {openai.__version__} responses")
