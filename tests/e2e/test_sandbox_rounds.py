"""A sandbox that is kept and goes on from what was kept, over and over, with checksums of everything in it: all files with
their owners, times and attributes, and all that its processes have in memory and in the kernel.

`TRAM_TEST_SNAPSHOT_ROUNDS` says how often, `TRAM_TEST_SEED` repeats what is changed between."""

import json
import os
import random
import time

import pytest
from koyeb import Sandbox
from koyeb.sandbox.snapshot import SnapshotStatus, SnapshotType

import hostile
import inside
from cloud import wait_for
from leaks import Footprint

ROUNDS = int(os.environ.get("TRAM_TEST_SNAPSHOT_ROUNDS", "3"))
# A round takes some seconds; a slow machine takes far less than this.
ROUND_SECONDS = 60

# Holds something of each kind that a process can hold, in two processes and several threads; tells the checksum of each to
# who asks, and changes all of it, by a seed.
PROGRAM = r"""
import base64, hashlib, http.server, json, mmap, os, random, signal, socket, sys, threading, time
MIB = 1 << 20
seed = random.Random(int(sys.argv[1]))
os.makedirs('/state', exist_ok=True)
os.chdir('/state')
os.umask(0o027)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])

private = bytearray(seed.randbytes(48 * MIB))
shared = mmap.mmap(-1, 4 * MIB)
shared.write(seed.randbytes(4 * MIB))
with open('mapped', 'wb') as file:
    file.write(seed.randbytes(2 * MIB))
mapped_file = open('mapped', 'r+b')
mapped = mmap.mmap(mapped_file.fileno(), 2 * MIB)
# One that no name leads to any more.
os.makedirs('/ghosts', exist_ok=True)
gone = open('/ghosts/gone', 'w+b')
gone.write(seed.randbytes(300_000)); gone.flush()
os.unlink('/ghosts/gone')
# In the middle of a file, and at its end.
middle = open('middle', 'w+b', buffering=0)
middle.write(seed.randbytes(100_000)); middle.seek(1234)
log = open('log', 'ab', buffering=0)
reading, writing = os.pipe()
os.write(writing, seed.randbytes(10_000))
os.set_blocking(reading, False)
in_pipe = os.read(reading, 20_000); os.write(writing, in_pipe)
one, other = socket.socketpair()
one.sendall(b'on its way ' * 100)
# In threads, each with numbers of its own on its stack.
ask, told = [], {}
def thread(number):
    own = random.Random(number)
    while True:
        ask[number].wait(); ask[number].clear()
        told[number].append(own.getrandbits(64))
for number in range(4):
    ask.append(threading.Event()); told[number] = []
    threading.Thread(target=thread, args=(number,), daemon=True).start()
# A child with memory of its own, asked through pipes.
to_child, from_parent = os.pipe()[::-1]
from_child, to_parent = os.pipe()
child = os.fork()
if child == 0:
    os.close(to_child); os.close(from_child)
    own = bytearray(seed.randbytes(8 * MIB))
    count = 0
    while os.read(from_parent, 1):
        count += 1
        own[count * 977 % len(own)] ^= 1
        os.write(to_parent, hashlib.sha256(own).digest())
os.close(from_parent); os.close(to_parent)

def pipe_content():
    content = os.read(reading, 1 << 16)
    os.write(writing, content)
    return content

def sums():
    sha = lambda content: hashlib.sha256(content).hexdigest()
    gone.seek(0)
    return {
        'private': sha(private), 'shared': sha(shared[:]), 'mapped': sha(mapped[:]), 'gone': sha(gone.read()),
        'pipe': sha(pipe_content()), 'socket': sha(other.recv(1 << 16, socket.MSG_PEEK)),
        'middle': middle.tell(), 'threads': {str(key): value[-3:] for key, value in told.items()},
        'environment': dict(os.environ), 'directory': os.getcwd(), 'ids': [os.getpid(), child, os.getsid(0), os.getuid()],
        'mask': sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), 'address': id(private),
        'descriptors': len(os.listdir('/proc/self/fd')),
    }

def change(number):
    by = random.Random(number)
    for _ in range(200):
        private[by.randrange(len(private))] ^= 1 + by.randrange(255)
    shared[by.randrange(4 * MIB)] = by.randrange(256)
    mapped[by.randrange(2 * MIB)] = by.randrange(256)
    gone.seek(by.randrange(300_000)); gone.write(b'changed'); gone.flush()
    middle.seek(by.randrange(90_000)); middle.write(b'here')
    log.write(f'round {number}\n'.encode())
    pipe_content(); os.write(writing, by.randbytes(8))
    before = {key: len(value) for key, value in told.items()}
    for event in ask:
        event.set()
    while any(len(told[key]) == count for key, count in before.items()):
        time.sleep(0.001)
    os.write(to_child, b'.')
    child_sum = os.read(from_child, 32).hex()
    # Files: made, renamed, removed, linked, with holes, with attributes.
    name = f'file-{number}'
    with open(name, 'wb') as file:
        file.write(by.randbytes(by.randrange(200_000))); file.seek(by.randrange(1 << 30)); file.write(b'far')
    os.setxattr(name, 'user.round', str(number).encode())
    os.chmod(name, by.choice([0o600, 0o644, 0o4755, 0o1777]))
    os.chown(name, by.randrange(1000), by.randrange(1000))
    os.link(name, f'linked-{number}')
    os.symlink(f'../state/{name}', f'link-{number}')
    os.makedirs(f'folder-{number}/{by.randrange(10)}', exist_ok=True)
    if number > 2:
        os.rename(f'linked-{number - 1}', f'folder-{number}/moved')
        os.unlink(f'file-{number - 2}')
    os.utime(name, ns=(by.randrange(10**18), by.randrange(10**18)))
    return child_sum

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        what, _, number = self.path[1:].partition('/')
        said = json.dumps(sums() if what == 'sums' else change(int(number))).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(said)
    def log_message(self, *_):
        pass
http.server.HTTPServer(('127.0.0.1', 9000), Handler).serve_forever()
"""
ASK = "python3 -B -c 'import sys, urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9000/\" + sys.argv[1]).read().decode())'"

pytestmark = pytest.mark.usefixtures("sdk_environment")


def ask(box, what):
    done = box.exec(f"{ASK} {what}")
    assert done.success, done
    return json.loads(done.stdout)


@pytest.mark.timeout(300 + ROUNDS * ROUND_SECONDS)
def test_rounds_keep_everything(own_cloud, tmp_path, monkeypatch):
    cloud = own_cloud
    monkeypatch.setenv("KOYEB_API_HOST", cloud.api_url)
    monkeypatch.setenv("KOYEB_API_TOKEN", cloud.token)
    seed = int(os.environ.get("TRAM_TEST_SEED", random.randrange(1 << 31)))
    print(f"TRAM_TEST_SEED={seed}")
    footprint = Footprint(cloud)
    current = Sandbox.create(image=hostile.rooted(cloud, tmp_path), name="round-0", instance_type="small", timeout=60)
    current.filesystem.write_file("/tmp/program.py", PROGRAM)
    inside.install(current)
    current.launch_process(f"python3 -B /tmp/program.py {seed}")
    wait_for("the program answers", lambda: current.exec(f"{ASK} sums").success)
    begun, slowest = time.monotonic(), 0.0
    for number in range(1, ROUNDS + 1):
        started = time.monotonic()
        # In memory that was read back, to be read back again.
        assert ask(current, f"change/{number}")
        files, memory = inside.everything(current), ask(current, "sums")
        snapshot = current.snapshot(name=f"round-{number}", snapshot_type=SnapshotType.FULL)
        assert (snapshot.status, snapshot.snapshot_type) == (SnapshotStatus.AVAILABLE, SnapshotType.FULL)
        assert "is whole" in cloud.tram("snapshots", "verify", snapshot.id).stderr
        # What it was made of goes on as it was.
        assert ask(current, "sums") == memory
        following = snapshot.spawn(name=f"round-{number}", instance_type="small", timeout=60)
        assert ask(following, "sums") == memory, number
        assert inside.difference(files, inside.everything(following)) == {}, number
        current.delete()
        current = following
        cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")
        slowest = max(slowest, time.monotonic() - started)
        print(f"round {number}: {time.monotonic() - started:.1f} s", flush=True)
    taken = time.monotonic() - begun
    print(f"{ROUNDS} rounds, {len(files)} files, {taken:.0f} s in all, {slowest:.1f} s the slowest")
    current.delete()
    wait_for("no snapshot is left", lambda: json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout) == [], seconds=120)
    wait_for("nothing is there that nobody knows of", lambda: not footprint.unaccounted(cloud))
