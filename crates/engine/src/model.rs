//! A model file: what is wrong with it, or the model and what is needed to talk to it.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;

use crate::cache::Token;
use crate::logs;
use crate::template::Template;

mod draft;
mod embedding;

pub(crate) use draft::Draft;
pub(crate) use embedding::Embedding;

/// The first bytes of every GGUF file.
const MAGIC: &[u8; 4] = b"GGUF";
/// What a token stands for at most, on average, where one may stand for any length (a word that is not known): text with more
/// is refused unread, since reading it takes many times its size. Words of this length are in no language.
const UNBOUNDED_TOKEN_BYTES: usize = 256;
/// Longest token in bytes that a sane vocabulary has. A longer one only makes the early refusal of long prompts later.
const TOKEN_BYTES_MIN: usize = 16;

/// Why a model cannot be served. Each has an exit code of its own: whoever starts the engine tells them apart.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("cannot read the model file `{path}`")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "`{path}` is not a model: it does not begin with `GGUF` (a download that failed, or another format?)"
    )]
    NotGguf { path: PathBuf },
    #[error("the model file `{path}` is damaged, incomplete or of a kind this engine does not know: {why}")]
    Refused { path: PathBuf, why: String },
    #[error("the model `{path}` cannot be served: {why}")]
    NotServed { path: PathBuf, why: String },
    #[error("`{path}` is no adapter of this model: {why}")]
    Adapter { path: PathBuf, why: String },
    #[error("`{path}` cannot be the draft of this model: {why}")]
    Draft { path: PathBuf, why: String },
    #[error("cannot read the chat template `{path}`")]
    TemplateUnreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the chat template cannot be used")]
    Template(#[source] minijinja::Error),
    #[error("cannot set the model up with a context of {tokens} tokens (is there enough memory?): {why}")]
    Context { tokens: usize, why: String },
    #[error("cannot start llama.cpp")]
    Backend(#[source] llama_cpp_2::LlamaCppError),
}

impl Problem {
    /// The engine's exit code: 3 for a file that is not there, 4 for one that is no good, 5 for too little memory.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreadable { .. } | Self::TemplateUnreadable { .. } => 3,
            Self::NotGguf { .. }
            | Self::Refused { .. }
            | Self::NotServed { .. }
            | Self::Adapter { .. }
            | Self::Draft { .. }
            | Self::Template(_) => 4,
            Self::Context { .. } => 5,
            Self::Backend(_) => 1,
        }
    }
}

/// A loaded model, shared by the engine's thread and those that make tokens of text.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) backend: LlamaBackend,
    pub(crate) llama: LlamaModel,
    /// None when the model has none: it completes, and does not chat.
    pub(crate) template: Option<Template>,
    /// Tokens that prompt and answer have together.
    pub(crate) context_length: usize,
    /// It makes embeddings and generates nothing: an encoder, a model made for it, or one that was started so.
    pub(crate) embedding: Option<Embedding>,
    /// Whether a sequence can be cut at any token and shared from its beginning.
    pub(crate) shares_prefixes: bool,
    /// Whether all that was computed of a sequence stays, so that it can be shared from a copy of its state as well: not so
    /// where attention has a window, since what is behind it is left out of copies.
    pub(crate) copies_prefixes: bool,
    /// The same for the same file, and hardly for another: engines that serve one model know it by this.
    pub(crate) identity: String,
    /// Changes of the weights that a request may ask for.
    pub(crate) adapters: Vec<Adapter>,
    token_bytes_max: usize,
}

/// A change of the model's weights (LoRA).
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) name: String,
    /// For the thread that computes alone.
    pub(crate) weights: Mutex<LlamaLoraAdapter>,
}

impl Model {
    /// Loads it; takes as long as reading the file does.
    pub(crate) fn load(
        path: &Path,
        template: Option<&Path>,
        context_length: Option<usize>,
        embeddings: bool,
        adapters: &[(String, PathBuf)],
    ) -> Result<Arc<Self>, Problem> {
        check(path)?;
        let known = |path: &Path| {
            identity(path).map_err(|source| Problem::Unreadable {
                path: path.to_owned(),
                source,
            })
        };
        // An answer that was begun with an adapter can go on where the same one has this name alone.
        let of_adapters = adapters
            .iter()
            .map(|(name, path)| Ok(format!("+{name}={}", known(path)?)));
        let identity = std::iter::once(known(path))
            .chain(of_adapters)
            .collect::<Result<String, _>>()?;
        let backend = LlamaBackend::init().map_err(Problem::Backend)?;
        logs::forward_llama();
        let mut llama =
            LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default()).map_err(|error| {
                Problem::Refused {
                    path: path.to_owned(),
                    why: logs::last_error().unwrap_or_else(|| error.to_string()),
                }
            })?;
        let adapters = adapters
            .iter()
            .map(|(name, path)| adapter(&mut llama, name, path))
            .collect::<Result<_, _>>()?;
        let text = match template {
            Some(path) => {
                Some(
                    std::fs::read_to_string(path).map_err(|source| Problem::TemplateUnreadable {
                        path: path.to_owned(),
                        source,
                    })?,
                )
            }
            None => llama
                .chat_template(None)
                .ok()
                .and_then(|text| text.to_string().ok()),
        };
        let vocabulary = llama.vocab();
        let special = |token: LlamaToken| {
            let known = token.0 >= 0;
            known.then(|| String::from_utf8_lossy(&vocabulary.token_to_piece(token, true, None)).into_owned())
        };
        let template = text
            .map(|text| Template::new(text, special(vocabulary.bos()), special(vocabulary.eos())))
            .transpose()
            .map_err(Problem::Template)?;
        let token_bytes_max = if embedding::is_unbounded(&llama) {
            UNBOUNDED_TOKEN_BYTES
        } else {
            let pieces = vocabulary
                .tokens()
                .map(|token| vocabulary.token_to_piece(token, true, None).len());
            pieces.max().unwrap_or_default().max(TOKEN_BYTES_MIN)
        };
        let trained = usize::try_from(llama.n_ctx_train()).unwrap_or(usize::MAX);
        let architecture = llama.meta_val_str("general.architecture").unwrap_or_default();
        let shares_prefixes = !llama.is_recurrent() && !llama.is_hybrid();
        let window = llama.meta_val_str(&format!("{architecture}.attention.sliding_window"));
        let has_window = window.is_ok_and(|tokens| tokens.trim() != "0");
        let embedding =
            embedding::of(&llama, &architecture, embeddings).map_err(|why| Problem::NotServed {
                path: path.to_owned(),
                why,
            })?;
        let default = match embedding {
            Some(_) => CONTEXT_LENGTH_EMBEDDING,
            None => CONTEXT_LENGTH_DEFAULT,
        };
        Ok(Arc::new(Self {
            backend,
            template,
            // Beyond what it was trained on a model talks nonsense.
            context_length: context_length.unwrap_or(default).min(trained),
            embedding,
            shares_prefixes,
            copies_prefixes: shares_prefixes && !has_window,
            llama,
            identity,
            adapters,
            token_bytes_max,
        }))
    }

    /// The tokens of a text, in which the names of special tokens are these tokens when `special` is set, with what the
    /// vocabulary wants at the beginning when `beginning` is. None when it surely is longer than the context.
    pub(crate) fn tokens(&self, text: &str, beginning: bool, special: bool) -> Option<Vec<Token>> {
        if text.len() > self.context_length.saturating_mul(self.token_bytes_max) {
            return None;
        }
        let tokens = self.llama.vocab().tokenize(text.as_bytes(), beginning, special);
        Some(tokens.into_iter().map(|token| token.0).collect())
    }

    /// The tokens that ask for the text between a prompt and a suffix, as models that were trained for it want them. None
    /// for other models; within, None when it surely is longer than the context.
    pub(crate) fn between(&self, prompt: &str, suffix: &str) -> Option<Option<Vec<Token>>> {
        let vocabulary = self.llama.vocab();
        let marks = [
            vocabulary.fim_pre().0,
            vocabulary.fim_suf().0,
            vocabulary.fim_mid().0,
        ];
        let texts = self
            .tokens(prompt, false, false)
            .zip(self.tokens(suffix, false, false));
        if marks.iter().any(|mark| *mark < 0) {
            // Mistral's models were trained with the suffix first and no mark between.
            let (before, after) = (self.control("[PREFIX]")?, self.control("[SUFFIX]")?);
            let beginning = Some(vocabulary.bos().0).filter(|token| *token >= 0);
            return Some(texts.map(|(prompt, suffix)| {
                let mut tokens: Vec<Token> = beginning.into_iter().collect();
                tokens.push(after);
                tokens.extend(suffix);
                tokens.push(before);
                tokens.extend(prompt);
                tokens
            }));
        }
        let [before, after, here] = marks;
        Some(texts.map(|(prompt, suffix)| {
            let mut tokens = vec![before];
            tokens.extend(prompt);
            tokens.push(after);
            tokens.extend(suffix);
            tokens.push(here);
            tokens
        }))
    }

    /// The one token of this name that is no text, if the vocabulary has it.
    fn control(&self, name: &str) -> Option<Token> {
        match self
            .llama
            .vocab()
            .tokenize(name.as_bytes(), false, true)
            .as_slice()
        {
            [token] if self.piece(token.0).is_empty() => Some(token.0),
            _ => None,
        }
    }

    /// The bytes of a token; of one that is only for control, none.
    pub(crate) fn piece(&self, token: Token) -> Vec<u8> {
        self.llama.vocab().token_to_piece(LlamaToken(token), false, None)
    }

    /// The bytes of a token, also of one for control.
    pub(crate) fn name(&self, token: Token) -> Vec<u8> {
        self.llama.vocab().token_to_piece(LlamaToken(token), true, None)
    }

    /// Whether an answer ends with this token.
    pub(crate) fn ends(&self, token: Token) -> bool {
        self.llama.vocab().is_eog(LlamaToken(token))
    }

    /// Tokens of the vocabulary.
    pub(crate) fn vocabulary(&self) -> Token {
        self.llama.n_vocab()
    }
}

/// The context when none is asked for, or the model's if that is less: the memory for it is taken at the start, and most
/// conversations fit.
const CONTEXT_LENGTH_DEFAULT: usize = 8192;
/// The same of a model that makes embeddings, which reads a text as a whole: what that takes grows with its length.
const CONTEXT_LENGTH_EMBEDDING: usize = 2048;

/// Pieces of a file that its identity is made of, spread evenly, and their length: a file of gigabytes is not read for it,
/// and a model that was trained further differs in nearly all of them.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: usize = 4096;

/// The length of a file, and a hash (FNV-1a, 64 bits) of samples of it.
pub(crate) fn identity(path: &Path) -> std::io::Result<String> {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = BASIS;
    let mut sample = [0; SAMPLE_BYTES];
    // From the first byte to the last.
    let step = length.saturating_sub(SAMPLE_BYTES as u64).div_ceil(SAMPLES - 1);
    for number in 0..SAMPLES {
        let read = file.read_at(&mut sample, step * number)?;
        for byte in &sample[..read] {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        }
    }
    Ok(format!("{length:x}-{hash:016x}"))
}

/// Reads an adapter.
fn adapter(model: &mut LlamaModel, name: &str, path: &Path) -> Result<Adapter, Problem> {
    check(path)?;
    let weights = model.lora_adapter_init(path).map_err(|error| Problem::Adapter {
        path: path.to_owned(),
        why: logs::last_error().unwrap_or_else(|| error.to_string()),
    })?;
    Ok(Adapter {
        name: name.to_owned(),
        weights: Mutex::new(weights),
    })
}

/// What can be said of the file before llama.cpp reads it.
fn check(path: &Path) -> Result<(), Problem> {
    let mut magic = [0; MAGIC.len()];
    let read = std::fs::File::open(path).and_then(|mut file| {
        if file.metadata()?.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        file.read_exact(&mut magic)
    });
    match read {
        Ok(()) if &magic == MAGIC => Ok(()),
        Err(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => Err(Problem::Unreadable {
            path: path.to_owned(),
            source,
        }),
        _ => Err(Problem::NotGguf {
            path: path.to_owned(),
        }),
    }
}
