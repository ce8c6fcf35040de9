"""Models with more or fewer layers than SmolLM2 has, and the same vocabulary, made of its file.

Fewer: the first ones alone, so it is quick and talks nonsense. More: those that are added pass on what they are given, so it
says the same and takes longer: a large model that the small one knows all about.
"""

import struct

# What a layer adds to what it was given, it adds by these.
OUTPUTS = ("attn_output.weight", "ffn_down.weight")
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, STRING, ARRAY = 4, 8, 9
ALIGNMENT = 32


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, form):
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def skip(self, kind):
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip(inner)
        else:
            self.at += SIZES[kind]


def _aligned(length):
    return -(-length // ALIGNMENT) * ALIGNMENT


def with_layers(source, target, layers):
    """Writes `source` with so many layers to `target`."""
    data = source.read_bytes()
    reader = _Reader(data)
    assert data[:4] == b"GGUF"
    reader.at = 4
    version, tensors, keys = reader.number("I"), reader.number("Q"), reader.number("Q")
    head = b""
    for _ in range(keys):
        began = reader.at
        name, kind = reader.text(), reader.number("I")
        value = reader.at
        reader.skip(kind)
        if name.endswith(b".block_count"):
            (had,) = struct.unpack_from("<I", data, value)
            assert kind == UINT32
            head += data[began:value] + struct.pack("<I", layers)
        else:
            head += data[began : reader.at]
    found = []
    for _ in range(tensors):
        name = reader.text().decode()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        found.append((name, shape, reader.number("I"), reader.number("Q")))
    start = _aligned(reader.at)
    ends = sorted(offset for *_, offset in found) + [len(data) - start]
    content = lambda offset: data[start + offset : start + ends[ends.index(offset) + 1]]
    wanted = []
    for name, shape, kind, offset in found:
        _, _, rest = name.partition(".")
        layer = int(rest.split(".")[0]) if name.startswith("blk.") else None
        if layer is None or layer < layers:
            wanted.append((name, shape, kind, content(offset)))
        if layer == 0:
            part = rest.partition(".")[2]
            silent = part in OUTPUTS
            for number in range(had, layers):
                bytes_ = bytes(len(content(offset))) if silent else content(offset)
                wanted.append((f"blk.{number}.{part}", shape, kind, bytes_))
    infos, at = b"", 0
    for name, shape, kind, bytes_ in wanted:
        encoded = name.encode()
        infos += struct.pack("<Q", len(encoded)) + encoded + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", kind, at)
        at += _aligned(len(bytes_))
    front = b"GGUF" + struct.pack("<IQQ", version, len(wanted), keys) + head + infos
    with target.open("wb") as out:
        out.write(front + bytes(_aligned(len(front)) - len(front)))
        for *_, bytes_ in wanted:
            out.write(bytes_ + bytes(_aligned(len(bytes_)) - len(bytes_)))
    return target
