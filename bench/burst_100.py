"""A hundred connections at once to what does not run: on the platform, by socket activation, by Ray Serve.

The static server is one program, bench/burst/server.c, in an image of its own on the platform and, started by
socket activation, in the namespaces that the platform gives it but for the network's: crun makes them where it runs. The
FastAPI application is started by socket activation without any isolation for "its own start". All answers to one
burst are read by one thread, bench/burst/client.c. Ray Serve (min_replicas 0, upscale_delay_s 0) runs in an
environment of its own, which is installed from PyPI once.
"""

import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tempfile

from cloud import IMAGES, Cloud, Registry, free_port, wait_for
from wake_deep import asleep, deploy_sleeper

HERE = pathlib.Path(__file__).resolve().parent / "burst"
CALLERS, ROUNDS, RAY_ROUNDS = 100, 20, 3
RAY = "ray[serve]==2.60.0"
GOAL_MS, GOAL_START, GOAL_RAY = 15, 1.1, 100
# With two processors, which the peers may use as well.
INSTANCE_TYPE = "medium"
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
        # What it became and all below it; a program that waits for another hears nothing gentler.
        os.killpg(activator.pid, signal.SIGKILL)
        activator.wait(timeout=30)


def listening(port):
    """Whether somebody listens there, without a connection, which would start the program."""
    listen = "0A"
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == listen for row in rows)


def isolated(directory, root):
    """How the peer starts the server on the host's network, and what that is called: crun, with pid, mount, uts, ipc and
    cgroup namespaces, or where crun does not run (1.8 refuses hosts with both versions of cgroups) `unshare`, which does
    less."""
    bundle = directory / "bundle"
    bundle.mkdir()
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(root), "readonly": True}
    config["process"].update(terminal=False, args=["/server"])
    config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
    (bundle / "config.json").write_text(json.dumps(config))
    made = subprocess.run(["crun", "create", "--bundle", bundle, "probe"], stdin=subprocess.DEVNULL, capture_output=True,
                          check=False)
    subprocess.run(["crun", "delete", "--force", "probe"], capture_output=True, check=False)
    if made.returncode == 0:
        return "crun", lambda name: ["crun", "run", "--bundle", bundle, name]
    return "unshare", lambda _: ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--cgroup",
                                 "chroot", root, "/server"]


def by_activation(client, directory, root):
    """The peer's name and its answers."""
    tool, command = isolated(directory, root)
    times = []
    for number in range(ROUNDS):
        name = f"burst-{os.getpid()}-{number}"
        try:
            times += activated(client, command(name), {})
        finally:
            if tool == "crun":
                subprocess.run(["crun", "delete", "--force", name], capture_output=True, check=False)
    return tool, times


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
    host, service = deploy_sleeper(cloud, image, name, "--instance-type", INSTANCE_TYPE)
    bursts = []
    for _ in range(ROUNDS):
        wait_for("the service sleeps", lambda: asleep(cloud, service))
        bursts.append(burst(client, cloud.http_port, host))
        if len(cloud.instances(service["id"], "HEALTHY", "STARTING")) > 1:
            raise AssertionError("more than one wake")
    return bursts


def while_awake(cloud, client, image):
    """The same bursts at the same server when it runs already: what a hundred connections through the edge take."""
    cloud.tram("deploy", image, "--name", "awake", "--port", "8000", "--instance-type", INSTANCE_TYPE, timeout=120)
    host = cloud.host("awake")
    return [time for _ in range(ROUNDS) for time in burst(client, cloud.http_port, host)]


def with_ray(client):
    environment = CACHE / "ray"
    if not (environment / RAY).exists():
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run(["python3", "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", RAY], check=True)
        (environment / RAY).touch()
    done = subprocess.run([environment / "bin" / "python", HERE / "serve.py", client, str(CALLERS), str(RAY_ROUNDS)],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=900)
    # Ray says things of its own there too.
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if len(rounds) != RAY_ROUNDS:
        raise AssertionError(f"Ray Serve took part in {len(rounds)} of {RAY_ROUNDS} rounds: {done.stdout}")
    return [time for one in rounds for time in answers(one)]


def p99(times):
    return sorted(times)[int(len(times) * 0.99) - 1]


def run():
    registry, cloud = Registry(), Cloud().start()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="tram-burst-"))
    try:
        client, server = compiled(directory)
        image, root = pushed(directory, server, registry)
        static = [time for one in on_the_platform(cloud, client, image, "static") for time in one]
        awake = while_awake(cloud, client, image)
        tool, peer = by_activation(client, directory, root)
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
        "peer": f"socket activation and {tool}, p99", "ratio": p99(static) / p99(peer), "runs": ROUNDS,
        "spread": f"static median {statistics.median(static):.1f}; awake median {statistics.median(awake):.1f}, p99 "
                  f"{p99(awake):.1f}; {tool} median {statistics.median(peer):.1f}, p99 "
                  f"{p99(peer):.1f}; FastAPI to the last of 100 {statistics.median(fastapi):.0f} "
                  f"(bare {statistics.median(bare):.0f}); Ray Serve p99 {p99(ray):.0f}",
    }
