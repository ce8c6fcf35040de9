"""Models from a registry of images: Debian's own, holding what Docker, Ollama, ModelPack's tools and ORAS push."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.error
import urllib.request

import pytest

import gguf
from cloud import DEADLINE_SECONDS, Registry

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY = "application/vnd.oci.empty.v1+json"
TITLE, FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
NOTES = b"Notes on the model."
LOGIN = "ann:let me in"


def call(base, method, path, data=None, kind="application/octet-stream", login=None):
    """The headers of the answer; the path may be a whole URL, as the registry gives it."""
    request = urllib.request.Request(path if path.startswith("http") else base + path, data=data, method=method)
    request.add_header("content-type", kind)
    if login:
        request.add_header("authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as reply:
        return reply.headers


def push(port, repository, tag, layers, config=EMPTY, kind=OCI_MANIFEST, login=None, **more):
    """Pushes an artifact as its packers do, and gives back the digest of its manifest. Layers: a type, the bytes and
    annotations."""
    base = f"http://127.0.0.1:{port}"

    def blob(content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        place = call(base, "POST", f"/v2/{repository}/blobs/uploads/", b"", login=login)["location"]
        call(base, "PUT", place + ("&" if "?" in place else "?") + f"digest={digest}", content, login=login)
        return {"digest": digest, "size": len(content)}

    manifest = {
        "schemaVersion": 2, "mediaType": kind, "config": {"mediaType": config, **blob(b"{}")},
        "layers": [{"mediaType": of, **blob(content), "annotations": named} for of, content, named in layers], **more,
    }
    return put(base, repository, tag, manifest, kind, login)


def put(base, repository, tag, manifest, kind, login=None):
    body = json.dumps(manifest).encode()
    call(base, "PUT", f"/v2/{repository}/manifests/{tag}", body, kind, login)
    return "sha256:" + hashlib.sha256(body).hexdigest()


@pytest.fixture
def pull(cloud):
    def pull(*words, check=True):
        return cloud.tram("models", "pull", "--data-dir", cloud.data, *words, check=check)

    return pull


def stored(cloud, name):
    return json.loads(cloud.tram("models", "show", name, "--output", "json").stdout)


def secret(cloud, name, kind, **value):
    status, reply = cloud.call("POST", "/v1/secrets", {"name": name, "type": kind, **value})
    assert status == 200, reply


# By whose tool: layers around the model's, its type, its annotations, and the manifest.
PACKED = {
    "docker": (
        [("application/vnd.docker.ai.license", NOTES, {})], "application/vnd.docker.ai.gguf.v3", {},
        {"config": "application/vnd.docker.ai.model.config.v0.1+json"},
    ),
    "ollama": (
        [("application/vnd.ollama.image.template", NOTES, {})], "application/vnd.ollama.image.model", {},
        {"config": "application/vnd.docker.container.image.v1+json", "kind": DOCKER_MANIFEST},
    ),
    "modelpack": (
        [(WEIGHT, NOTES, {FILEPATH: "tokenizer.model"})], WEIGHT, {FILEPATH: "tiny.gguf"},
        {"config": "application/vnd.cncf.model.config.v1+json", "artifactType": "application/vnd.cncf.model.manifest.v1+json"},
    ),
    "oras": (
        [("application/vnd.oci.image.layer.v1.tar", NOTES, {TITLE: "README.md"})],
        "application/vnd.oci.image.layer.v1.tar", {TITLE: "Tiny.Q8_0.gguf"}, {"artifactType": "application/vnd.unknown.artifact.v1"},
    ),
}


@pytest.mark.parametrize("packer", PACKED)
def test_a_model_comes_out_as_it_went_in(cloud, registry, pull, packer):
    around, kind, named, more = PACKED[packer]
    content = gguf.tiny(salt=list(PACKED).index(packer) + 100)
    push(registry.port, f"ai/of-{packer}", "Q8", [*around, (kind, content, named)], **more)
    source = f"oci://127.0.0.1:{registry.port}/ai/of-{packer}:Q8"
    pull(source)
    found = stored(cloud, f"of-{packer}-q8")
    assert found["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}" and found["origin"] == source
    assert not list((cloud.data / "models" / "downloads").iterdir())


def test_a_digest_names_one_and_a_checksum_is_kept_to(cloud, registry, pull):
    content, later = gguf.tiny(salt=110), gguf.tiny(salt=111)
    layer = lambda content: [("application/gguf", content, {})]
    pinned = push(registry.port, "ai/moved", "latest", layer(content))
    push(registry.port, "ai/moved", "latest", layer(later))
    place = f"oci://127.0.0.1:{registry.port}/ai/moved"
    pull(f"{place}@{pinned}", "--name", "pinned")
    assert stored(cloud, "pinned")["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    refused = pull(place, "--sha256", hashlib.sha256(content).hexdigest(), check=False)
    assert refused.returncode == 1 and "was expected" in refused.stderr
    pull(place, "--sha256", hashlib.sha256(later).hexdigest())
    assert stored(cloud, "moved")["digest"] == f"sha256:{hashlib.sha256(later).hexdigest()}"
    entry = {"mediaType": OCI_MANIFEST, "digest": pinned, "size": 1}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    put(f"http://127.0.0.1:{registry.port}", "ai/moved", "index", index, OCI_INDEX)
    pull(f"{place}:index", "--name", "of-an-index")
    assert stored(cloud, "of-an-index")["digest"] == stored(cloud, "pinned")["digest"]


def test_what_is_no_model_there_is_said(cloud, registry, pull):
    model = ("application/gguf", gguf.tiny(salt=120), {})
    push(registry.port, "ai/wrong", "notes", [("text/markdown", NOTES, {TITLE: "README.md"})])
    push(registry.port, "ai/wrong", "two", [model, ("application/gguf", gguf.tiny(salt=121), {})])
    push(registry.port, "ai/wrong", "tar", [("application/vnd.cncf.model.weight.v1.tar+gzip", NOTES, {})])
    push(registry.port, "ai/wrong", "page", [("application/gguf", b"<html>not a model</html>" * 100, {})])
    registry.image("hello")
    place = f"oci://127.0.0.1:{registry.port}"
    for source, words in (
        (f"{place}/ai/wrong:notes", "has no GGUF file; what it has is of type text/markdown"),
        (f"{place}/ai/wrong:two", "has 2 GGUF files"),
        (f"{place}/ai/wrong:tar", "weights in an archive"),
        (f"{place}/ai/wrong:page", "does not start with `GGUF`"),
        (f"{place}/ai/wrong:gone", "there is no `127.0.0.1"),
        (f"{place}/hello:latest", "has no GGUF file"),
        (f"{place}/AI/Wrong", "image names are lower case"),
        ("oci://", "names nothing"),
    ):
        refused = pull(source, "--name", "wrong", check=False)
        assert refused.returncode == 1 and words in refused.stderr, (source, refused.stderr)
    assert not list((cloud.data / "models" / "downloads").iterdir())


def test_a_private_one_needs_the_login_that_images_need(cloud, pull, monkeypatch, tmp_path):
    monkeypatch.setenv("TRAM_REGISTRY_LOGIN", LOGIN)
    private = Registry()
    try:
        push(private.port, "ai/private", "v1", [("application/gguf", gguf.tiny(salt=130), {})], login=LOGIN)
        source = f"oci://127.0.0.1:{private.port}/ai/private:v1"
        refused = pull(source, check=False)
        assert refused.returncode == 1 and "credentials.toml" in refused.stderr
        host = tmp_path / f"127.0.0.1:{private.port}"
        host.mkdir()
        user, password = LOGIN.split(":")
        (host / "credentials.toml").write_text(
            f'[host."127.0.0.1:{private.port}"]\nusername = "{user}"\npassword = "{password}"\n'
        )
        monkeypatch.setitem(cloud.environment, "TRAM_REGISTRIES_DIR", str(tmp_path))
        pull(source)
        assert stored(cloud, "private-v1")["origin"] == source
        # A secret's login goes before the operator's file, and to its own registry alone.
        names = {"url": f"127.0.0.1:{private.port}", "username": user, "password": password}
        secret(cloud, "ours", "REGISTRY", private_registry=names)
        secret(cloud, "theirs", "REGISTRY", private_registry={**names, "url": "elsewhere.example"})
        secret(cloud, "word", "SIMPLE", value="x")
        (host / "credentials.toml").write_text("")
        for name, words in (
            ("theirs", "is a login of elsewhere.example, and is not shown to 127.0.0.1"), ("word", "not of type REGISTRY"),
            ("nothing", "has no secret `nothing`"),
        ):
            refused = pull(source, "--name", "by-secret", "--secret", name, check=False)
            assert refused.returncode == 1 and words in refused.stderr, (name, refused.stderr)
        pull(source, "--name", "by-secret", "--secret", "ours")
        assert stored(cloud, "by-secret")["origin"] == source
    finally:
        private.stop()


class Cutting(http.server.BaseHTTPRequestHandler):
    """Stands between the registry and who asks it, and cuts each transfer of a blob off after a while."""

    protocol_version = "HTTP/1.1"
    registry = ""
    cut_after = 2**40
    starts = []

    def log_message(self, *words):
        pass

    def do_GET(self):
        request = urllib.request.Request(self.registry + self.path)
        for name in ("accept", "range"):
            if values := self.headers.get_all(name):
                request.add_header(name, ", ".join(values))
        try:
            reply = urllib.request.urlopen(request, timeout=DEADLINE_SECONDS)
        except urllib.error.HTTPError as error:
            reply = error
        body = reply.read()
        is_blob = "/blobs/" in self.path
        if is_blob:
            start = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
            self.starts.append(int(start[1]) if start else 0)
        self.send_response(reply.status)
        for name in ("content-type", "content-length", "content-range", "docker-content-digest"):
            if reply.headers.get(name):
                self.send_header(name, reply.headers[name])
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[: self.cut_after] if is_blob else body)
            self.wfile.flush()
            if is_blob and len(body) > self.cut_after:
                self.close_connection = True
                self.connection.shutdown(2)

    do_HEAD = do_GET


def test_a_transfer_goes_on_where_it_was_cut_off(cloud, registry, pull):
    content = gguf.tiny(salt=140) + bytes(1_000_000)
    push(registry.port, "ai/large", "v1", [("application/gguf", content, {})])
    served = {"starts": [], "registry": f"http://127.0.0.1:{registry.port}", "cut_after": 100_000}
    handler = type("Served", (Cutting,), served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"oci://127.0.0.1:{server.server_port}/ai/large:v1"
        # A line as bad as this is given up at some time, and what has come is kept.
        refused = pull(source, check=False)
        assert refused.returncode == 1 and len(handler.starts) > 2
        assert handler.starts == [part * 100_000 for part in range(len(handler.starts))]
        handler.cut_after = 2**40
        pull(source)
        assert handler.starts[-1] == (len(handler.starts) - 1) * 100_000
        server.shutdown()
    assert stored(cloud, "large-v1")["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
