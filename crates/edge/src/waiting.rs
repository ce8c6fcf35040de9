//! Something to hold on to for a client of an event stream whose service is still asleep.
//!
//! Such a client takes silence for a broken connection, and what stands between it and us may cut it. So once a caller
//! has been held for a while, the answer begins: 200, an event stream, and a comment now and then, which every reader
//! of such streams passes over (HTML, 9.2.6). The service's own stream follows in it when it comes. When something else
//! comes, it is too late for a status: the client gets an event of type `error` with what the status would have said.
//!
//! Only while the edge holds the request. Once an instance has it, what is said is the instance's own.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::time::{Sleep, sleep, timeout};

use crate::body::EdgeBody;
use crate::page::X_TRAM_ERROR;

/// How long a caller is held in silence: most wakes are over by then, and with them an answer's own status is kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two comments: below the 15 seconds after which the strictest proxies call a stream dead.
const COMMENT_PERIOD: Duration = Duration::from_secs(10);

const COMMENT: &[u8] = b": waking\n\n";

const EVENT_STREAM: &str = "text/event-stream";

/// The answer to a request, when it comes.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<EdgeBody>> + Send>>;

/// Whether the client reads event streams.
pub(crate) fn reads_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains(EVENT_STREAM))
}

/// The answer itself if it comes soon, else one that begins without it. `holding`: whether the edge holds the request.
pub(crate) async fn answer(mut answer: Answer, holding: Arc<AtomicBool>) -> Response<EdgeBody> {
    loop {
        match timeout(PATIENCE, answer.as_mut()).await {
            Ok(response) => return response,
            Err(_) if holding.load(Relaxed) => break,
            Err(_) => {}
        }
    }
    let mut response = Response::new(EdgeBody::waiting(Waiting {
        answer,
        next_comment: Box::pin(sleep(Duration::ZERO)),
    }));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A body whose service still sleeps.
pub(crate) struct Waiting {
    answer: Answer,
    next_comment: Pin<Box<Sleep>>,
}

/// What a waiting body goes on with.
pub(crate) enum Next {
    /// A comment; the wait goes on.
    Comment(Bytes),
    /// The service's own stream.
    Stream(EdgeBody),
    /// The last words.
    Error(Bytes),
}

impl Waiting {
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Poll::Ready(response) = self.answer.as_mut().poll(cx) {
            return Poll::Ready(next(response));
        }
        if self.next_comment.as_mut().poll(cx).is_ready() {
            self.next_comment.set(sleep(COMMENT_PERIOD));
            // Polled, so that its end wakes us.
            let _pending = self.next_comment.as_mut().poll(cx);
            return Poll::Ready(Next::Comment(Bytes::from_static(COMMENT)));
        }
        Poll::Pending
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

fn next(response: Response<EdgeBody>) -> Next {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    let is_stream = kind
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with(EVENT_STREAM));
    if is_stream && status == StatusCode::OK {
        return Next::Stream(response.into_body());
    }
    let own = response.headers().contains_key(X_TRAM_ERROR);
    let told = response.into_body().into_full().filter(|_| own);
    let words = told.map_or_else(
        || {
            let words = serde_json::json!({
                "status": status.as_u16(),
                "code": "not_an_event_stream",
                "message": format!("The service woke up and answered with status {status} instead of an event stream."),
            });
            words.to_string()
        },
        // One line: JSON as the edge writes it has no line break.
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    );
    Next::Error(Bytes::from(format!("event: error\ndata: {words}\n\n")))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::page::Refusal;

    fn stream(text: &'static str) -> Response<EdgeBody> {
        let mut response = Response::new(EdgeBody::full(Bytes::from_static(text.as_bytes())));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        response
    }

    async fn after(
        wait: Duration,
        holding: bool,
        response: Response<EdgeBody>,
    ) -> (Duration, Response<EdgeBody>) {
        let began = Instant::now();
        let service = Box::pin(async move {
            sleep(wait).await;
            response
        });
        let response = answer(service, Arc::new(AtomicBool::new(holding))).await;
        (began.elapsed(), response)
    }

    async fn text(response: Response<EdgeBody>) -> String {
        let whole = response.into_body().collect().await.expect("a whole body");
        String::from_utf8(whole.to_bytes().to_vec()).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_wake_keeps_its_own_answer() {
        let mut own = stream("data: 1\n\n");
        *own.status_mut() = StatusCode::IM_A_TEAPOT;
        let (took, response) = after(Duration::from_secs(4), true, own).await;
        assert_eq!(
            (took, response.status()),
            (Duration::from_secs(4), StatusCode::IM_A_TEAPOT)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_wake_is_told_by_comments_and_the_stream_follows() {
        let (took, response) = after(Duration::from_secs(27), true, stream("data: 1\n\n")).await;
        assert_eq!((took, response.status()), (PATIENCE, StatusCode::OK));
        assert_eq!(response.headers()[CONTENT_TYPE], EVENT_STREAM);
        assert_eq!(
            text(response).await,
            ": waking\n\n: waking\n\n: waking\n\ndata: 1\n\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_that_fails_late_is_an_event() {
        let refusal = Refusal::NoHealthyInstance {
            name: "shop/web".to_owned(),
        };
        let (_, response) = after(Duration::from_secs(8), true, refusal.into_response(false)).await;
        let text = text(response).await;
        let event = text
            .strip_prefix(": waking\n\nevent: error\ndata: ")
            .expect("an event");
        let told: serde_json::Value = serde_json::from_str(event.trim_end()).expect("JSON");
        assert_eq!(
            (&told["status"], &told["code"]),
            (&503.into(), &"no_healthy_instance".into())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_takes_its_time_is_waited_for() {
        let mut own = stream("");
        *own.status_mut() = StatusCode::NOT_FOUND;
        let (took, response) = after(Duration::from_secs(42), false, own).await;
        assert_eq!(
            (took, response.status()),
            (Duration::from_secs(42), StatusCode::NOT_FOUND)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_stream_is_named() {
        let (_, response) = after(
            Duration::from_secs(8),
            true,
            Response::new(EdgeBody::full(Bytes::new())),
        )
        .await;
        assert!(text(response).await.contains("not_an_event_stream"));
    }
}
