"""Everything that is in a sandbox, to be compared: its files, each as it is, by a program that runs inside of it."""

import base64
import json
import zlib

# Of the platform, which writes them for each instance.
PROGRAM = r"""
import base64, hashlib, json, os, stat, zlib
NOT_ITS_OWN = {b'/proc', b'/sys', b'/dev', b'/.tramontane', b'/etc/hosts', b'/etc/hostname', b'/etc/resolv.conf'}
# Their times are those of the platform's files in them, or of files that were open and had been removed: a restore has to
# make each once more for a moment.
TIMELESS = {b'/', b'/etc', b'/ghosts'}

def data(path):
    '''The checksum of what is in a file, without reading its holes.'''
    digest = hashlib.sha256()
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(file, at, os.SEEK_HOLE)
        while at < end:
            piece = os.pread(file, min(1 << 20, end - at), at)
            if not piece:
                break
            # Holes and zeroes are the same.
            if piece.strip(b'\0'):
                digest.update(b'%d %d ' % (at, len(piece)) + piece)
            at += len(piece)
    os.close(file)
    return digest.hexdigest()

def told(path):
    about = os.lstat(path)
    said = {'mode': oct(about.st_mode), 'owner': [about.st_uid, about.st_gid]}
    if path not in TIMELESS:
        said['time'] = about.st_mtime_ns
    attributes = {name: os.getxattr(path, name, follow_symlinks=False).hex()
                  for name in os.listxattr(path, follow_symlinks=False)}
    if attributes:
        said['attributes'] = attributes
    if stat.S_ISREG(about.st_mode):
        said.update(links=about.st_nlink, size=about.st_size, data=data(path))
    elif stat.S_ISLNK(about.st_mode):
        said['to'] = os.readlink(path).hex()
    return said

found = {}
waiting = [b'/']
while waiting:
    path = waiting.pop()
    if path in NOT_ITS_OWN:
        continue
    found[path.hex()] = told(path)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        waiting.extend(os.path.join(path, name) for name in os.listdir(path))
print(base64.b64encode(zlib.compress(json.dumps(found, sort_keys=True).encode(), 1)).decode())
"""
PATH = "/tmp/everything.py"


def install(box):
    box.filesystem.write_file(PATH, PROGRAM)


def everything(box):
    """All files of a sandbox, by their paths."""
    done = box.exec(f"python3 -B {PATH}")
    assert done.success, done
    found = json.loads(zlib.decompress(base64.b64decode(done.stdout.strip())))
    return {bytes.fromhex(path).decode(errors="backslashreplace"): said for path, said in found.items()}


def difference(one, other):
    """Where two differ, to be read."""
    return {path: (one.get(path), other.get(path)) for path in sorted({*one, *other}) if one.get(path) != other.get(path)}
