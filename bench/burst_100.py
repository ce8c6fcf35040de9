"""A hundred connections at once to what does not run: on the platform, by socket activation and crun, by Ray Serve.

The static server is one program, bench/burst/server.c, in an image of its own on the platform and under crun with the
namespaces that the platform gives it but for the network's, which socket activation hands it from the host. The
FastAPI application is started by socket activation without any isolation for "its own start". All answers to one
burst are read by one thread, bench/burst/client.c. Ray Serve (min_replicas 0, upscale_delay_s 0) runs in an
environment of its own, which is installed from PyPI once.

Not one of `make bench` yet: crun 1.8 does not hand the socket to its program here, so that peer loses every connection.
It takes Debian's crun and systemd.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile

from cloud import IMAGES, Cloud, Registry, free_port, wait_for
from wake_deep import asleep, deploy_sleeper

HERE = pathlib.Path(__file__).resolve().parent / "burst"
CALLERS, ROUNDS, RAY_ROUNDS = 100, 20, 3
RAY = "ray[serve]==2.60.0"
GOAL_MS, GOAL_START, GOAL_RAY = 15, 1.1, 100
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "tram"
IMAGE_CACHE = pathlib.Path(os.environ.get("TRAM_IMAGE_CACHE", CACHE / "images"))


def compiled(directory):
    """The two programs; the server needs nothing of an image."""
    client, server = directory / "client", directory / "server"
    subprocess.run(["cc", "-O2", "-o", client, HERE / "client.c"], check=True)
    subprocess.run(["cc", "-O2", "-static", "-o", server, HERE / "server.c"], check=True)
    return client, server


def pushed(directory, server, registry):
    """The server as the only file of an image."""
    root, layout = directory / "root", directory / "image"
    root.mkdir()
    shutil.copy(server, root / "server")
    for command in [
        ["init", "--layout", layout], ["new", "--image", f"{layout}:latest"],
        ["insert", "--image", f"{layout}:latest", root, "/"],
        ["config", "--image", f"{layout}:latest", "--no-history", "--config.entrypoint", "/server"],
    ]:
        subprocess.run(["umoci", *command], check=True, capture_output=True)
    reference = f"127.0.0.1:{registry.port}/burst:latest"
    subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false",
                    f"oci:{layout}:latest", f"docker://{reference}"], check=True)
    return reference, root


def burst(client, port, host):
    """The milliseconds of every answer; fails when one was lost."""
    done = subprocess.run([client, str(port), host, str(CALLERS)], capture_output=True, text=True, check=True)
    return answers(done.stdout.splitlines())


def answers(lines):
    lost = [line for line in lines if line.startswith("lost")]
    if lost or len(lines) != CALLERS:
        raise AssertionError(f"{len(lost)} of {CALLERS} lost, the first: {lost[:1]}")
    return [float(line) for line in lines]


def activated(client, command, environment):
    """One burst at a program that the first connection starts; it is ended afterwards."""
    port = free_port()
    options = [part for key, value in environment.items() for part in ("-E", f"{key}={value}")]
    activator = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *options, *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        wait_for("the socket is there", lambda: listening(port))
        return burst(client, port, "localhost")
    finally:
        activator.terminate()
        activator.wait(timeout=30)


def listening(port):
    """Whether somebody listens there, without a connection, which would start the program."""
    listen = "0A"
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == listen for row in rows)


def with_crun(client, directory, root):
    """The server under crun: pid, mount, uts, ipc and cgroup namespaces, the host's network."""
    bundle = directory / "bundle"
    bundle.mkdir()
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"].update(terminal=False, args=["/server"])
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
    (bundle / "config.json").write_text(json.dumps(config))
    times = []
    for number in range(ROUNDS):
        name = f"burst-{os.getpid()}-{number}"
        try:
            times += activated(client, ["crun", "run", "--bundle", bundle, name], {})
        finally:
            subprocess.run(["crun", "delete", "--force", name], capture_output=True, check=False)
    return times


def bare_fastapi(client, directory):
    """The application's own start: its files, its interpreter, no isolation."""
    subprocess.run([IMAGES / "build", "fastapi"], check=True)
    bundle = directory / "fastapi"
    subprocess.run(["umoci", "unpack", "--image", f"{IMAGE_CACHE}/fastapi:latest", bundle], check=True,
                   capture_output=True)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": "/app/site:/app",
                   "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["chroot", bundle / "rootfs", "python3", "-m", "uvicorn", "main:app", "--fd", "3"]
    return [max(activated(client, command, environment)) for _ in range(ROUNDS)]


def on_the_platform(cloud, client, image, name):
    """All answers of every burst at a service that was asleep."""
    host, service = deploy_sleeper(cloud, image, name)
    bursts = []
    for _ in range(ROUNDS):
        wait_for("the service sleeps", lambda: asleep(cloud, service))
        bursts.append(burst(client, cloud.http_port, host))
        if len(cloud.instances(service["id"], "HEALTHY", "STARTING")) > 1:
            raise AssertionError("more than one wake")
    return bursts


def with_ray(client):
    environment = CACHE / "ray"
    if not (environment / RAY).exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run(["python3", "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", RAY], check=True)
        (environment / RAY).touch()
    done = subprocess.run([environment / "bin" / "python", HERE / "serve.py", client, str(CALLERS), str(RAY_ROUNDS)],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=900)
    return [time for line in done.stdout.splitlines() for time in answers(json.loads(line))]


def p99(times):
    return sorted(times)[int(len(times) * 0.99) - 1]


def run():
    registry, cloud = Registry(), Cloud().start()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tram-burst-"))
    try:
        client, server = compiled(directory)
        image, root = pushed(directory, server, registry)
        static = [time for one in on_the_platform(cloud, client, image, "static") for time in one]
        crun = with_crun(client, directory, root)
        fastapi = [max(one) for one in on_the_platform(cloud, client, registry.image("fastapi"), "fastapi")]
        bare = bare_fastapi(client, directory)
        ray = with_ray(client)
    finally:
        cloud.remove()
        registry.stop()
        shutil.rmtree(directory, ignore_errors=True)
    start = statistics.median(fastapi) / statistics.median(bare)
    return {
        "figure": p99(static), "unit": f"ms at p99, static server; FastAPI {start:.2f} of its own start; none lost",
        "goal": f"<= {GOAL_MS} ms, <= {GOAL_START}, 1/{GOAL_RAY} of Ray Serve",
        "pass": p99(static) <= GOAL_MS and start <= GOAL_START and p99(ray) >= GOAL_RAY * p99(static),
        "peer": "socket activation and crun, p99", "ratio": p99(static) / p99(crun), "runs": ROUNDS,
        "spread": f"static median {statistics.median(static):.1f}; crun median {statistics.median(crun):.1f}, p99 "
                  f"{p99(crun):.1f}; FastAPI to the last of 100 {statistics.median(fastapi):.0f} "
                  f"(bare {statistics.median(bare):.0f}); Ray Serve p99 {p99(ray):.0f}",
    }
