// The wire: requests, server-sent events, errors.

export class ApiError extends Error {
  constructor(status, error, retryAfter) {
    super(error.message ?? `HTTP ${status}`);
    Object.assign(this, { status, param: error.param, code: error.code, retryAfter });
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, say: the status is all there is.
  }
  return new ApiError(response.status, error, response.headers.get("retry-after"));
}

export async function listModels(key) {
  const response = await fetch("/v1/models", { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data;
}

/** Yields the chunks of a streamed chat completion. */
export async function* streamChat(body, key, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.status ?? 200, chunk.error);
    yield chunk;
  }
  throw new ApiError(200, { message: "the stream broke off before its end" });
}

/** The `data` of each event; comments keep the connection alive and carry nothing. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffer += value;
      const parts = buffer.split(/\r?\n\r?\n/);
      buffer = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    // Whoever stops listening also stops the model.
    reader.cancel().catch(() => {});
  }
}

/** The same request for a shell; the key stays out of it. */
export function curl(body, hasKey) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const auth = hasKey ? " \\\n  -H \"Authorization: Bearer $NEMOSERVE_API_KEY\"" : "";
  return `curl --no-buffer ${location.origin}/v1/chat/completions${auth} \\\n  -d '${quoted}'`;
}
