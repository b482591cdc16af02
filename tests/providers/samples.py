"""The providers' Python samples: a line per check, exit 1 on failure.

Usage: samples.py URL NVIDIA_URL KEY
"""

import json
import sys
import traceback

import openai
import requests

url, nvidia_url, key = sys.argv[1:]
QUESTION = "What is the meaning of life?"
checks = []


def check(function):
    """Registers a check; its docstring is the line that is printed."""
    checks.append(function)
    return function


@check
def cloudflare_rest():
    """requests: Cloudflare's REST path of an account"""
    account = "0123456789abcdef0123456789abcdef"
    response = requests.post(
        f"{url}/client/v4/accounts/{account}/ai/run/@cf/nvidia/nemotron-3-120b-a12b",
        headers={"Authorization": f"Bearer {key}"},
        json={
            "messages": [
                {"role": "system", "content": "You are a friendly assistant"},
                {"role": "user", "content": "Tell me all about PEP-8"},
            ]
        },
    )
    result = response.json()
    assert result["success"] is True, result
    assert result["result"]["choices"][0]["message"]["content"], result


@check
def cloudflare_openai():
    """openai: Cloudflare's OpenAI endpoint by base_url"""
    client = openai.OpenAI(api_key=key, base_url=f"{url}/client/v4/accounts/0123456789abcdef/ai/v1")
    answer = client.chat.completions.create(
        model="@cf/nvidia/nemotron-3-120b-a12b", messages=[{"role": "user", "content": QUESTION}]
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


@check
def deepinfra_openai():
    """openai: DeepInfra by base_url, whole and streamed"""
    client = openai.OpenAI(api_key=key, base_url=f"{url}/v1/openai")
    ask = {
        "model": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B",
        "messages": [{"role": "user", "content": "Hello"}],
    }
    answer = client.chat.completions.create(**ask)
    assert answer.usage.estimated_cost > 0, answer.usage
    pieces = [event.choices[0] for event in client.chat.completions.create(stream=True, **ask)]
    assert pieces[-1].finish_reason in ("stop", "length")
    assert "".join(piece.delta.content or "" for piece in pieces)


@check
def openrouter_requests():
    """requests: OpenRouter, and the receipt of the generation"""
    response = requests.post(
        url=f"{url}/api/v1/chat/completions",
        headers={
            "Authorization": f"Bearer {key}",
            "HTTP-Referer": "https://example.com",
            "X-Title": "Example",
        },
        data=json.dumps(
            {
                "model": "nvidia/nemotron-3-super-120b-a12b",
                "messages": [{"role": "user", "content": QUESTION}],
            }
        ),
    )
    answer = response.json()
    receipt = requests.get(
        url=f"{url}/api/v1/generation",
        headers={"Authorization": f"Bearer {key}"},
        params={"id": answer["id"]},
    ).json()["data"]
    assert receipt["total_cost"] == answer["usage"]["cost"] > 0, receipt


@check
def openrouter_stream():
    """requests: OpenRouter's stream, read line by line"""
    payload = {
        "model": "nvidia/nemotron-3-super-120b-a12b",
        "messages": [{"role": "user", "content": "How would you build the tallest building ever?"}],
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    buffer, text, usage = "", "", None
    with requests.post(f"{url}/api/v1/chat/completions", headers=headers, json=payload, stream=True) as r:
        for chunk in r.iter_content(chunk_size=1024, decode_unicode=True):
            buffer += chunk
            while "\n" in buffer:
                line, buffer = buffer.split("\n", 1)
                if line.startswith("data: ") and line != "data: [DONE]":
                    data = json.loads(line[6:])
                    usage = data.get("usage") or usage
                    for choice in data["choices"]:
                        text += choice["delta"].get("content") or ""
    assert text and usage["cost"] > 0, usage


@check
def openrouter_openai():
    """openai: OpenRouter by base_url, with reasoning asked for"""
    client = openai.OpenAI(base_url=f"{url}/api/v1", api_key=key)
    completion = client.chat.completions.create(
        extra_headers={"HTTP-Referer": "https://example.com", "X-Title": "Example"},
        extra_body={"reasoning": {"effort": "high", "exclude": False}},
        model="nvidia/nemotron-3-super-120b-a12b",
        messages=[{"role": "user", "content": QUESTION}],
    )
    message = completion.choices[0].message
    assert message.reasoning and message.reasoning_details[0]["text"] == message.reasoning


@check
def nvidia_openai():
    """openai: NVIDIA's sample, a stream with reasoning apart"""
    client = openai.OpenAI(base_url=f"{nvidia_url}/v1", api_key=key)
    completion = client.chat.completions.create(
        model="nvidia/nemotron-3-super-120b-a12b",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=1,
        top_p=0.95,
        max_tokens=16384,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}, "reasoning_budget": 16384},
        stream=True,
    )
    thoughts, text = "", ""
    for chunk in completion:
        if not chunk.choices:
            continue
        thoughts += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        text += chunk.choices[0].delta.content or ""
    assert thoughts or text


@check
def nvidia_requests():
    """requests: NVIDIA's sample, streamed and whole"""
    for stream in (True, False):
        headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "text/event-stream" if stream else "application/json",
        }
        payload = {
            "model": "nvidia/nemotron-3-super-120b-a12b",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 16384,
            "temperature": 1.00,
            "top_p": 0.95,
            "stream": stream,
            "chat_template_kwargs": {"enable_thinking": True},
        }
        response = requests.post(f"{nvidia_url}/v1/chat/completions", headers=headers, json=payload, stream=stream)
        assert response.ok, response.text
        if stream:
            lines = [line.decode("utf-8") for line in response.iter_lines() if line]
            assert lines[-1] == "data: [DONE]", lines[-1]
        else:
            assert response.json()["choices"][0]["message"]["role"] == "assistant"


failed = 0
for function in checks:
    try:
        function()
        print(f"ok     {function.__doc__}")
    except Exception:  # every check reports, whatever it met
        failed += 1
        print(f"FAILED {function.__doc__}")
        traceback.print_exc()
sys.exit(1 if failed else 0)
