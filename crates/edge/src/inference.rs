//! The stage of services that serve models: who asks, which replica answers first, what it cost, and answers that go on
//! when the replica that writes them dies.
//!
//! The pipeline calls it for the questions ([`Asks`]) of services whose table entry names an engine; every other request
//! passes by, at the price of one look at that entry. In the order of a question:
//!
//! - [`caller`]: who asks, of which nothing is believed that our own front does not vouch for;
//! - [`question`]: the body, read whole so that it can be asked again, and the asking;
//! - [`place`]: the replica, by estimated time to the first token ([`load`]), or the wait for one;
//! - [`told`]: what the engine says to us beside the answer;
//! - [`answer`]: the answer on its way to the client, and [`streamed`], which has it go on elsewhere, or [`hidden`], which
//!   takes out what we asked of a foreign engine;
//! - [`receipt`]: the record of what it cost, written before the last byte goes out.

mod answer;
mod caller;
mod hidden;
mod load;
mod place;
mod question;
mod receipt;
mod streamed;
mod told;

use std::sync::Arc;

use http::Method;
use tokio::sync::Semaphore;
use tram_types::inference::Endpoint;

pub(crate) use answer::Followed;
pub(crate) use caller::{Caller, Fronts};
pub(crate) use load::{Load, Router};
pub(crate) use question::{Asked, Question};

/// Bytes of all bodies that are kept at a time, for as long as their answers may have to go on elsewhere: a flood of large
/// ones is refused.
const HELD_MAX_BYTES: usize = 256 * 1024 * 1024;
/// What memory is counted in: a semaphore counts no further than 32 bits.
const PAGE_BYTES: usize = 4096;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Pages of memory for bodies.
    memory: Arc<Semaphore>,
    /// Who may say whose question it is.
    pub(crate) fronts: Fronts,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(HELD_MAX_BYTES / PAGE_BYTES)),
            fronts: Fronts::default(),
        }
    }
}

/// What the edge takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asks(Endpoint);

impl Asks {
    /// `path` is the one that the instance sees.
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        // Whatever a body says it is coded as: engines read JSON, and nobody is let past the accounts by a header.
        if *method != Method::POST {
            return None;
        }
        match path {
            "/v1/chat/completions" => Some(Self(Endpoint::ChatCompletions)),
            "/v1/completions" => Some(Self(Endpoint::Completions)),
            "/v1/embeddings" => Some(Self(Endpoint::Embeddings)),
            "/v1/messages" => Some(Self(Endpoint::Messages)),
            "/v1/responses" => Some(Self(Endpoint::Responses)),
            "/v1/fim/completions" => Some(Self(Endpoint::FimCompletions)),
            _ => None,
        }
    }

    /// Whether the platform's engine tells what another needs to go on with a streamed answer.
    fn can_move(self) -> bool {
        !matches!(self.0, Endpoint::Embeddings)
    }

    /// Whether an engine must be asked to say what a streamed answer costs.
    fn has_stream_options(self) -> bool {
        matches!(self.0, Endpoint::ChatCompletions | Endpoint::Completions)
    }
}
