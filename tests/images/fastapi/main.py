"""A small FastAPI application: what most web services look like from the outside."""

import asyncio
import collections
import os
import sys

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

app = FastAPI()


@app.get("/")
def root():
    return {"hello": "world", "instance": os.environ.get("KOYEB_INSTANCE_ID", "")}


@app.get("/health")
def health():
    return {"status": "ok"}


@app.get("/env/{name}")
def env(name: str):
    value = os.environ.get(name)
    if value is None:
        return JSONResponse({"error": f"{name} is not set"}, status_code=404)
    return {"value": value}


@app.get("/headers")
def headers(request: Request):
    return dict(request.headers)


@app.post("/echo")
async def echo(request: Request):
    body = await request.body()
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    return StreamingResponse(pieces, media_type="application/octet-stream")


@app.get("/slow/{seconds}")
async def slow(seconds: float):
    await asyncio.sleep(seconds)
    return PlainTextResponse("done")


channels = collections.defaultdict(asyncio.Queue)


@app.get("/channel/{name}")
async def listen(name: str):
    """An event for each text that somebody tells, the moment it is told, until that is `end`."""
    async def source():
        while (text := await channels[name].get()) != "end":
            yield f"data: {text}\n\n"

    return StreamingResponse(source(), media_type="text/event-stream")


@app.post("/channel/{name}/{text}")
async def tell(name: str, text: str):
    await channels[name].put(text)


@app.get("/say/{text}")
def say(text: str):
    print(text, flush=True)
    print(f"err {text}", file=sys.stderr, flush=True)
    return {"said": text}


@app.get("/crash")
def crash():
    os._exit(3)


@app.websocket("/ws")
async def ws(socket: WebSocket):
    await socket.accept()
    while True:
        await socket.send_text("echo " + await socket.receive_text())
