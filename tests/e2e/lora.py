"""Adapters for tests: changes of SmolLM2's weights in a GGUF file, of numbers that a seed gives."""

import random
import struct

STRING, FLOAT32 = 8, 6
F32 = 0
# SmolLM2-135M.
LAYERS, WIDTH, RANK = 30, 576, 4


def _text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def adapter(strength, seed=1, architecture="llama"):
    """Changes what each layer asks for; with a strength of 0 it changes nothing."""
    draw = random.Random(seed)
    keys = [("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora")]
    head = b"".join(_text(key) + struct.pack("<I", STRING) + _text(value) for key, value in keys)
    head += _text("adapter.lora.alpha") + struct.pack("<If", FLOAT32, RANK)
    infos, data = b"", b""
    for layer in range(LAYERS):
        # What goes in, and what comes out: both of so many vectors.
        for part, shape, scale in (("a", (WIDTH, RANK), 0.05), ("b", (RANK, WIDTH), strength)):
            infos += _text(f"blk.{layer}.attn_q.weight.lora_{part}") + struct.pack("<IQQIQ", 2, *shape, F32, len(data))
            data += b"".join(struct.pack("<f", draw.gauss(0, scale) if scale else 0.0) for _ in range(WIDTH * RANK))
    out = b"GGUF" + struct.pack("<IQQ", 3, 2 * LAYERS, len(keys) + 1) + head + infos
    return out + bytes(-len(out) % 32) + data
