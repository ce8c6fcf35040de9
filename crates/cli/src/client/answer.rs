//! A question to a model, and its answer word by word: OpenAI's chat completions as server-sent events.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::Value;
use tokio::time::timeout;

use super::{Client, Error};
use crate::view::text;

/// Where questions go.
const PATH: &str = "/v1/chat/completions";
/// How long the first word may take: a large model that sleeps deeply loads for minutes.
const FIRST_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the next one may take.
const NEXT_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest line of a stream: a chunk has a few hundred bytes.
const LINE_MAX_BYTES: usize = 1024 * 1024;

/// An answer that is being written.
#[derive(Debug)]
pub(crate) struct Answer {
    client: Client,
    response: Response,
    lines: Lines,
}

impl Client {
    /// Asks a model; `body` must ask for a stream.
    pub(crate) async fn ask(&self, body: &Value) -> Result<Answer, Error> {
        let request = self.request(Method::POST, PATH, &[])?.json(body);
        let late = || Error::TimedOut {
            call: PATH.to_owned(),
            after: FIRST_TIMEOUT,
        };
        let response = match timeout(FIRST_TIMEOUT, request.send()).await {
            Ok(sent) => sent.map_err(|source| self.transport(PATH, source))?,
            Err(_) => return Err(late()),
        };
        if !response.status().is_success() {
            self.body(PATH, response).await?;
            return Err(self.unexpected(PATH, "it refuses without a reason".to_owned()));
        }
        Ok(Answer {
            client: self.clone(),
            response,
            lines: Lines::default(),
        })
    }
}

impl Answer {
    /// The next part; `None` at the end. A stream that ends without saying so was broken off.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, Error> {
        loop {
            while let Some(line) = self.lines.next() {
                let Some(data) = line.strip_prefix("data:").map(str::trim) else {
                    continue;
                };
                if data == "[DONE]" {
                    return Ok(None);
                }
                let part: Value = serde_json::from_str(data).map_err(|source| {
                    self.client
                        .unexpected(PATH, format!("a part of the answer is not JSON ({source})"))
                })?;
                if let Some(error) = part.get("error") {
                    return Err(Error::Stream(text(error, "message").to_owned()));
                }
                return Ok(Some(part));
            }
            let chunk = timeout(NEXT_TIMEOUT, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| Error::TimedOut {
                call: PATH.to_owned(),
                after: NEXT_TIMEOUT,
            })?;
            let chunk = chunk.map_err(|source| self.client.transport(PATH, source))?;
            let Some(chunk) = chunk else {
                return Err(Error::Stream("the answer ended in the middle".to_owned()));
            };
            if !self.lines.push(&chunk) {
                let what = format!("a line of the answer has more than {LINE_MAX_BYTES} bytes");
                return Err(self.client.unexpected(PATH, what));
            }
        }
    }
}

/// Bytes as they come, lines as they are asked for.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// Takes more; false when a line is too long.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() <= LINE_MAX_BYTES || self.bytes.contains(&b'\n')
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let text = "data: {\"a\":\"é\"}\r\n\r\n: note\ndata: [DONE]\n\n".as_bytes();
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                assert!(lines.push(part));
                found.extend(std::iter::from_fn(|| lines.next()));
            }
            assert_eq!(
                found,
                ["data: {\"a\":\"é\"}", "", ": note", "data: [DONE]", ""],
                "{cut}"
            );
        }
        assert!(!Lines::default().push(&vec![b'x'; LINE_MAX_BYTES + 1]));
    }
}
