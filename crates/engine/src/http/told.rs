//! One answer told in the words of a vendor: whole, or as a stream of events.
//!
//! What comes from the engine is the same for all; a [`Shape`] says how a vendor writes it down. For contracts that know
//! one answer a request and no log probabilities; OpenAI's older ones, which know both, are `stream` and `reply`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::handover::{self, Begin};
use super::reply::{Call, Usage};
use super::tools::Tools;
use crate::cache::Token;
use crate::request::{End, Event, Failure, Request};

/// A request that was read, and how its answer is told.
pub(super) struct Question {
    pub(super) request: Request,
    pub(super) receiver: UnboundedReceiver<Event>,
    pub(super) tools: Option<Tools>,
    pub(super) stream: bool,
    pub(super) shape: Box<dyn Shape>,
}

/// An answer, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// All of it, also where it is a call.
    text: String,
    /// Bytes of it that went out.
    sent: usize,
    /// What it calls instead of saying something.
    pub(super) calls: Vec<Call>,
    pub(super) end: Option<End>,
    pub(super) usage: Usage,
}

impl Told {
    /// What is said; nothing where a tool is called.
    pub(super) fn said(&self) -> &str {
        if self.calls.is_empty() { &self.text } else { "" }
    }
}

/// How a vendor writes an answer down.
pub(super) trait Shape: Debug + Send {
    /// Its id, and when it began in seconds since 1970.
    fn head(&self) -> (&str, i64);
    /// It is the rest of an answer that another engine began with this head.
    fn goes_on(&mut self, id: &str, created: i64);
    fn whole(&mut self, told: &Told) -> Value;
    /// A stream begins: the prompt was read.
    fn open(&mut self, told: &Told, lines: &mut Lines);
    /// More of the text; never empty.
    fn text(&mut self, text: &str, lines: &mut Lines);
    /// The answer has ended; its calls of tools were not told before.
    fn close(&mut self, told: &Told, lines: &mut Lines);
    /// It broke off.
    fn fail(&mut self, error: &ApiError, lines: &mut Lines);
}

/// Events that are to go out.
#[derive(Debug, Default)]
pub(super) struct Lines(VecDeque<Bytes>);

impl Lines {
    /// An event whose name is the `type` of its data.
    pub(super) fn named(&mut self, data: &Value) {
        let name = data["type"].as_str().unwrap_or("message");
        self.0
            .push_back(Bytes::from(format!("event: {name}\ndata: {data}\n\n")));
    }

    pub(super) fn plain(&mut self, data: &Value) {
        self.0.push_back(Bytes::from(format!("data: {data}\n\n")));
    }

    pub(super) fn done(&mut self) {
        self.0.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
    }
}

/// An answer on its way: the body of a stream, or what is waited for.
#[derive(Debug)]
pub(crate) struct Telling {
    events: UnboundedReceiver<Event>,
    tools: Option<Tools>,
    shape: Box<dyn Shape>,
    told: Told,
    lines: Lines,
    ended: bool,
    /// An edge is told what it needs to have another engine go on.
    tells: bool,
}

impl Telling {
    pub(super) fn new(
        events: UnboundedReceiver<Event>,
        prompt: usize,
        tools: Option<Tools>,
        shape: Box<dyn Shape>,
    ) -> Self {
        let usage = Usage {
            prompt,
            ..Usage::default()
        };
        Self {
            events,
            tools,
            shape,
            told: Told {
                usage,
                ..Told::default()
            },
            lines: Lines::default(),
            ended: false,
            tells: false,
        }
    }

    /// What another engine began with, as far as it shows.
    pub(super) fn goes_on(&mut self, begun: &Begin) {
        self.told.usage.cached = begun.cached;
        self.shape.goes_on(&begun.id, begun.created);
    }

    /// What all parts of the answer have in common.
    pub(super) fn begin(&self, seed: u64, model: String) -> Begin {
        let (id, created) = self.shape.head();
        Begin {
            id: id.to_owned(),
            created,
            seed,
            prompt_tokens: self.told.usage.prompt,
            cached: self.told.usage.cached,
            model,
        }
    }

    /// Waits until the prompt was read: from then on an answer comes.
    pub(super) async fn begun(&mut self) -> Result<(), ApiError> {
        match self.events.recv().await {
            Some(Event::Read { cached }) => {
                self.told.usage.cached = cached;
                Ok(())
            }
            Some(Event::Failed(failure)) => Err(failure.into()),
            // The thread is gone, or says things in a wrong order: neither is the client's fault.
            _ => Err(ApiError::internal("The engine has failed.".to_owned())),
        }
    }

    /// Waits for the whole.
    pub(super) async fn whole(mut self) -> Result<Value, ApiError> {
        while self.told.end.is_none() {
            match self.events.recv().await {
                Some(Event::Failed(failure)) => return Err(failure.into()),
                Some(event) => self.take(event),
                None => return Err(ApiError::internal("The engine has failed.".to_owned())),
            }
        }
        Ok(self.shape.whole(&self.told))
    }

    /// As a stream of events.
    ///
    /// `told`: what an edge is told first, when it asked; then it is told everything. `replayed`: tokens that another
    /// engine generated and sent, with the text of each; nothing of them is sent again.
    pub(super) fn stream(mut self, told: Option<&Begin>, replayed: Option<Vec<(Token, String)>>) -> Self {
        self.shape.open(&self.told, &mut self.lines);
        if let Some(replayed) = replayed {
            for (token, text) in replayed {
                self.tell(Event::Token {
                    answer: 0,
                    token,
                    text,
                    likely: None,
                });
            }
            self.lines.0.clear();
        }
        if let Some(told) = told {
            self.tells = true;
            let events = self.lines.0.len();
            self.mark(0, handover::begin(told, events));
        }
        self
    }

    /// Puts a line for the edge before the events from `at` on; alone where there are none.
    fn mark(&mut self, at: usize, line: String) {
        match self.lines.0.get_mut(at) {
            Some(first) => *first = [line.as_bytes(), first].concat().into(),
            None => self.lines.0.push_back((line + "\n").into()),
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Read { cached } => self.told.usage.cached = cached,
            Event::Token { text, .. } => self.told.text.push_str(&text),
            Event::Ended { why, tokens, .. } => {
                self.told.usage.completion = tokens;
                self.told.end = Some(why);
                let calls = self.tools.as_ref().and_then(|tools| tools.calls(&self.told.text));
                self.told.calls = calls.unwrap_or_default();
            }
            Event::Failed(failure) => {
                self.ended = true;
                if self.tells && failure == Failure::Stopping {
                    self.lines.0.push_back(Bytes::from_static(handover::STOPPING));
                }
                self.shape.fail(&failure.into(), &mut self.lines);
            }
        }
    }

    /// Takes an event and tells what can be told now.
    fn tell(&mut self, event: Event) {
        let token = match &event {
            Event::Token { token, .. } if self.tells => Some(*token),
            _ => None,
        };
        let from = self.lines.0.len();
        self.take(event);
        if self.ended {
            return;
        }
        let ended = self.told.end.is_some();
        // What may become a call of a tool is held until that is clear.
        let holds = |tools: &Tools| tools.may_be_call(&self.told.text);
        let held = !ended && self.tools.as_ref().is_some_and(holds);
        if !held && self.told.calls.is_empty() {
            let text = &self.told.text[self.told.sent..];
            if !text.is_empty() {
                self.shape.text(text, &mut self.lines);
            }
            self.told.sent = self.told.text.len();
        }
        // What a token gave free counts with it or not at all.
        if let Some(token) = token {
            let events = self.lines.0.len() - from;
            self.mark(from, handover::tokens(&[token], events));
        }
        if ended {
            if self.tells {
                self.lines.0.insert(from, handover::end(self.told.usage));
            }
            self.shape.close(&self.told, &mut self.lines);
            if self.tells {
                self.mark(self.lines.0.len() - 1, handover::done());
            }
            self.ended = true;
        }
    }
}

impl http_body::Body for Telling {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(line) = self.lines.0.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(line))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.events.poll_recv(context)) {
                Some(event) => self.tell(event),
                None => self.tell(Event::Failed(Failure::Stopping)),
            }
        }
    }
}
