#!/usr/bin/env bash
# The providers' curl samples. Usage: curl.sh URL NVIDIA_URL KEY
set -euo pipefail
url="$1" nvidia="$2" key="$3"
failed=0

# Prints a line for what the JSON on standard input must be.
says() {
    local name="$1" test="$2"
    python3 -c '
import json, sys
name, test = sys.argv[1:]
text = sys.stdin.read()
try:
    answer = json.loads(text) if not text.startswith("data:") else text
    assert eval(test), test
    print(f"ok     {name}")
except Exception as error:
    print(f"FAILED {name}: {error!r}\n{text}")
    sys.exit(1)
' "$name" "$test" || failed=1
}

# Cloudflare's page sends no content type: curl says it is a form.
curl --silent --show-error "$url/client/v4/accounts/0123456789abcdef/ai/run/@cf/nvidia/nemotron-3-120b-a12b" \
    -X POST \
    -H "Authorization: Bearer $key" \
    -d '{ "messages": [{ "role": "system", "content": "You are a friendly assistant" }, { "role": "user", "content": "Why is pizza so good" }]}' \
    | says "curl: Cloudflare REST without a content type" \
        'answer["success"] and answer["errors"] == [] and answer["result"]["choices"][0]["message"]["content"]'

curl --silent --show-error "$url/client/v4/accounts/0123456789abcdef/ai/v1/chat/completions" \
    -H "Authorization: Bearer $key" \
    -H "Content-Type: application/json" \
    -d '{"model": "@cf/nvidia/nemotron-3-120b-a12b", "messages": [{"role": "user", "content": "Why is pizza so good"}]}' \
    | says "curl: Cloudflare's OpenAI endpoint" 'answer["object"] == "chat.completion"'

curl --silent --show-error "$url/v1/openai/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $key" \
    -d '{
      "model": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B",
      "messages": [
        {"role": "system", "content": "Respond like a michelin starred chef."},
        {"role": "user", "content": "Can you name at least two different techniques to cook lamb?"},
        {"role": "assistant", "content": "Bonjour! Let me tell you, my friend, cooking lamb is an art form."},
        {"role": "user", "content": "Tell me more about the second method."}
      ]
    }' \
    | says "curl: DeepInfra, several turns" \
        'answer["usage"]["estimated_cost"] > 0 and answer["choices"][0]["message"]["role"] == "assistant"'

curl --silent --show-error "$url/v1/openai/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $key" \
    -d '{"model": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}' \
    | says "curl: DeepInfra, streamed" 'answer.endswith("data: [DONE]\n\n")'

curl --silent --show-error "$url/api/v1/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $key" \
    -d '{"model": "nvidia/nemotron-3-super-120b-a12b:free", "messages": [{"role": "user", "content": "What is the meaning of life?"}]}' \
    | says "curl: OpenRouter" 'answer["usage"]["cost"] > 0 and answer["choices"][0]["native_finish_reason"]'

curl --silent --show-error "$nvidia/v1/chat/completions" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $key" \
    -d '{"messages": [{"role": "user", "content": "Write a limerick about the wonders of GPU computing."}], "max_tokens": 64}' \
    | says "curl: NVIDIA streams unless told otherwise" 'answer.endswith("data: [DONE]\n\n")'

curl --silent --show-error "$nvidia/v1/chat/completions" \
    -H "Accept: application/json" \
    -H "Content-Type: application/json" \
    -H "Authorization: Bearer $key" \
    -d '{
      "model": "nvidia/nemotron-3-super-120b-a12b",
      "messages": [{"role": "user", "content": "Write a limerick about the wonders of GPU computing."}],
      "temperature": 1, "top_p": 0.95, "max_tokens": 64, "seed": 42, "stream": false
    }' \
    | says "curl: NVIDIA, whole" 'answer["usage"]["completion_tokens"] <= 64'

exit "$failed"
