"""Sandboxes for agents: `tram mcp`, spoken to by the protocol's own Python SDK."""

import asyncio
import base64
import contextlib
import subprocess

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from cloud import BINARY, free_port, wait_for

TOKEN = "a-token-of-the-tests-0123456789"
TOOLS = {
    "create_sandbox", "run", "read_file", "write_file", "list_files", "list_sandboxes", "fork_sandbox", "delete_sandbox",
}


@pytest.fixture(scope="module")
def python_image(registry):
    return registry.image("fastapi")


def over_stdio(cloud):
    return Client(stdio_client(StdioServerParameters(command=str(BINARY), args=["mcp"], env=cloud.environment)))


@contextlib.contextmanager
def listening(cloud, *arguments, **environment):
    """The URL of a `tram mcp` that listens on loopback."""
    port = free_port()
    server = subprocess.Popen(
        [BINARY, "mcp", "--listen", f"127.0.0.1:{port}", *arguments],
        env={**cloud.environment, **environment}, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert f"127.0.0.1:{port}/mcp" in server.stderr.readline()
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


async def ask(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text
    return result.structured_content


async def refused(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.structured_content
    return result.content[0].text


async def work(client, image):
    """What an agent does, from the first call to the last."""
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == TOOLS
    assert all(tool.description and tool.input_schema["type"] == "object" for tool in tools.values())

    box = (await ask(client, "create_sandbox", image=image, env={"WHO": "agent"}, delete_after_seconds=600))["sandbox"]
    known = (await ask(client, "list_sandboxes"))["sandboxes"]
    assert box in [one["sandbox"] for one in known]

    done = await ask(client, "run", sandbox=box, command='read x; echo "$WHO $x"; echo oh >&2; exit 3', stdin="hi\n")
    assert done == {"exit_code": 3, "stdout": "agent hi\n", "stderr": "oh\n"}
    done = await ask(client, "run", sandbox=box, argv=["python3", "-c", "print(6*7)"])
    assert (done["stdout"], done["exit_code"]) == ("42\n", 0)
    done = await ask(client, "run", sandbox=box, command="yes | head -c 500000", max_output_bytes=1000)
    assert (len(done["stdout"]), done["stdout_bytes_dropped"]) == (1000, 499000)

    text = "print('grüße')\n" * 3
    assert (await ask(client, "write_file", sandbox=box, path="/tmp/new/a.py", content=text, mode="700")) == {
        "written_bytes": len(text.encode()),
    }
    read = await ask(client, "read_file", sandbox=box, path="/tmp/new/a.py")
    assert read == {"content": text, "is_base64": False, "truncated": False}
    raw = bytes(range(256)) * 4096
    await ask(
        client, "write_file", sandbox=box, path="/tmp/new/raw", content=base64.b64encode(raw).decode(), is_base64=True,
    )
    seen, offset = b"", 0
    while offset is not None:
        part = await ask(client, "read_file", sandbox=box, path="/tmp/new/raw", offset=offset, max_bytes=300_001)
        assert part["is_base64"]
        seen, offset = seen + base64.b64decode(part["content"]), part.get("next_offset")
    assert seen == raw
    entries = (await ask(client, "list_files", sandbox=box, path="/tmp/new"))["entries"]
    assert entries == [
        {"name": "a.py", "kind": "file", "size": len(text.encode()), "mode": "0700"},
        {"name": "raw", "kind": "file", "size": len(raw), "mode": "0644"},
    ]

    # What goes wrong says what to do.
    assert "No such file" in await refused(client, "read_file", sandbox=box, path="/no/such")
    assert "list_sandboxes" in await refused(client, "run", sandbox="nobody", command="true")
    assert "command" in await refused(client, "run", sandbox=box)
    assert "timeout_seconds" in await refused(client, "run", sandbox=box, command="true", timeout_seconds=10**6)
    assert "unknown field" in await refused(client, "list_files", sandbox=box, path="/", depth=2)
    assert "base64" in await refused(client, "write_file", sandbox=box, path="/tmp/x", content="!", is_base64=True)
    assert "does not start" in await refused(client, "create_sandbox", image=image + "-nope")

    # A command whose time is over is gone.
    late = await refused(client, "run", sandbox=box, command="sleep 98765 & sleep 98765", timeout_seconds=1)
    assert "killed" in late and "background" in late
    left = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep 98765'"
    for _ in range(100):
        if (await ask(client, "run", sandbox=box, command=left))["stdout"] == "0\n":
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the command still runs")

    forks = (await ask(client, "fork_sandbox", sandbox=box, count=2))["sandboxes"]
    assert len({box, *forks}) == 3
    for fork in forks:
        assert (await ask(client, "read_file", sandbox=fork, path="/tmp/new/a.py"))["content"] == text
        await ask(client, "delete_sandbox", sandbox=fork)
    assert "count" in await refused(client, "fork_sandbox", sandbox=box, count=10**6)

    await ask(client, "delete_sandbox", sandbox=box)


def no_sandbox(cloud):
    return "box-" not in cloud.tram("sandbox", "ls").stdout


def test_an_agent_works_over_standard_input_and_output(cloud, python_image):
    async def life():
        async with over_stdio(cloud) as client:
            await work(client, python_image)

    asyncio.run(life())
    wait_for("no sandbox is left", lambda: no_sandbox(cloud))


def test_an_agent_works_over_http_with_a_token(cloud, python_image):
    async def life(url):
        async with httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=120) as http:
            async with Client(streamable_http_client(url, http_client=http)) as client:
                await work(client, python_image)

    with listening(cloud, TRAM_MCP_TOKEN=TOKEN) as url:
        asyncio.run(life(url))
    wait_for("no sandbox is left", lambda: no_sandbox(cloud))


def test_files_need_nothing_of_the_image_and_other_services_are_none_of_its_business(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")

    async def life():
        async with over_stdio(cloud) as client:
            box = (await ask(client, "create_sandbox", image=registry.image("hello")))["sandbox"]
            await ask(client, "write_file", sandbox=box, path="/tmp/f", content="x")
            assert (await ask(client, "read_file", sandbox=box, path="/tmp/f"))["content"] == "x"
            await ask(client, "delete_sandbox", sandbox=box)
            assert "no sandbox" in await refused(client, "run", sandbox=name, command="true")
            assert "no sandbox" in await refused(client, "delete_sandbox", sandbox=name)

    asyncio.run(life())
    cloud.tram("delete", name)


def test_http_is_closed_to_strangers_and_to_web_pages(cloud):
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    usual = {"accept": "application/json, text/event-stream"}
    bearer = {**usual, "authorization": f"Bearer {TOKEN}"}
    with listening(cloud, "--allow-host", "agents.example", TRAM_MCP_TOKEN=TOKEN) as url:
        def status(headers):
            return httpx.post(url, json=call, headers=headers).status_code

        assert status(bearer) == 200
        assert status({**bearer, "host": "agents.example"}) == 200
        assert status(usual) == 401
        assert status({**usual, "authorization": f"Bearer {TOKEN}x"}) == 401
        assert status({**usual, "authorization": f"Basic {TOKEN}"}) == 401
        assert status({**bearer, "host": "evil.example"}) == 403
        assert status({**bearer, "origin": "http://evil.example"}) == 403
    done = subprocess.run(
        [BINARY, "mcp", "--listen", "0.0.0.0:0"], env=cloud.environment, capture_output=True, text=True, timeout=30,
    )
    assert done.returncode == 2 and "TRAM_MCP_TOKEN" in done.stderr
