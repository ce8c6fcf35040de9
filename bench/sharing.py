"""A data directory on a file system that can share blocks, as docs/concepts/snapshots.md advises: XFS in a file."""

import contextlib
import pathlib
import subprocess
import tempfile

# As much as it likes: the file has holes.
SIZE_GIB = 64


@contextlib.contextmanager
def blocks():
    """All temporary directories made meanwhile are on it, and so is what a cloud keeps."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tram-xfs-") as directory:
        image, mount = pathlib.Path(directory) / "image", pathlib.Path(directory) / "mount"
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(SIZE_GIB << 30)
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        try:
            tempfile.tempdir = str(mount)
            yield
        finally:
            tempfile.tempdir = before
            subprocess.run(["umount", "--lazy", mount], check=True)
