//! Open models that are well known, with what one has to know before fetching one: where a file of it is, how large it is,
//! what memory it needs, and under which licence it is.
//!
//! A name of this list is all that `tram models pull` needs. The list is a signpost and no warranty: sizes are rounded, the
//! files belong to those who publish them, and what a file says of itself counts once it is here (`gguf`). A short list on
//! purpose: an entry that leads nowhere is worse than none.

use crate::{memory, source::Source};

/// A well-known model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What to call it.
    pub name: &'static str,
    /// What it is called by those who made it.
    pub title: &'static str,
    /// Who made it.
    pub maker: &'static str,
    /// As SPDX has it, or the licence's own name.
    pub licence: &'static str,
    /// Whether the licence allows any use, business too.
    pub is_open: bool,
    /// In millions.
    pub parameters_millions: u64,
    /// The type of most of the file's numbers.
    pub quantization: &'static str,
    /// Size of the file in millions of bytes, rounded.
    pub size_megabytes: u64,
    /// Tokens it was trained to look back on.
    pub context_length: u64,
    /// What a token of context takes: of cache, or, of a model that makes vectors, while a text is read.
    pub context_bytes_per_token: u64,
    /// Where the file is.
    pub source: &'static str,
    /// What it is good at.
    pub purpose: Purpose,
}

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To talk with.
    Chat,
    /// To write programs, in a conversation or in the middle of a file.
    Code,
    /// To make vectors of texts.
    Embeddings,
}

impl Purpose {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Code => "code",
            Self::Embeddings => "embeddings",
        }
    }
}

const MEGABYTE: u64 = 1_000_000;
const KIB: u64 = 1024;

const APACHE: &str = "Apache-2.0";

/// All of them, by maker and size.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "mistral-7b-instruct",
        title: "Mistral 7B Instruct v0.3",
        maker: "Mistral AI",
        licence: APACHE,
        is_open: true,
        parameters_millions: 7248,
        quantization: "Q4_K",
        size_megabytes: 4370,
        context_length: 32_768,
        context_bytes_per_token: 128 * KIB,
        source: "hf://bartowski/Mistral-7B-Instruct-v0.3-GGUF/Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "mistral-nemo-instruct",
        title: "Mistral Nemo Instruct 2407",
        maker: "Mistral AI",
        licence: APACHE,
        is_open: true,
        parameters_millions: 12_248,
        quantization: "Q4_K",
        size_megabytes: 7480,
        context_length: 131_072,
        context_bytes_per_token: 160 * KIB,
        source: "hf://bartowski/Mistral-Nemo-Instruct-2407-GGUF/Mistral-Nemo-Instruct-2407-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "codestral",
        title: "Codestral 22B v0.1",
        maker: "Mistral AI",
        licence: "MNPL-0.1",
        is_open: false,
        parameters_millions: 22_247,
        quantization: "Q4_K",
        size_megabytes: 13_340,
        context_length: 32_768,
        context_bytes_per_token: 224 * KIB,
        source: "hf://bartowski/Codestral-22B-v0.1-GGUF/Codestral-22B-v0.1-Q4_K_M.gguf",
        purpose: Purpose::Code,
    },
    Entry {
        name: "mistral-small-instruct",
        title: "Mistral Small 3 24B Instruct 2501",
        maker: "Mistral AI",
        licence: APACHE,
        is_open: true,
        parameters_millions: 23_572,
        quantization: "Q4_K",
        size_megabytes: 14_330,
        context_length: 32_768,
        context_bytes_per_token: 160 * KIB,
        source: "hf://bartowski/Mistral-Small-24B-Instruct-2501-GGUF/Mistral-Small-24B-Instruct-2501-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "devstral-small",
        title: "Devstral Small 1.1 (2507)",
        maker: "Mistral AI",
        licence: APACHE,
        is_open: true,
        parameters_millions: 23_572,
        quantization: "Q4_K",
        size_megabytes: 14_330,
        context_length: 131_072,
        context_bytes_per_token: 160 * KIB,
        source: "hf://mistralai/Devstral-Small-2507_gguf/Devstral-Small-2507-Q4_K_M.gguf",
        purpose: Purpose::Code,
    },
    Entry {
        name: "smollm2-135m-instruct",
        title: "SmolLM2 135M Instruct",
        maker: "Hugging Face",
        licence: APACHE,
        is_open: true,
        parameters_millions: 135,
        quantization: "Q4_K",
        size_megabytes: 105,
        context_length: 8192,
        context_bytes_per_token: 23_040,
        source: "hf://bartowski/SmolLM2-135M-Instruct-GGUF/SmolLM2-135M-Instruct-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "smollm2-360m-instruct",
        title: "SmolLM2 360M Instruct",
        maker: "Hugging Face",
        licence: APACHE,
        is_open: true,
        parameters_millions: 362,
        quantization: "Q8_0",
        size_megabytes: 386,
        context_length: 8192,
        context_bytes_per_token: 40 * KIB,
        source: "hf://HuggingFaceTB/SmolLM2-360M-Instruct-GGUF/smollm2-360m-instruct-q8_0.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "smollm2-1.7b-instruct",
        title: "SmolLM2 1.7B Instruct",
        maker: "Hugging Face",
        licence: APACHE,
        is_open: true,
        parameters_millions: 1711,
        quantization: "Q4_K",
        size_megabytes: 1060,
        context_length: 8192,
        context_bytes_per_token: 192 * KIB,
        source: "hf://HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF/smollm2-1.7b-instruct-q4_k_m.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "llama-3.2-3b-instruct",
        title: "Llama 3.2 3B Instruct",
        maker: "Meta",
        licence: "Llama 3.2 Community License",
        is_open: false,
        parameters_millions: 3213,
        quantization: "Q4_K",
        size_megabytes: 2020,
        context_length: 131_072,
        context_bytes_per_token: 112 * KIB,
        source: "hf://bartowski/Llama-3.2-3B-Instruct-GGUF/Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "phi-4",
        title: "Phi-4",
        maker: "Microsoft",
        licence: "MIT",
        is_open: true,
        parameters_millions: 14_660,
        quantization: "Q4_K",
        size_megabytes: 9050,
        context_length: 16_384,
        context_bytes_per_token: 200 * KIB,
        source: "hf://bartowski/phi-4-GGUF/phi-4-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "all-minilm-l6-v2",
        title: "all-MiniLM-L6-v2",
        maker: "Sentence Transformers",
        licence: APACHE,
        is_open: true,
        parameters_millions: 23,
        quantization: "Q8_0",
        size_megabytes: 25,
        context_length: 512,
        context_bytes_per_token: 143 * KIB,
        source: "hf://leliuga/all-MiniLM-L6-v2-GGUF/all-MiniLM-L6-v2.Q8_0.gguf",
        purpose: Purpose::Embeddings,
    },
    Entry {
        name: "bge-small-en-v1.5",
        title: "BGE small (English) v1.5",
        maker: "BAAI",
        licence: "MIT",
        is_open: true,
        parameters_millions: 33,
        quantization: "Q8_0",
        size_megabytes: 37,
        context_length: 512,
        context_bytes_per_token: 143 * KIB,
        source: "hf://CompendiumLabs/bge-small-en-v1.5-gguf/bge-small-en-v1.5-q8_0.gguf",
        purpose: Purpose::Embeddings,
    },
    Entry {
        name: "bge-m3",
        title: "BGE-M3 (many languages)",
        maker: "BAAI",
        licence: "MIT",
        is_open: true,
        parameters_millions: 567,
        quantization: "Q8_0",
        size_megabytes: 635,
        context_length: 8192,
        context_bytes_per_token: 1041 * KIB,
        source: "hf://gpustack/bge-m3-GGUF/bge-m3-Q8_0.gguf",
        purpose: Purpose::Embeddings,
    },
    Entry {
        name: "nomic-embed-text",
        title: "Nomic Embed Text v1.5",
        maker: "Nomic AI",
        licence: APACHE,
        is_open: true,
        parameters_millions: 137,
        quantization: "Q8_0",
        size_megabytes: 146,
        context_length: 2048,
        context_bytes_per_token: 167 * KIB,
        source: "hf://nomic-ai/nomic-embed-text-v1.5-GGUF/nomic-embed-text-v1.5.Q8_0.gguf",
        purpose: Purpose::Embeddings,
    },
    Entry {
        name: "qwen2.5-0.5b-instruct",
        title: "Qwen2.5 0.5B Instruct",
        maker: "Alibaba Cloud",
        licence: APACHE,
        is_open: true,
        parameters_millions: 494,
        quantization: "Q4_K",
        size_megabytes: 491,
        context_length: 32_768,
        context_bytes_per_token: 12 * KIB,
        source: "hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q4_k_m.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "qwen3-4b",
        title: "Qwen3 4B",
        maker: "Alibaba Cloud",
        licence: APACHE,
        is_open: true,
        parameters_millions: 4022,
        quantization: "Q4_K",
        size_megabytes: 2500,
        context_length: 40_960,
        context_bytes_per_token: 144 * KIB,
        source: "hf://Qwen/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
    Entry {
        name: "qwen2.5-coder-7b-instruct",
        title: "Qwen2.5 Coder 7B Instruct",
        maker: "Alibaba Cloud",
        licence: APACHE,
        is_open: true,
        parameters_millions: 7616,
        quantization: "Q4_K",
        size_megabytes: 4680,
        context_length: 32_768,
        context_bytes_per_token: 56 * KIB,
        source: "hf://Qwen/Qwen2.5-Coder-7B-Instruct-GGUF/qwen2.5-coder-7b-instruct-q4_k_m.gguf",
        purpose: Purpose::Code,
    },
    Entry {
        name: "qwen3-8b",
        title: "Qwen3 8B",
        maker: "Alibaba Cloud",
        licence: APACHE,
        is_open: true,
        parameters_millions: 8191,
        quantization: "Q4_K",
        size_megabytes: 5030,
        context_length: 40_960,
        context_bytes_per_token: 144 * KIB,
        source: "hf://Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf",
        purpose: Purpose::Chat,
    },
];

/// The entry of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name == name)
}

impl Entry {
    /// Size of the file in bytes, about.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_megabytes * MEGABYTE
    }

    /// Memory that an instance needs with the usual context, about.
    #[must_use]
    pub fn needed_bytes(&self) -> u64 {
        let usual = match self.purpose {
            Purpose::Embeddings => memory::DEFAULT_EMBEDDING_LENGTH,
            Purpose::Chat | Purpose::Code => memory::DEFAULT_CONTEXT_LENGTH,
        };
        memory::needed(
            self.size_bytes(),
            self.context_length
                .min(usual)
                .saturating_mul(self.context_bytes_per_token),
        )
    }
}

/// Where a model is that a person names: by an entry of the catalog, or by a source. With the name to give it and how it
/// is said where it came from.
///
/// # Errors
/// With what is wrong, for the user.
pub fn place(named: &str) -> Result<(Source, String, String), String> {
    if let Some(entry) = find(named) {
        return Ok((
            Source::parse(entry.source)?,
            entry.name.to_owned(),
            entry.source.to_owned(),
        ));
    }
    let source = Source::parse(named).map_err(|why| {
        if named.contains(['/', ':']) {
            why
        } else {
            format!("{why}, or a name that `tram models catalog` lists")
        }
    })?;
    let name = source.name();
    Ok((source, name, named.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::check_name;

    #[test]
    fn every_entry_can_be_pulled_and_fits_what_it_says() {
        let names: BTreeSet<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), ENTRIES.len());
        for entry in ENTRIES {
            check_name(entry.name).unwrap();
            let Ok(Source::Hub { file, .. }) = Source::parse(entry.source) else {
                panic!("{} is no file of the hub", entry.source);
            };
            assert!(
                file.to_ascii_lowercase()
                    .contains(&entry.quantization.to_ascii_lowercase()),
                "{file}"
            );
            // Between four and nine bits for each parameter, and some for tables.
            let bits = entry.size_bytes() * 8 / (entry.parameters_millions * MEGABYTE);
            assert!((4..=9).contains(&bits), "{}: {bits} bits", entry.name);
            assert!(entry.needed_bytes() > entry.size_bytes(), "{}", entry.name);
        }
    }

    #[test]
    fn a_name_is_a_source_too() {
        let (source, name, origin) = place("mistral-7b-instruct").unwrap();
        assert_eq!(name, "mistral-7b-instruct");
        assert!(origin.starts_with("hf://bartowski/"));
        assert!(source.url("https://hub").starts_with("https://hub/bartowski/"));
        assert_eq!(place("hf://a/b/C.gguf").unwrap().1, "c");
        assert!(place("no-such-model").unwrap_err().contains("models catalog"));
        assert!(!place("hf://a/b").unwrap_err().contains("models catalog"));
    }
}
