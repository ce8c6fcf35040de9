"""A copy of a sandbox in which a Python process holds 256 MiB, from the order to that process's first answer in the copy;
beside a fresh sandbox in which the same program is started and fills its memory.

The snapshot is taken before, once for all copies, as `tram sandbox fork --count N` does."""

import time

from cloud import Cloud, Registry
from sandbox_client import Api, Executor, figure
from snapshot import taken

ROUNDS = 7
GOAL_MS = 150
PROGRAM = """import http.server, os
buffer = bytearray(os.urandom(1 << 20)) * 256
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % len(buffer))
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 9000), Handler).serve_forever()
"""
# In the shell alone, so that the asking costs little of what is measured.
ASK = "exec 3<>/dev/tcp/127.0.0.1/9000 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n 1 <&3"
START = f"cat > /tmp/program.py <<'END'\n{PROGRAM}END\nsetsid python3 /tmp/program.py > /dev/null 2>&1 & true"
UNTIL = f"until bash -c \"{ASK}\" 2> /dev/null; do sleep 0.01; done"


def run(rounds=ROUNDS):
    registry, cloud = Registry(), Cloud().start()
    try:
        api, image = Api(cloud), registry.image("fastapi")
        service, key = api.make("box", image, "small")
        first = Executor(cloud, key)
        first.run(START)
        first.run(UNTIL)
        took, snapshot = taken(api, service, "kept", "FULL")
        copies, fresh = [], []
        for number in range(rounds):
            begun = time.perf_counter()
            copy, key = api.make(f"copy-{number}", image, "small", snapshot["id"])
            Executor(cloud, key).run(UNTIL)
            copies.append((time.perf_counter() - begun) * 1000)
            begun = time.perf_counter()
            other, key = api.make(f"fresh-{number}", image, "small")
            executor = Executor(cloud, key)
            executor.run(START)
            executor.run(UNTIL)
            fresh.append((time.perf_counter() - begun) * 1000)
            for one in (copy, other):
                api.delete(one)
    finally:
        cloud.remove()
        registry.stop()
    made = figure(copies, GOAL_MS, "a fresh sandbox, the program started and its memory filled", fresh)
    return {**made, "spread": f"{made['spread']}; the snapshot once {took:.0f}"}
