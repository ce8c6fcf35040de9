"""Images and places as an attacker would make them: archives with any entry in them, and something that must not change."""

import copy
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tarfile

from cloud import IMAGES

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
APPLETS = ("sh", "httpd", "cat", "ls", "echo", "sleep", "env", "id", "true", "stat", "find", "chmod", "readlink", "mount", "cp")


def entry(name, kind=tarfile.REGTYPE, content=b"", link="", mode=0o644, owner=0, pax=None, device=(0, 0), size=None):
    """One entry of a layer, with a name that nothing has made harmless."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.uid = info.gid = owner
    info.size = len(content) if size is None else size
    info.devmajor, info.devminor = device
    info.pax_headers = pax or {}
    return info, content


def folder(name, mode=0o755):
    return entry(name, tarfile.DIRTYPE, mode=mode)


def link(name, target):
    return entry(name, tarfile.SYMTYPE, link=target, mode=0o777)


def placed(entries, canary):
    """The entries, with the directory of this machine that their links are about."""
    found = []
    for info, content in entries:
        info = copy.copy(info)
        info.linkname = info.linkname.replace("{canary}", str(canary))
        found.append((info, content))
    return found


def layer(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def base():
    """A layer with a shell and a web server in it."""
    busybox = pathlib.Path(shutil.which("busybox")).read_bytes()
    return layer(
        folder("bin"), folder("www"), folder("etc"), folder("tmp", 0o1777), entry("bin/busybox", content=busybox, mode=0o755),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        entry("etc/passwd", content=b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n"),
        entry("www/index.html", content=b"hello\n"),
    )


def configuration(layers, diff_ids=None, **more):
    config = {"Entrypoint": ["/bin/httpd", "-f", "-p", "8000", "-h", "/www"], "Env": ["PATH=/bin"], **more}
    ids = diff_ids or [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
    return json.dumps({"architecture": ARCHITECTURE, "os": "linux", "config": config,
                       "rootfs": {"type": "layers", "diff_ids": ids}}).encode()


def archive(path, layers, stored=None, **config):
    """As `docker save` writes one. `stored`: the layers as they are in it, where that is not as they are."""
    written = configuration(layers, **config)
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [], "Layers": names}]).encode()
    content = [("manifest.json", manifest), ("config.json", written), *zip(names, stored or layers)]
    path.write_bytes(layer(*(entry(name, content=bytes_) for name, bytes_ in content)))
    return path


def rooted(cloud, directory):
    """An image with Python and a shell whose programs are root's."""
    subprocess.run([IMAGES / "build", "fastapi"], check=True)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "tram" / "images"
    layout = directory / "layout"
    shutil.copytree(pathlib.Path(os.environ.get("TRAM_IMAGE_CACHE", cache)) / "fastapi", layout)
    subprocess.run(["umoci", "config", "--image", f"{layout}:latest", "--config.user", "0:0"], check=True, capture_output=True)
    file = directory / "rooted.tar"
    subprocess.run(["tar", "-C", layout, "-cf", file, "."], check=True)
    image = f"house/rooted-{directory.name.lower()}:1"
    cloud.tram("images", "import", "--data-dir", cloud.data, file, "--name", image)
    return image


def picture(directory):
    """All that could show a touch of what is below a directory of this machine, but for reading."""
    seen = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        about = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        seen[str(path)] = (about.st_mode, about.st_uid, about.st_gid, about.st_nlink, about.st_size, about.st_mtime_ns,
                           about.st_ctime_ns, content)
    return seen


def canary(directory):
    """A directory that is none of anybody's business, with what programs and starts would write to if they got there."""
    place = directory / "canary"
    for path in ("hosts", "resolv.conf", "hostname", "passwd", "executor", "identity"):
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"the machine's own {path}\n")
    (place / "inside").mkdir()
    os.chmod(place, 0o777)
    return place
