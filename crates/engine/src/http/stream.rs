//! Answers on their way to a client: collected, or as server-sent events.
//!
//! Nothing here holds the engine up: its events wait in a channel, at most one for each token the answer may have. When
//! the client leaves, this is dropped, and the engine drops the request at its next step.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::ApiError;
use super::handover::{self, Begin};
use super::reply::{Answer, Head, Usage};
use super::tools::Tools;
use crate::cache::Token;
use crate::request::{Event, Failure};

/// One request's answers.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) head: Head,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) usage: Usage,
    answers: Vec<Answer>,
    /// Answers that have not ended.
    open: usize,
    /// Log probabilities were asked for.
    likely: bool,
    tools: Option<Tools>,
}

impl Answers {
    pub(crate) fn new(
        head: Head,
        events: UnboundedReceiver<Event>,
        prompt: usize,
        answers: usize,
        likely: bool,
        tools: Option<Tools>,
        echo: Option<String>,
    ) -> Self {
        let begin = || Answer {
            text: echo.clone().unwrap_or_default(),
            ..Answer::default()
        };
        Self {
            head,
            events,
            usage: Usage {
                prompt,
                ..Usage::default()
            },
            answers: (0..answers).map(|_| begin()).collect(),
            open: answers,
            likely,
            tools,
        }
    }

    /// Waits until the prompt was read: from then on an answer comes.
    pub(crate) async fn begun(&mut self) -> Result<(), ApiError> {
        match self.events.recv().await {
            Some(Event::Read { cached }) => {
                self.usage.cached = cached;
                Ok(())
            }
            Some(Event::Failed(failure)) => Err(failure.into()),
            // The thread is gone, or says things in a wrong order: neither is the client's fault.
            _ => Err(ApiError::internal("The engine has failed.".to_owned())),
        }
    }

    /// Waits for the whole.
    pub(crate) async fn whole(mut self) -> Result<Value, ApiError> {
        while self.open > 0 {
            match self.events.recv().await {
                Some(Event::Token {
                    answer, text, likely, ..
                }) => {
                    if let Some(answer) = self.answers.get_mut(answer) {
                        answer.text.push_str(&text);
                        answer.likely.extend(likely);
                    }
                }
                Some(Event::Ended { answer, why, tokens }) => {
                    self.open -= 1;
                    self.usage.completion += tokens;
                    if let Some(answer) = self.answers.get_mut(answer) {
                        answer.end = Some(why);
                    }
                }
                Some(Event::Read { cached }) => self.usage.cached = cached,
                Some(Event::Failed(failure)) => return Err(failure.into()),
                None => return Err(ApiError::internal("The engine has failed.".to_owned())),
            }
        }
        if let Some(tools) = &self.tools {
            for answer in &mut self.answers {
                answer.calls = tools.calls(&answer.text).unwrap_or_default();
            }
        }
        Ok(self.head.whole(&self.answers, self.usage, self.likely))
    }

    /// As a stream of events.
    ///
    /// `told`: what an edge is told first, when it asked; then it is told everything. `replayed`: tokens that another
    /// engine generated and sent, with the text of each; nothing of them is sent again.
    pub(crate) fn stream(
        self,
        with_usage: bool,
        told: Option<&Begin>,
        replayed: Option<Vec<(Token, String)>>,
    ) -> Stream {
        let one = self.answers.len() == 1;
        let mut stream = Stream {
            tells: told.is_some(),
            tells_tokens: told.is_some() && one,
            tokens: Vec::new(),
            lines: VecDeque::new(),
            ended: false,
            held: vec![false; self.answers.len()],
            with_usage,
            answers: self,
        };
        for index in 0..stream.answers.answers.len() {
            if let Some(opening) = stream.answers.head.opening(index, with_usage) {
                stream.send(&opening);
            }
        }
        if let Some(replayed) = replayed {
            for (token, text) in replayed {
                stream.token(0, token, &text, &[]);
            }
            stream.lines.clear();
            stream.tokens.clear();
        }
        if let Some(told) = told {
            // One event with the first chunk: an edge that has one has both, and the role is not lost with the engine.
            let told = handover::begin(told, 1);
            let told = match stream.lines.pop_front() {
                Some(opening) => [told.as_bytes(), &opening].concat().into(),
                None => (told + "\n").into(),
            };
            stream.lines.push_front(told);
        }
        stream
    }
}

/// The body of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    answers: Answers,
    lines: VecDeque<Bytes>,
    with_usage: bool,
    ended: bool,
    /// The answer may become a call of a tool: nothing of it goes out before that is clear.
    held: Vec<bool>,
    /// An edge is told what it needs to have another engine go on.
    tells: bool,
    /// And the tokens themselves, which only makes sense of one answer.
    tells_tokens: bool,
    /// Generated since the last chunk.
    tokens: Vec<Token>,
}

impl Stream {
    fn send(&mut self, value: &Value) {
        let told = match std::mem::take(&mut self.tokens) {
            tokens if self.tells_tokens && !tokens.is_empty() => handover::tokens(&tokens, 1),
            _ => String::new(),
        };
        self.lines
            .push_back(Bytes::from(format!("{told}data: {value}\n\n")));
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Read { cached } => self.answers.usage.cached = cached,
            Event::Token {
                answer,
                token,
                text,
                likely,
            } => {
                self.token(answer, token, &text, likely.as_slice());
                self.tell_tokens();
            }
            Event::Ended { answer, why, tokens } => {
                self.answers.usage.completion += tokens;
                if self.tells && self.answers.open == 1 {
                    self.lines.push_back(handover::end(self.answers.usage));
                }
                let calls = self.release(answer);
                let closing = self.answers.head.closing(answer, why, calls, self.with_usage);
                self.send(&closing);
                self.answers.open -= 1;
                if self.answers.open == 0 {
                    if self.with_usage {
                        let usage = self.answers.head.usage(self.answers.usage);
                        self.send(&usage);
                    }
                    self.lines.push_back(Bytes::from_static(DONE));
                    self.ended = true;
                }
            }
            Event::Failed(failure) => self.fail(failure),
        }
    }

    /// Tokens that gave no text free are told at once: whoever goes on must know of them.
    fn tell_tokens(&mut self) {
        if self.tells_tokens && !self.tokens.is_empty() {
            let told = handover::tokens(&std::mem::take(&mut self.tokens), 1);
            self.lines.push_back(Bytes::from(told + "\n"));
        }
    }

    fn token(&mut self, index: usize, token: Token, text: &str, likely: &[crate::request::Likely]) {
        self.tokens.push(token);
        let Some(answer) = self.answers.answers.get_mut(index) else {
            return;
        };
        answer.text.push_str(text);
        let holds = |tools: &Tools| tools.may_be_call(&answer.text);
        self.held[index] = self.answers.tools.as_ref().is_some_and(holds);
        if self.held[index] {
            answer.likely.extend_from_slice(likely);
            return;
        }
        // What was held goes out with what showed that it is no call.
        let mut all = std::mem::take(&mut answer.likely);
        all.extend_from_slice(likely);
        let from = answer.sent;
        answer.sent = answer.text.len();
        if from == answer.text.len() && all.is_empty() {
            return;
        }
        let (before, text) = answer.text.split_at(from);
        let offset = if all.is_empty() { 0 } else { before.chars().count() };
        let chunk = self.answers.head.text(index, text, &all, offset, self.with_usage);
        self.send(&chunk);
    }

    /// An answer has ended: what was held goes out, as calls or as text. Whether it was calls.
    fn release(&mut self, index: usize) -> bool {
        if !self.held.get(index).copied().unwrap_or_default() {
            return false;
        }
        let Some(answer) = self.answers.answers.get(index) else {
            return false;
        };
        let calls = self
            .answers
            .tools
            .as_ref()
            .and_then(|tools| tools.calls(&answer.text));
        let chunk = match &calls {
            Some(calls) => self.answers.head.calls(index, calls, self.with_usage),
            None => self
                .answers
                .head
                .text(index, &answer.text, &answer.likely, 0, self.with_usage),
        };
        self.send(&chunk);
        calls.is_some()
    }

    /// The status is out already: the error is the last event, as OpenAI's clients expect it.
    fn fail(&mut self, failure: Failure) {
        if self.tells && failure == Failure::Stopping {
            self.lines.push_back(Bytes::from_static(handover::STOPPING));
        }
        let body = ApiError::from(failure).body();
        self.send(&body);
        self.ended = true;
    }
}

/// What ends a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(line))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.answers.events.poll_recv(context)) {
                Some(event) => self.take(event),
                None => self.fail(Failure::Stopping),
            }
        }
    }
}
