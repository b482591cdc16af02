"""What clients do to a server, on purpose or not. Each takes a client, random numbers and a tally; the
answers that they do wait for must be those that the fault deserves."""

import asyncio
import json
import socket
import struct

PROMPT = "A long story about ships, storms and the people who sail. "


class Client:
    """Raw HTTP/1.1, one connection for each request."""

    def __init__(self, port):
        self.port = port

    async def connect(self, receive_buffer=None):
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        # A reader that wants little must not be read for by its library.
        return await asyncio.open_connection(sock=sock, limit=receive_buffer or 1 << 16)

    async def send(self, path, body, receive_buffer=None, method="POST", headers=""):
        reader, writer = await self.connect(receive_buffer)
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}"
                f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n")
        writer.write(head.encode() + payload)
        await writer.drain()
        return reader, writer

    async def request(self, method, path, body=b"", patience=60):
        async with asyncio.timeout(patience):
            reader, writer = await self.send(path, body, method=method)
            try:
                return parsed(await reader.read())
            finally:
                writer.close()


def parsed(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        raise ConnectionResetError("closed without an answer")
    first, *lines = head.decode("latin-1").split("\r\n")
    # Whoever sends no more is asked whether it is there by a line that means nothing.
    if first.split(" ")[1] == "100":
        return parsed(body)
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            length = int(size, 16)
            whole, body = whole + rest[:length], rest[length + 2:]
        body = whole
    return int(first.split(" ")[1]), headers, body


def long_story(rng, stream=True):
    repeated = rng.randint(1, 40)
    return {"model": "nemoserve-demo", "prompt": f"{rng.random()} {PROMPT * repeated}", "ignore_eos": True,
            "max_tokens": rng.randint(20, 400), "stream": stream}


def reset(writer):
    """Leaves without a good-bye."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def leaves_in_the_stream(client, rng, counts):
    reader, writer = await client.send("/v1/completions", long_story(rng))
    try:
        await asyncio.wait_for(reader.read(rng.randint(1, 4000)), 30)
    finally:
        reset(writer) if rng.random() < 0.5 else writer.close()


async def leaves_before_the_answer(client, rng, counts):
    _, writer = await client.send("/v1/completions", long_story(rng, stream=False))
    await asyncio.sleep(rng.random() * 0.2)
    reset(writer) if rng.random() < 0.5 else writer.close()


async def reads_slowly(client, rng, counts):
    reader, writer = await client.send("/v1/completions", long_story(rng), receive_buffer=2048)
    for _ in range(rng.randint(10, 60)):
        if not await asyncio.wait_for(reader.read(1), 30):
            break
        await asyncio.sleep(0.02)
    writer.close()


async def never_reads(client, rng, counts):
    _, writer = await client.send("/v1/completions", long_story(rng), receive_buffer=2048)
    writer.transport.pause_reading()
    await asyncio.sleep(rng.random() * 2)
    reset(writer)


async def floods(client, rng, counts):
    """Far more than may wait."""
    async def one():
        status, headers, body = await client.request("POST", "/v1/completions", long_story(rng, stream=False) | {"max_tokens": 4})
        counts[f"status {status}"] += 1
        assert status in (200, 429, 503), (status, body)
        if status != 200:
            assert "retry-after" in headers, headers
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}, body
    await asyncio.gather(*(one() for _ in range(48)))


NONSENSE = [
    b"", b"{", b"[]", b"null", b'{"model":"nemoserve-demo"}', b"\xff\xfe{}", b'{"model":"x","prompt":"a"}',
    b"[" * 10_000, b'{"a":' * 10_000, b'{"model":"nemoserve-demo","prompt":"a","max_tokens":-1}',
    b'{"model":"nemoserve-demo","prompt":"a","max_tokens":1e999}', b'{"model":"nemoserve-demo","prompt":"a","temperature":NaN}',
    b'{"model":"nemoserve-demo","prompt":"\\ud800","max_tokens":"1"}', b'{"model":"nemoserve-demo","prompt":[99999999]}',
    b'{"model":"nemoserve-demo","prompt":"a","n":100000}', b'{"model":"nemoserve-demo","prompt":"a","logit_bias":{"99999999":1}}',
    b'{"model":"nemoserve-demo","prompt":"a","stop":[' + b'"x",' * 2000 + b'"x"]}',
    b'{"model":"nemoserve-demo","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://127.0.0.1/x"}}]}]}',
    b'{"model":"nemoserve-demo","messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"$ref":"http://127.0.0.1/x"}}}}',
    b'{"model":"nemoserve-demo","prompt":"' + b"a" * 300_000 + b'"}',
]


async def sends_nonsense(client, rng, counts):
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/v1/responses", "/nowhere"])
    body = rng.choice(NONSENSE)
    status, _, answer = await client.request("POST", path, body)
    counts[f"status {status}"] += 1
    assert 400 <= status < 500, (path, body[:100], status, answer)
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}, answer


async def sends_no_http(client, rng, counts):
    reader, writer = await client.connect()
    writer.write(rng.choice([b"\x16\x03\x01\x00\xa5\x01" + rng.randbytes(60), b"GARBAGE\r\n\r\n", rng.randbytes(300),
                             b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
                             b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
                             b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"]))
    try:
        await writer.drain()
        await asyncio.wait_for(reader.read(), rng.random() * 2)
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()


async def dawdles(client, rng, counts):
    """Begins a request, and no more."""
    _, writer = await client.connect()
    whole = b'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{"model":'
    for byte in whole[: rng.randint(1, len(whole))]:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.005)
    writer.close()


async def closes_its_half(client, rng, counts):
    """Has said all that it wants to say: it still listens, and must be answered."""
    body = {"model": "nemoserve-demo", "prompt": f"{rng.random()}", "max_tokens": 4, "ignore_eos": True}
    async with asyncio.timeout(60):
        reader, writer = await client.send("/v1/completions", body)
        writer.write_eof()
        status, _, answer = parsed(await reader.read())
        writer.close()
    counts[f"status {status}"] += 1
    assert status in (200, 429, 503), (status, answer)
    if status == 200:
        assert json.loads(answer)["usage"]["completion_tokens"] == 4, answer


async def asks_for_much(client, rng, counts):
    """Several long answers at once: more than the cache holds."""
    async def one():
        status, _, body = await client.request(
            "POST", "/v1/completions", long_story(rng, stream=False) | {"n": 4, "max_tokens": 200, "temperature": 1})
        counts[f"status {status}"] += 1
        assert status in (200, 400, 429, 503), (status, body)
    await asyncio.gather(*(one() for _ in range(3)))


FAULTS = [leaves_in_the_stream, leaves_before_the_answer, reads_slowly, never_reads, floods, sends_nonsense,
          sends_no_http, dawdles, closes_its_half, asks_for_much]
