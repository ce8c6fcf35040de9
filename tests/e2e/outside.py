"""An outside of the machine: a network namespace behind a pair of interfaces, with a web server in it."""

import contextlib
import subprocess


@contextlib.contextmanager
def served(name, link, here, there, page, listen):
    """`here` are commands on the machine's end `link`, `there` addresses to give, each with its interface and options."""
    commands = [
        f"ip netns add {name}",
        f"ip link add {link} type veth peer name eth0 netns {name}",
        *here,
        f"ip link set {link} up",
        f"sysctl -q -w net.ipv4.conf.{link}.forwarding=1",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} link set lo up",
        *(f"ip -n {name} addr add {address}" for address in there),
    ]
    for command in commands:
        subprocess.run(command.split(), check=True)
    server = subprocess.Popen(["ip", "netns", "exec", name, "busybox", "httpd", "-f", "-p", listen, "-h", page])
    try:
        yield
    finally:
        server.kill()
        server.wait()
        subprocess.run(["ip", "netns", "delete", name], check=True)
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["ip", "link", "delete", link], check=True, capture_output=True)
