//! A draft: a small model that guesses what a larger one says next. All that it must share with it is the vocabulary.

use std::path::{Path, PathBuf};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use super::{Model, Problem, check};
use crate::cache::Token;
use crate::logs;

/// A loaded draft of one model.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) llama: LlamaModel,
    /// Tokens that both vocabularies have: the first so many.
    pub(crate) vocabulary: Token,
    /// Tokens that it was trained to look back on; beyond, its guesses are worth nothing.
    pub(crate) trained: usize,
}

impl Draft {
    /// Loads a draft for `model`.
    ///
    /// # Errors
    /// When the file cannot be read, is no model, or is one that cannot guess for this model.
    pub(crate) fn load(model: &Model, path: &Path) -> Result<Self, Problem> {
        let unfit = |why: String| Problem::Draft {
            path: path.to_owned(),
            why,
        };
        if model.embedding.is_some() {
            return Err(unfit("the model makes embeddings and writes no text".to_owned()));
        }
        if !model.shares_prefixes {
            return Err(unfit(
                "the state of the model cannot be cut at a token, so it cannot forget a wrong guess; serve it without a \
                 draft"
                    .to_owned(),
            ));
        }
        check(path)?;
        let llama = LlamaModel::load_from_file(&model.backend, path, &LlamaModelParams::default()).map_err(
            |error| Problem::Refused {
                path: PathBuf::from(path),
                why: logs::last_error().unwrap_or_else(|| error.to_string()),
            },
        )?;
        if llama.is_recurrent() || llama.is_hybrid() {
            return Err(unfit(
                "its state cannot be cut at a token, so it cannot take back what was guessed wrong; use one that is only \
                 made of attention"
                    .to_owned(),
            ));
        }
        let architecture = llama.meta_val_str("general.architecture").unwrap_or_default();
        if !matches!(super::embedding::of(&llama, &architecture, false), Ok(None)) {
            return Err(unfit("it makes embeddings and writes no text".to_owned()));
        }
        let vocabulary = common(&model.llama, &llama).map_err(unfit)?;
        Ok(Self {
            vocabulary,
            trained: usize::try_from(llama.n_ctx_train()).unwrap_or(usize::MAX),
            llama,
        })
    }
}

/// How many tokens two vocabularies have in common. One may have more, at its end: models of one family are padded to
/// different sizes.
///
/// # Errors
/// How they differ.
fn common(model: &LlamaModel, draft: &LlamaModel) -> Result<Token, String> {
    let (ours, theirs) = (model.vocab(), draft.vocab());
    let count = ours.n_tokens().min(theirs.n_tokens());
    let text = |vocabulary: &llama_cpp_2::vocab::LlamaVocab<'_>, token| {
        let text = vocabulary.text(LlamaToken(token)).unwrap_or_default();
        text.to_string_lossy().into_owned()
    };
    let other = (0..count).find(|token| ours.text(LlamaToken(*token)) != theirs.text(LlamaToken(*token)));
    let advice = "a draft has the vocabulary of its model, as a smaller one of the same family has";
    if let Some(token) = other {
        return Err(format!(
            "its vocabulary is another: token {token} is `{}`, and the model's is `{}`; {advice}",
            text(&theirs, token),
            text(&ours, token),
        ));
    }
    if count == 0 || ours.vocab_type() != theirs.vocab_type() {
        return Err(format!("its vocabulary is of another kind; {advice}"));
    }
    Ok(count)
}
