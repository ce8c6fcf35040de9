//! Real shapes are read, and nothing a stranger writes does more than fail.

use proptest::prelude::*;

use super::*;

/// Builds files as the format has them.
#[derive(Default)]
pub(crate) struct Builder {
    keys: Vec<u8>,
    key_count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
}

impl Builder {
    fn key(mut self, name: &str, kind: u32, value: &[u8]) -> Self {
        put_text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.key_count += 1;
        self
    }

    fn text(self, name: &str, text: &str) -> Self {
        let mut value = Vec::new();
        put_text(&mut value, text);
        self.key(name, 8, &value)
    }

    fn number(self, name: &str, number: u32) -> Self {
        self.key(name, 4, &number.to_le_bytes())
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        put_text(&mut self.tensors, name);
        self.tensors
            .extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        for length in shape {
            self.tensors.extend(length.to_le_bytes());
        }
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn build(self, data_bytes: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(self.tensor_count.to_le_bytes());
        out.extend(self.key_count.to_le_bytes());
        out.extend(self.keys);
        out.extend(self.tensors);
        out.resize(out.len().next_multiple_of(32) + data_bytes, 0);
        out
    }
}

fn llama() -> Builder {
    Builder::default()
        .text("general.architecture", "llama")
        .text("general.name", "Tiny")
        .number("llama.context_length", 2048)
        .number("llama.block_count", 3)
        .number("llama.embedding_length", 64)
        .number("llama.attention.head_count", 4)
        .number("llama.attention.head_count_kv", 2)
        .text("tokenizer.chat_template", &"x".repeat(1000))
}

/// A whole file of little more than a header.
pub(crate) fn tiny() -> Vec<u8> {
    llama()
        .tensor("a", &[32, 2], 3, 0)
        .tensor("b", &[4], 0, 64)
        .build(80)
}

fn read(file: &[u8]) -> Result<Gguf, Error> {
    Gguf::read(file, u64::try_from(file.len()).unwrap())
}

#[test]
fn a_model_says_what_it_is() {
    let found = read(&tiny()).unwrap();
    let expected = Gguf {
        architecture: "llama".to_owned(),
        name: "Tiny".to_owned(),
        parameters: 68,
        quantization: "Q4_1".to_owned(),
        context_length: 2048,
        // 3 layers, 2 heads of 16 elements, keys and values, 2 bytes.
        cache_bytes_per_token: 3 * 2 * (16 + 16) * 2,
        has_chat_template: true,
        is_embedding: false,
        fills_in: false,
        is_adapter: false,
        step_bytes_per_token: 0,
    };
    assert_eq!(found, expected);
}

#[test]
fn heads_may_differ_from_layer_to_layer() {
    let mut heads = 4_u32.to_le_bytes().to_vec();
    heads.extend(3_u64.to_le_bytes());
    for count in [2_u32, 0, 1] {
        heads.extend(count.to_le_bytes());
    }
    let file = Builder::default()
        .text("general.architecture", "x")
        .number("x.block_count", 3)
        .number("x.embedding_length", 64)
        .number("x.attention.head_count", 4)
        .key("x.attention.head_count_kv", 9, &heads)
        .number("x.attention.key_length", 10)
        .number("x.attention.value_length", 6)
        .number("x.pooling_type", 1)
        .number("tokenizer.ggml.fim_pre_token_id", 7)
        .tensor("a", &[1], 0, 0)
        .build(4);
    let found = read(&file).unwrap();
    assert_eq!(found.cache_bytes_per_token, (2 + 1) * 16 * 2);
    assert!(found.is_embedding && found.fills_in && !found.has_chat_template);
}

#[test]
fn an_encoder_keeps_nothing_and_reads_a_text_at_once() {
    let mut tokens = 8_u32.to_le_bytes().to_vec();
    tokens.extend(3_u64.to_le_bytes());
    for token in ["[CLS]", "[SEP]", "wind"] {
        put_text(&mut tokens, token);
    }
    let encoder = |architecture: &str, pooling: Option<u32>| {
        let mut file = Builder::default().text("general.architecture", architecture);
        for (key, number) in [
            ("context_length", 512),
            ("block_count", 6),
            ("embedding_length", 64),
            ("feed_forward_length", 256),
            ("attention.head_count", 4),
        ] {
            file = file.number(&format!("{architecture}.{key}"), number);
        }
        if let Some(kind) = pooling {
            file = file.number(&format!("{architecture}.pooling_type"), kind);
        }
        let file = file.key("tokenizer.ggml.tokens", 9, &tokens);
        read(&file.tensor("a", &[1], 0, 0).build(4)).unwrap()
    };
    let bert = encoder("bert", Some(1));
    assert!(bert.is_embedding);
    assert_eq!(bert.cache_bytes_per_token, 0);
    // A row of the vocabulary, eight vectors and two inner ones, of four bytes each.
    assert_eq!(bert.step_bytes_per_token, 4 * (3 + 8 * 64 + 2 * 256));
    for kind in [None, Some(0), Some(2)] {
        assert!(encoder("nomic-bert", kind).is_embedding, "{kind:?}");
    }
    assert!(!encoder("bert", Some(4)).is_embedding, "it ranks");
    let decoder = encoder("qwen3", Some(3));
    assert!(decoder.is_embedding && decoder.cache_bytes_per_token > 0 && decoder.step_bytes_per_token > 0);
    let chat = encoder("qwen3", None);
    assert!(!chat.is_embedding);
    assert_eq!(chat.step_bytes_per_token, 0);
}

#[test]
fn what_is_wrong_is_said() {
    let said = |file: &[u8]| read(file).unwrap_err().to_string();
    let with = |tensor: fn(Builder) -> Builder| said(&tensor(llama()).build(0));
    let list = |kind: u32, count: u64| {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend(count.to_le_bytes());
        said(&llama().key("list", 9, &value).tensor("a", &[1], 0, 0).build(4))
    };
    let mut version = tiny();
    version[4] = 9;
    let mut big = tiny();
    big[8..16].fill(0xff);
    for (found, words) in [
        (said(b""), "does not start with `GGUF`"),
        (said(b"PK\x03\x04"), "does not start with `GGUF`"),
        (said(&version), "of version 9"),
        (said(b"GGUF\x03\x00\x00\x00\x01"), "ends within its counts"),
        (said(&big), "the number of tensors is 18446744073709551615"),
        (said(&llama().build(0)), "it has no tensors"),
        (with(|file| file.tensor("a", &[64], 3, 0)), "need"),
        (
            with(|file| file.tensor("a\n", &[33], 3, 0)),
            "tensor `a` has rows of 33",
        ),
        (with(|file| file.tensor("a", &[1], 777, 0)), "unknown type 777"),
        (with(|file| file.tensor("a", &[1], 0, 1)), "not aligned"),
        (
            with(|file| file.tensor("a", &[u64::MAX, 2], 0, 0)),
            "can be counted",
        ),
        (
            with(|file| file.tensor("a", &[u64::MAX], 0, 0)),
            "larger than any file",
        ),
        (
            with(|file| file.tensor("a", &[16], 0, u64::MAX - 31)),
            "larger than any file",
        ),
        (
            said(&llama().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).build(64)),
            "lie over each other",
        ),
        (with(|file| file.tensor("a", &[1; 5], 0, 0)), "dimensions is 5"),
        (
            with(|file| file.number("general.name", 1)),
            "`general.name` is there twice",
        ),
        (with(|file| file.key("odd", 99, &[])), "unknown kind 99"),
        (with(|file| file.number("split.count", 3)), "one of 3 parts"),
        (list(9, 1), "values of kind 9"),
        (list(0, u64::MAX), "size of the header"),
        (list(8, 1 << 60), "size of the header"),
        (
            said(&Builder::default().tensor("a", &[1], 0, 0).build(4)),
            "general.architecture",
        ),
    ] {
        assert!(found.contains(words), "{words}: {found}");
    }
}

proptest! {
    /// Whatever bytes there are: an answer, in time and memory that the file's own length bounds.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(&bytes);
        let mut file = b"GGUF\x03\x00\x00\x00".to_vec();
        file.extend(bytes);
        let _ = read(&file);
    }

    /// A file with one byte changed is read or refused.
    #[test]
    fn a_changed_byte_is_survived(at in 0_usize..600, byte in any::<u8>()) {
        let mut file = tiny();
        let at = at % file.len();
        file[at] = byte;
        let _ = read(&file);
    }

    /// However it is cut, what is missing is missed.
    #[test]
    fn a_cut_file_is_refused(keep in 0.0..1.0_f64) {
        let file = tiny();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
        let length = (file.len() as f64 * keep) as usize;
        prop_assert!(read(&file[..length]).is_err());
    }
}
