//! Who we say we are: basic credentials, and the token flow a registry demands in `WWW-Authenticate`.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::Credentials;

/// Tokens without a stated life live this long, as the token specification says.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// No token is kept longer, whatever it says: rights are taken away.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// A token about to expire is not used for a new request.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// What a 401 asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads one `WWW-Authenticate` value. Unknown schemes give `None`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        let mut rest = rest.trim_start();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = quoted(after)?;
            match key
                .trim()
                .trim_start_matches(',')
                .trim()
                .to_ascii_lowercase()
                .as_str()
            {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        Some(Self::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// A quoted string (with `\` before any character) or a plain token, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Where to fetch a token. Credentials may go there only if that is no less protected than the registry: a
/// registry on https cannot make us send a password over plain http.
pub(super) fn token_url(
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
    repository: &str,
    registry: &Url,
) -> Result<Url, String> {
    let mut url = Url::parse(realm).map_err(|_| format!("its token service `{realm}` is not an address"))?;
    if url.scheme() != "https" && (registry.scheme() == "https" || url.scheme() != "http") {
        return Err(format!("its token service `{realm}` is not on https"));
    }
    let own_scope = format!("repository:{repository}:pull");
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        // The registry may ask for more than a pull needs (pull,push): take its scope only if it is for reading.
        query.append_pair(
            "scope",
            scope
                .filter(|scope| scope.ends_with(":pull"))
                .unwrap_or(&own_scope),
        );
    }
    Ok(url)
}

/// A token service's answer.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// An `Authorization` value and until when it is good.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) value: HeaderValue,
    good_until: Option<Instant>,
}

impl Authorization {
    pub(super) fn from_credentials(credentials: &Credentials) -> Option<Self> {
        let text = match credentials {
            Credentials::Basic { username, password } => {
                format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
            }
            Credentials::Bearer { token } => format!("Bearer {token}"),
        };
        Some(Self {
            value: secret(&text)?,
            good_until: None,
        })
    }

    pub(super) fn from_answer(answer: TokenAnswer, now: Instant) -> Option<Self> {
        let token = answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())?;
        let life = answer
            .expires_in
            .map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs)
            .min(MAX_TOKEN_LIFE);
        Some(Self {
            value: secret(&format!("Bearer {token}"))?,
            good_until: Some(now + life),
        })
    }

    pub(super) fn is_good(&self, now: Instant) -> bool {
        self.good_until.is_none_or(|end| now + EXPIRY_MARGIN < end)
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_in_the_wild_are_read() {
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(
                "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:library/nginx:pull,push\""
            ),
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".into(),
                service: Some("registry.docker.io".into()),
                scope: Some("repository:library/nginx:pull,push".into())
            })
        );
        assert_eq!(
            Challenge::parse("bearer  service=plain , realm=\"a\\\"b\" "),
            Some(Challenge::Bearer {
                realm: "a\"b".into(),
                service: Some("plain".into()),
                scope: None
            })
        );
        for bad in [
            "",
            "Bearer",
            "Bearer realm=\"open",
            "Bearer service=\"x\"",
            "Negotiate abc",
            "Bearer ====,,,\"\\",
        ] {
            assert_eq!(Challenge::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_password_never_goes_from_https_to_http() {
        let https = Url::parse("https://r.example/v2").unwrap();
        let http = Url::parse("http://127.0.0.1:5000/v2").unwrap();
        assert!(token_url("http://evil.example/token", None, None, "a", &https).is_err());
        assert!(token_url("file:///etc/passwd", None, None, "a", &http).is_err());
        let url = token_url(
            "http://127.0.0.1:1/t?x=1",
            Some("s p"),
            Some("repository:a:pull,push"),
            "a",
            &http,
        )
        .unwrap();
        assert_eq!(
            url.as_str(),
            "http://127.0.0.1:1/t?x=1&service=s+p&scope=repository%3Aa%3Apull"
        );
    }

    #[test]
    fn tokens_expire() {
        let now = Instant::now();
        let answer = TokenAnswer {
            token: None,
            access_token: Some("t".into()),
            expires_in: Some(10),
        };
        let token = Authorization::from_answer(answer, now).unwrap();
        assert!(token.is_good(now));
        assert!(!token.is_good(now + Duration::from_secs(6)));
        assert!(
            Authorization::from_answer(
                TokenAnswer {
                    token: None,
                    access_token: None,
                    expires_in: None
                },
                now
            )
            .is_none()
        );
    }
}
