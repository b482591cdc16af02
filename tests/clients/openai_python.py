"""The official OpenAI SDK for Python against a running daemon: a line per check, exit 1 on failure.

Usage: openai_python.py http://127.0.0.1:8000
"""

import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import openai

MODEL = "nvidia/nemotron-3-super-120b-a12b"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 64}

base_url = sys.argv[1].rstrip("/")
client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0)
checks = []


def check(function):
    """Registers a check; its docstring is the line that is printed."""
    checks.append(function)
    return function


def gather(stream):
    """Folds a chat stream into (content, reasoning, finish_reason, usage, chunks)."""
    content, reasoning, finish, usage, chunks = "", "", None, None, []
    for chunk in stream:
        chunks.append(chunk)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            finish = choice.finish_reason or finish
    return content, reasoning, finish, usage, chunks


@check
def models():
    """models.list names the model and its window"""
    found = {model.id: model for model in client.models.list()}
    assert MODEL in found, sorted(found)
    assert found[MODEL].max_model_len >= 1024
    assert client.models.retrieve(MODEL).id == MODEL


@check
def chat():
    """chat.completions.create answers and counts"""
    answer = client.chat.completions.create(messages=QUESTION, **GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@check
def stream_equals_answer():
    """a stream carries the same text, reasoning, finish and usage as the plain answer"""
    for thinking in (False, True):
        extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
        plain = client.chat.completions.create(messages=QUESTION, extra_body=extra, **GREEDY)
        content, reasoning, finish, usage, chunks = gather(
            client.chat.completions.create(
                messages=QUESTION,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
                **GREEDY,
            )
        )
        message = plain.choices[0].message
        assert content == (message.content or ""), (content, message.content)
        assert reasoning == (getattr(message, "reasoning_content", None) or "")
        assert bool(reasoning) == thinking
        assert finish == plain.choices[0].finish_reason
        assert usage.completion_tokens == plain.usage.completion_tokens
        assert usage.prompt_tokens == plain.usage.prompt_tokens
        assert len({chunk.id for chunk in chunks}) == 1


@check
def async_stream_helper():
    """the SDK's own stream accumulator accepts the events"""
    with client.chat.completions.stream(messages=QUESTION, **GREEDY) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason in ("stop", "length")


@check
def logprobs():
    """logprobs join to the content, byte for byte"""
    answer = client.chat.completions.create(
        messages=QUESTION,
        logprobs=True,
        top_logprobs=5,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
        **GREEDY,
    )
    entries = answer.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert text.decode("utf-8", "replace") == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 5 for entry in entries)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)


@check
def choices_and_seed():
    """n choices are seeded apart and repeat exactly"""
    sampled = {"model": MODEL, "temperature": 1, "seed": 7, "n": 3, "max_tokens": 24}
    first = client.chat.completions.create(messages=QUESTION, **sampled)
    again = client.chat.completions.create(messages=QUESTION, **sampled)
    texts = [choice.message for choice in first.choices]
    assert texts == [choice.message for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    alone = client.chat.completions.create(messages=QUESTION, **{**sampled, "n": 1, "seed": 8})
    assert alone.choices[0].message == first.choices[1].message


@check
def stop_string():
    """a stop string ends the text before itself"""
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    full = client.chat.completions.create(messages=QUESTION, extra_body=extra, **GREEDY)
    text = full.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 4]
    cut = client.chat.completions.create(messages=QUESTION, stop=stop, extra_body=extra, **GREEDY)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@check
def legacy_completions():
    """completions.create takes strings, batches, ids, echo and logprobs"""
    answer = client.completions.create(
        model=MODEL, prompt=["Once upon", "The sun"], n=2, max_tokens=5, temperature=1, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    scored = client.completions.create(
        model=MODEL, prompt="Once upon a time", echo=True, max_tokens=0, logprobs=2
    )
    entry = scored.choices[0].logprobs
    assert scored.choices[0].text == "Once upon a time"
    assert entry.token_logprobs[0] is None and all(x <= 0 for x in entry.token_logprobs[1:])
    assert scored.usage.completion_tokens == 0
    parts = client.completions.create(
        model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, stream=True
    )
    streamed = "".join(part.choices[0].text for part in parts if part.choices)
    plain = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0)
    assert streamed == plain.choices[0].text


@check
def errors():
    """mistakes come back as the SDK's own exceptions, naming the parameter"""
    for arguments, param in [
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**7}, "messages"),
    ]:
        try:
            client.chat.completions.create(messages=QUESTION, **{"model": MODEL, **arguments})
        except openai.BadRequestError as error:
            assert error.param == param, (error.param, param)
        else:
            raise AssertionError(f"{arguments} was accepted")
    try:
        client.chat.completions.create(messages=QUESTION, model="gpt-nothing")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("an unknown model was accepted")


@check
def concurrency():
    """16 streams at once give the serial greedy text"""
    serial = client.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message

    def one(_):
        stream = client.chat.completions.create(messages=QUESTION, stream=True, **GREEDY)
        return gather(stream)[0]

    with ThreadPoolExecutor(16) as pool:
        texts = set(pool.map(one, range(16)))
    assert texts == {serial.content or ""}, texts


failed = 0
for function in checks:
    try:
        function()
        print(f"ok     openai-python {openai.__version__}: {function.__doc__}")
    except Exception:  # every check reports, whatever it met
        failed += 1
        print(f"FAILED openai-python {openai.__version__}: {function.__doc__}")
        traceback.print_exc()
print(f"{len(checks) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
