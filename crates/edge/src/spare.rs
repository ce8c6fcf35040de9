//! What it takes to send a request again.
//!
//! Every request on a kept connection has one, and hardly any is used, so it must cost little: names and values are
//! counted references in a list whose room stays with the connection. The map is built anew when it is needed.

use http::{HeaderName, HeaderValue, Method, Request, Uri};

use crate::body::RequestBody;

/// Room for a copy of one request.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    method: Method,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Spare {
    /// Whether a request may be sent again when nobody knows what became of it: by its method, and because it has no
    /// body.
    pub(crate) fn may_repeat(request: &Request<RequestBody>) -> bool {
        matches!(request.body(), RequestBody::Empty) && is_idempotent(request.method())
    }

    /// Takes a copy of a request that may be repeated. False, and nothing taken, for any other.
    pub(crate) fn take(&mut self, request: &Request<RequestBody>) -> bool {
        if !Self::may_repeat(request) {
            return false;
        }
        self.method = request.method().clone();
        self.uri = request.uri().clone();
        self.headers.clear();
        let headers = request.headers().iter();
        self.headers
            .extend(headers.map(|(name, value)| (name.clone(), value.clone())));
        true
    }

    /// Lets go of the copy and keeps the room.
    pub(crate) fn clear(&mut self) {
        self.uri = Uri::default();
        self.headers.clear();
    }

    /// The copy as a request.
    pub(crate) fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        request.headers_mut().reserve(self.headers.len());
        for (name, value) in self.headers {
            request.headers_mut().append(name, value);
        }
        request
    }
}

/// Whether a request may be sent twice (RFC 9110, 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static("/path?query");
        for (name, value) in [("accept", "a"), ("x-own", "b"), ("accept", "c")] {
            request
                .headers_mut()
                .append(name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn a_copy_is_the_whole_request_and_leaves_nothing_for_the_next() {
        let mut spare = Spare::default();
        let mut large = request(Method::GET);
        large
            .headers_mut()
            .insert("x-of-the-first", HeaderValue::from_static("1"));
        assert!(spare.take(&large));
        spare.clear();
        let original = request(Method::DELETE);
        assert!(spare.take(&original));
        let copy = spare.into_request();
        assert_eq!(copy.method(), original.method());
        assert_eq!(copy.uri(), original.uri());
        assert_eq!(copy.headers(), original.headers());
    }

    #[test]
    fn what_may_not_be_sent_twice_is_not_copied() {
        assert!(!Spare::default().take(&request(Method::POST)));
        assert!(!Spare::default().take(&request(Method::PATCH)));
    }
}
