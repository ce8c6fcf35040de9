"""The edge with real programs behind it."""

import json

import httpx
import pytest
from websockets.sync.client import connect


@pytest.fixture(scope="module")
def fastapi(cloud, registry):
    cloud.tram("deploy", registry.image("fastapi"), "--name", "edge-fastapi", "--port", "8000")
    return cloud.host("edge-fastapi")


def test_websocket_through_fastapi(cloud, fastapi):
    with connect(f"ws://{fastapi}/ws", sock=cloud.connection()) as socket:
        socket.send("one")
        assert socket.recv(timeout=10) == "echo one"


def test_websocket_through_node(cloud, registry):
    cloud.tram("deploy", registry.image("node"), "--name", "edge-node", "--port", "8000")
    host = cloud.host("edge-node")
    with connect(f"ws://{host}/ws", sock=cloud.connection()) as socket:
        socket.send("two")
        assert socket.recv(timeout=10) == "echo two"
    assert json.loads(cloud.get(host, "/a/b")[2])["path"] == "/a/b"


def test_server_sent_events_arrive_one_by_one(cloud, fastapi):
    def tell(text):
        assert cloud.get(fastapi, f"/channel/one/{text}", method="POST")[0] == 200

    # The next event is only told once the one before has arrived: one that is held back is waited for in vain.
    tell(0)
    url = f"http://127.0.0.1:{cloud.http_port}/channel/one"
    with httpx.stream("GET", url, headers={"host": fastapi}, timeout=30) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data:"))
        for number in range(5):
            assert next(lines) == f"data: {number}"
            tell(number + 1 if number < 4 else "end")
        assert list(lines) == []


def test_large_bodies_stream_both_ways(cloud, fastapi):
    body = bytes(range(256)) * 65536
    status, _, echoed = cloud.get(fastapi, "/echo", method="POST", body=body, timeout=60)
    assert status == 200 and echoed == body


def test_forwarded_headers_and_request_id(cloud, fastapi):
    _, reply_headers, body = cloud.get(fastapi, "/headers", headers={"x-request-id": "abc-123"})
    seen = json.loads(body)
    assert seen["x-forwarded-host"] == fastapi
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-for"]
    assert seen["x-request-id"] == "abc-123"


def test_http2_and_tls_with_the_local_authority(cloud, fastapi):
    root = cloud.tram("trust", "--print", "--data-dir", cloud.data).stdout
    import ssl
    context = ssl.create_default_context(cadata=root)
    transport = httpx.HTTPTransport(verify=context, http2=True)
    with httpx.Client(transport=transport) as client:
        reply = client.get(
            f"https://127.0.0.1:{cloud.https_port}/health",
            headers={"host": fastapi}, extensions={"sni_hostname": fastapi},
        )
    assert reply.status_code == 200 and reply.http_version == "HTTP/2"


def test_unknown_host_says_so(cloud):
    status, _, body = cloud.get("nobody-here.tram.localhost", headers={"accept": "application/json"})
    assert status == 404 and json.loads(body)["status"] == 404
    status, headers, body = cloud.get("nobody-here.tram.localhost", headers={"accept": "text/html"})
    assert status == 404 and headers["content-type"].startswith("text/html") and b"<html" in body


def test_nginx_runs_as_packaged(cloud, registry):
    cloud.tram("deploy", registry.image("nginx"), "--name", "edge-nginx", "--port", "8000")
    assert b"nginx on Tramontane" in cloud.get(cloud.host("edge-nginx"))[2]
