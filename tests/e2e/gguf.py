"""GGUF files for tests: whole ones of a few hundred bytes, and what a stranger would make of them."""

import struct

STRING, UINT32 = 8, 4
F32 = 0


def _text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def tiny(name="Tiny", context_length=4096, salt=0, weights=bytes(4 * 64)):
    """A model with two layers and no sense. Another salt, another file. `weights`: numbers of 4 bytes."""
    keys = [
        ("general.architecture", "llama"), ("general.name", name), ("llama.context_length", context_length),
        ("llama.block_count", 2), ("llama.embedding_length", 64), ("llama.attention.head_count", 4),
        ("tokenizer.chat_template", "{{ messages }}"), ("test.salt", salt),
    ]
    out = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
    for key, value in keys:
        out += _text(key)
        if isinstance(value, str):
            out += struct.pack("<I", STRING) + _text(value)
        else:
            out += struct.pack("<II", UINT32, value)
    out += _text("weights") + struct.pack("<IQIQ", 1, len(weights) // 4, F32, 0)
    return out + bytes(-len(out) % 32) + weights


# What is wrong with a file, and what is said of it.
HOSTILE = {
    "text": (b"not a model at all", "does not start with `GGUF`"),
    "empty": (b"", "does not start with `GGUF`"),
    "cut": (tiny()[:-1], "is cut off"),
    "header": (tiny()[:100], "is cut off"),
    "keys": (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63), "the number of keys is 9223372036854775808"),
    "key": (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**62), "the length of a name"),
    "list": (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + _text("a") + struct.pack("<IIQ", 9, 0, 2**63), "the size of the header"),
    "nested": (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + _text("a") + struct.pack("<IIQ", 9, 9, 1), "values of kind 9"),
    "version": (b"GGUF" + struct.pack("<IQQ", 99, 1, 1), "of version 99"),
}
