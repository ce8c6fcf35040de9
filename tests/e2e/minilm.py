"""all-MiniLM-L6-v2, a real encoder: its weights as a GGUF file for the engine, and what its vectors are by the book.

The vectors here are computed from the published weights with numpy alone, by what BERT's paper and the model's own
configuration say, and know nothing of the engine: what both agree on is right, or wrong twice in the same way."""

import functools
import json
import os
import pathlib
import struct
import unicodedata

import numpy

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
DIRECTORY = CACHE / "tram" / "models" / "all-MiniLM-L6-v2"
LAYERS, HEADS, WIDTH, POSITIONS = 6, 12, 384, 512
NAME = "all-MiniLM-L6-v2"

# --- the file ---------------------------------------------------------------------------------------------------------

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32, F16, Q8_0 = 0, 1, 8
NORMAL, UNKNOWN, CONTROL, UNUSED = 1, 2, 3, 5
ALIGNMENT = 32
# Where a tensor of the published file is in the engine's.
OF_LAYER = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}
OF_MODEL = {
    "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
}


@functools.cache
def weights():
    """The published weights: safetensors, which is a length, a table in JSON, and the numbers."""
    path = DIRECTORY / "model.safetensors"
    assert path.exists(), f"{path} is missing: run `scripts/setup test`"
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    table = json.loads(data[8 : 8 + length])
    table.pop("__metadata__", None)
    found = {}
    for name, entry in table.items():
        if entry["dtype"] != "F32":
            continue
        start, end = entry["data_offsets"]
        numbers = numpy.frombuffer(data[8 + length + start : 8 + length + end], "<f4")
        found[name] = numbers.reshape(entry["shape"])
    return found


@functools.cache
def vocabulary():
    return (DIRECTORY / "vocab.txt").read_text(encoding="utf-8").splitlines()


def _text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _q8_0(rows):
    """Blocks of 32 numbers: one scale in 16 bits, and each number in 8."""
    blocks = rows.reshape(-1, 32).astype(numpy.float32)
    scales = numpy.abs(blocks).max(axis=1, keepdims=True) / 127
    whole = numpy.where(scales > 0, blocks / numpy.where(scales > 0, scales, 1), 0).round().astype(numpy.int8)
    out = numpy.empty(len(blocks), dtype=[("scale", "<f2"), ("numbers", "i1", 32)])
    out["scale"], out["numbers"] = scales[:, 0], whole
    return out.tobytes()


def _piece(token):
    """As the engine's reader wants them: beginnings of words are marked, not what goes on with one."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def gguf(kind=F16, pooling=1, **changed):
    """The model as one file. `changed` are other values of its keys: None leaves one out."""
    tokens = vocabulary()
    types = [
        UNKNOWN if token == "[UNK]" else UNUSED if token.startswith("[unused")
        else CONTROL if token.startswith("[") and token.endswith("]") and len(token) > 2 else NORMAL
        for token in tokens
    ]
    number = lambda value: struct.pack("<II", UINT32, value)
    strings = lambda values: struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(_text, values))
    keys = {
        "general.architecture": struct.pack("<I", STRING) + _text("bert"),
        "general.name": struct.pack("<I", STRING) + _text(NAME),
        "bert.context_length": number(POSITIONS),
        "bert.embedding_length": number(WIDTH),
        "bert.feed_forward_length": number(4 * WIDTH),
        "bert.block_count": number(LAYERS),
        "bert.attention.head_count": number(HEADS),
        "bert.attention.layer_norm_epsilon": struct.pack("<If", FLOAT32, 1e-12),
        "bert.attention.causal": struct.pack("<IB", BOOL, 0),
        "bert.pooling_type": number(pooling),
        "tokenizer.ggml.model": struct.pack("<I", STRING) + _text("bert"),
        "tokenizer.ggml.tokens": strings([_piece(token) for token in tokens]),
        "tokenizer.ggml.token_type": struct.pack("<IIQ", ARRAY, INT32, len(types)) + numpy.array(types, "<i4").tobytes(),
        "tokenizer.ggml.token_type_count": number(2),
    }
    for key, token in (("bos", "[CLS]"), ("cls", "[CLS]"), ("seperator", "[SEP]"), ("padding", "[PAD]"), ("unknown", "[UNK]"), ("mask", "[MASK]")):
        keys[f"tokenizer.ggml.{key}_token_id"] = number(tokens.index(token))
    for key, value in changed.items():
        keys[key.replace("__", ".")] = value
    keys = {key: value for key, value in keys.items() if value is not None}

    infos, data, count = b"", b"", 0
    for name, numbers in weights().items():
        stem, _, part = name.rpartition(".")
        if stem.startswith("encoder.layer."):
            _, _, layer, rest = stem.split(".", 3)
            to = f"blk.{layer}.{OF_LAYER[rest]}.{part}"
        elif stem in OF_MODEL:
            to = f"{OF_MODEL[stem]}.{part}"
        else:
            continue
        # As llama.cpp's own converter does: small ones stay whole.
        whole = numbers.ndim == 1 or to.startswith(("position_embd", "token_types"))
        type_ = F32 if whole else kind
        shape = numbers.shape[::-1]
        infos += _text(to) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, len(data))
        content = {F32: lambda: numbers.tobytes(), F16: lambda: numbers.astype("<f2").tobytes(), Q8_0: lambda: _q8_0(numbers)}
        data += content[type_]()
        data += bytes(-len(data) % ALIGNMENT)
        count += 1
    out = b"GGUF" + struct.pack("<IQQ", 3, count, len(keys)) + b"".join(_text(key) + value for key, value in keys.items())
    out += infos
    return out + bytes(-len(out) % ALIGNMENT) + data


# --- by the book ------------------------------------------------------------------------------------------------------


def _words(text):
    """Lower case without accents, apart at spaces; each punctuation mark and Chinese character is a word of its own."""
    word = ""
    for character in unicodedata.normalize("NFD", text.lower()):
        category, code = unicodedata.category(character), ord(character)
        if category == "Mn" or code in (0, 0xFFFD) or (category.startswith("C") and character not in "\t\n\r"):
            continue
        mark = category.startswith("P") or 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        alone = mark or 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF
        if alone or character.isspace():
            if word:
                yield word
            word = ""
            if alone:
                yield character
        else:
            word += character
    if word:
        yield word


@functools.cache
def _ids():
    return {token: number for number, token in enumerate(vocabulary())}


def tokens(text):
    """WordPiece: of each word the longest beginning that is known, then of the rest."""
    ids, out = _ids(), []
    for word in _words(text):
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in ids:
                    pieces.append(ids[piece])
                    start = end
                    break
            else:
                pieces = [ids["[UNK]"]]
                break
        out += pieces
    return [ids["[CLS]"], *out, ids["[SEP]"]]


def _erf(x):
    """Abramowitz and Stegun, 7.1.26: to 1.5e-7, more than 32 bits of a weight carry through six layers."""
    t = 1 / (1 + 0.3275911 * numpy.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return numpy.sign(x) * (1 - series * numpy.exp(-x * x))


def states(ids):
    """The last state of each token."""
    tensors = {name: value.astype(numpy.float64) for name, value in weights().items()}

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = numpy.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return centred / spread * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    heads = lambda y: y.reshape(len(ids), HEADS, WIDTH // HEADS).transpose(1, 0, 2)
    for layer in range(LAYERS):
        of = f"encoder.layer.{layer}."
        q, k, v = (heads(linear(x, f"{of}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / numpy.sqrt(WIDTH // HEADS)
        scores = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = norm(x + linear(mixed, f"{of}attention.output.dense"), f"{of}attention.output.LayerNorm")
        y = linear(x, f"{of}intermediate.dense")
        y = y * 0.5 * (1 + _erf(y / numpy.sqrt(2)))
        x = norm(x + linear(y, f"{of}output.dense"), f"{of}output.LayerNorm")
    return x


def vector(text, pooling="mean"):
    """The vector of a text, of length 1."""
    found = states(tokens(text))
    one = {"mean": found.mean(axis=0), "cls": found[0], "last": found[-1]}[pooling]
    return one / numpy.linalg.norm(one)
