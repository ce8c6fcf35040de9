//! Requests to one repository: endpoints in order, authorisation, bounds on time and size, rounds of retries.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, redirect};
use tokio::time::timeout;

use super::answer::{error_text, range_start, retry_after, transport};
use super::auth::{self, Authorization, Challenge, TokenAnswer};
use super::retries::Retries;
use super::stream::BlobStream;
use super::{ClientCertificate, Credentials, Endpoint, RegistryConfig};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::{MAX_ANSWER_BYTES, MAX_BACK_OFF, MAX_MANIFEST_BYTES, MAX_REDIRECTS, Timeouts};
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;

/// What is being asked for, as error messages name it.
const MANIFEST: &str = "the manifest";
pub(super) const LAYER: &str = "a layer";
/// Connections to one host that are kept open between pulls.
const IDLE_CONNECTIONS_PER_HOST: usize = 4;
/// And for how long.
const IDLE_CONNECTION_LIFE: Duration = Duration::from_secs(30);

/// Connections and tokens, shared by all pulls of a store.
#[derive(Debug)]
pub(crate) struct Client {
    config: RegistryConfig,
    timeouts: Timeouts,
    /// One set of connections for each way to trust and to be trusted.
    connections: Mutex<HashMap<Trust, Connections>>,
    tokens: Mutex<HashMap<TokenKey, Authorization>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Trust {
    skip_verify: bool,
    authorities: Vec<PathBuf>,
    client: Option<ClientCertificate>,
    dial_timeout: Option<Duration>,
}

/// Connections, and what the files were when they were made: certificates are renewed in place.
#[derive(Debug)]
struct Connections {
    files: Digest,
    client: reqwest::Client,
}

/// A token is good for one repository at one address, for whoever got it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    base: String,
    repository: String,
    identity: Option<Digest>,
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization")
    }
}

impl Client {
    pub(crate) fn new(config: RegistryConfig, timeouts: Timeouts) -> Self {
        Self {
            config,
            timeouts,
            connections: Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    fn connections(&self, endpoint: &Endpoint) -> Result<reqwest::Client, Error> {
        let trust = Trust {
            skip_verify: endpoint.skip_verify,
            authorities: endpoint.authorities.clone(),
            client: endpoint.client.clone(),
            dial_timeout: endpoint.dial_timeout,
        };
        let authorities = endpoint
            .authorities
            .iter()
            .map(|path| read("reading the authority", path).map(|pem| (path, pem)))
            .collect::<Result<Vec<_>, _>>()?;
        let identity = endpoint.client.as_ref().map(client_pem).transpose()?;
        let contents = authorities.iter().map(|(_, pem)| pem).chain(&identity);
        let files: Vec<u8> = contents
            .flat_map(|pem| Digest::of(pem).hex().into_bytes())
            .collect();
        let files = Digest::of(&files);
        let mut all = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = all.get(&trust).filter(|kept| kept.files == files) {
            return Ok(kept.client.clone());
        }
        // The process chooses its provider at start; a library user or a test may not have, and reqwest would
        // panic. An error means that one is there already.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let mut builder = self
            .builder(endpoint)
            .tls_danger_accept_invalid_certs(endpoint.skip_verify);
        for (path, pem) in authorities {
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| Error::Configuration {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            builder = builder.tls_certs_merge(certificates);
        }
        let unusable = |error: reqwest::Error| Error::Configuration {
            path: endpoint
                .client
                .as_ref()
                .map(|client| client.certificate.clone())
                .unwrap_or_default(),
            reason: format!("the client certificate cannot be used with its key: {error}"),
        };
        if let Some(pem) = &identity {
            builder = builder.identity(reqwest::Identity::from_pem(pem).map_err(unusable)?);
        }
        let client = match builder.build() {
            Ok(client) => client,
            Err(error) if identity.is_some() => return Err(unusable(error)),
            // A host without any certificate authorities installed. Plain http must work there; https then
            // fails with the reason when it is tried.
            Err(_) => self
                .builder(endpoint)
                .tls_certs_only([])
                .build()
                .map_err(|error| Error::Protocol {
                    registry: endpoint.host.clone(),
                    reason: format!("TLS cannot be set up: {error}"),
                })?,
        };
        let kept = client.clone();
        all.insert(trust, Connections { files, client: kept });
        Ok(client)
    }

    /// How long a connection to it may take.
    fn dial_limit(&self, endpoint: &Endpoint) -> Duration {
        endpoint.dial_timeout.unwrap_or(self.timeouts.connect)
    }

    fn builder(&self, endpoint: &Endpoint) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("tramontane/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.dial_limit(endpoint))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_PER_HOST)
            .pool_idle_timeout(IDLE_CONNECTION_LIFE)
            .redirect(redirect::Policy::custom(|attempt| {
                let from_https = attempt
                    .previous()
                    .last()
                    .is_some_and(|url| url.scheme() == "https");
                if attempt.previous().len() > MAX_REDIRECTS {
                    attempt.error("too many redirects")
                } else if from_https && attempt.url().scheme() != "https" {
                    attempt.error("redirected from https to http")
                } else {
                    attempt.follow()
                }
            }))
    }

    fn token(&self, key: &TokenKey) -> Option<Authorization> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(key)
            .filter(|token| token.is_good(Instant::now()))
            .cloned()
    }

    fn keep_token(&self, key: TokenKey, token: Authorization) {
        let now = Instant::now();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, token| token.is_good(now));
        tokens.insert(key, token);
    }
}

/// One repository, with the addresses it can be had from and the credentials of one pull.
#[derive(Debug)]
pub(crate) struct Source {
    client: Arc<Client>,
    reference: Reference,
    endpoints: Vec<Endpoint>,
    credentials: Option<Credentials>,
    /// Somebody waits in front of a screen: fail soon.
    brief: bool,
}

/// A manifest or index as it came.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// What an endpoint is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Capability {
    Resolve,
    Pull,
}

impl Source {
    pub(crate) fn new(
        client: Arc<Client>,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<Self, Error> {
        let endpoints = client.config.endpoints(reference.registry())?;
        Ok(Self {
            client,
            reference,
            endpoints,
            credentials,
            brief: false,
        })
    }

    /// The same, giving up sooner.
    pub(crate) fn brief(self) -> Self {
        Self { brief: true, ..self }
    }

    fn retries(&self) -> Retries {
        if self.brief {
            Retries::brief()
        } else {
            Retries::default()
        }
    }

    /// The name of the image, for messages.
    pub(crate) fn image(&self) -> String {
        self.reference.familiar()
    }

    /// The registry's name, for messages.
    pub(crate) fn registry(&self) -> &str {
        self.reference.registry()
    }

    /// What the name stands for, if the registry says so without sending it (it costs no pull on registries
    /// that count them).
    pub(crate) async fn head(&self) -> Result<Option<Digest>, Error> {
        let path = format!("manifests/{}", self.reference.target());
        self.rounds(Capability::Resolve, Retries::brief(), |endpoint| {
            let path = &path;
            async move {
                let response = self
                    .send(endpoint, Method::HEAD, path, accept(), MANIFEST)
                    .await?;
                let digest = response.headers().get("docker-content-digest");
                Ok(digest
                    .and_then(|value| value.to_str().ok())
                    .and_then(|text| text.parse().ok()))
            }
            .boxed()
        })
        .await
    }

    /// The manifest or index the name stands for.
    pub(crate) async fn resolve(&self) -> Result<Resolved, Error> {
        self.manifest(
            Capability::Resolve,
            self.reference.target(),
            self.reference.digest().copied(),
        )
        .await
    }

    /// A manifest that an index names.
    pub(crate) async fn manifest_by_digest(&self, digest: Digest) -> Result<Resolved, Error> {
        self.manifest(Capability::Pull, digest.to_string(), Some(digest))
            .await
    }

    async fn manifest(
        &self,
        capability: Capability,
        target: String,
        expected: Option<Digest>,
    ) -> Result<Resolved, Error> {
        let path = format!("manifests/{target}");
        self.rounds(capability, self.retries(), |endpoint| {
            let path = &path;
            async move {
                let response = self.send(endpoint, Method::GET, path, accept(), MANIFEST).await?;
                let content_type = response
                    .headers()
                    .get(CONTENT_TYPE)
                    .and_then(|value| value.to_str().ok())
                    .map(str::to_owned);
                let bytes = self
                    .body(endpoint, response, MAX_MANIFEST_BYTES, MANIFEST)
                    .await?;
                let digest = Digest::of(&bytes);
                match expected {
                    Some(expected) if expected != digest => Err(Error::DigestMismatch {
                        what: MANIFEST,
                        registry: endpoint.host.clone(),
                        expected,
                        actual: digest,
                    }),
                    _ => Ok(Resolved {
                        bytes,
                        digest,
                        content_type,
                    }),
                }
            }
            .boxed()
        })
        .await
    }

    /// A small blob (a configuration), verified.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit_bytes: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, Error> {
        let path = format!("blobs/{}", descriptor.digest);
        self.rounds(Capability::Pull, self.retries(), |endpoint| {
            let path = &path;
            async move {
                let response = self
                    .send(endpoint, Method::GET, path, HeaderMap::new(), what)
                    .await?;
                let bytes = self.body(endpoint, response, limit_bytes, what).await?;
                let actual = Digest::of(&bytes);
                if actual != descriptor.digest {
                    let (registry, expected) = (endpoint.host.clone(), descriptor.digest);
                    return Err(Error::DigestMismatch {
                        what,
                        registry,
                        expected,
                        actual,
                    });
                }
                Ok(bytes)
            }
            .boxed()
        })
        .await
    }

    /// Addresses that layers may be fetched from.
    pub(crate) fn layer_endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.pull)
    }

    /// Starts to fetch a layer from byte `offset`. The stream says where it really starts.
    pub(crate) async fn layer(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, Error> {
        let path = format!("blobs/{digest}");
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut response = self.send(endpoint, Method::GET, &path, headers, LAYER).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            response = self
                .send(endpoint, Method::GET, &path, HeaderMap::new(), LAYER)
                .await?;
        }
        let offset = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                range_start(response.headers()).ok_or_else(|| Error::Protocol {
                    registry: endpoint.host.clone(),
                    reason: "it sends a part of a layer without saying which".to_owned(),
                })?
            }
            _ => 0,
        };
        Ok(BlobStream::new(
            response,
            offset,
            endpoint.host.clone(),
            self.client.timeouts.stall,
        ))
    }

    /// Tries the endpoints in order, and again after a pause when the registry itself failed in a way that may
    /// pass. The registry's own answer is the one reported.
    async fn rounds<'a, T>(
        &'a self,
        capability: Capability,
        mut retries: Retries,
        attempt: impl Fn(&'a Endpoint) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let able = |endpoint: &&Endpoint| match capability {
            Capability::Resolve => endpoint.resolve,
            Capability::Pull => endpoint.pull,
        };
        loop {
            let mut last = None;
            for endpoint in self.endpoints.iter().filter(able) {
                match attempt(endpoint).await {
                    Ok(value) => return Ok(value),
                    Err(error) => {
                        tracing::debug!(host = endpoint.host, %error, "registry request failed");
                        last = Some(error);
                    }
                }
            }
            let error = last.unwrap_or_else(|| Error::Protocol {
                registry: self.registry().to_owned(),
                reason: "no address in its hosts.toml has the capability to answer this".to_owned(),
            });
            retries.pause(error).await?;
        }
    }

    /// Sends one request, authorised as the endpoint asks. Successful statuses and 416 come back as they are.
    async fn send(
        &self,
        endpoint: &Endpoint,
        method: Method,
        path: &str,
        headers: HeaderMap,
        what: &'static str,
    ) -> Result<Response, Error> {
        let connections = self.client.connections(endpoint)?;
        let mut url = endpoint.base.clone();
        url.set_path(&format!(
            "{}/{}/{path}",
            endpoint.base.path(),
            self.reference.repository()
        ));
        if !endpoint.is_server {
            // containerd's way of telling a mirror whose contents are wanted.
            url.query_pairs_mut().append_pair("ns", self.registry());
        }
        let credentials = self.credentials_for(endpoint);
        let key = TokenKey {
            base: endpoint.base.to_string(),
            repository: self.reference.repository().to_owned(),
            identity: credentials.map(|credentials| Digest::of(credentials.identity().as_bytes())),
        };
        let mut authorization = self.client.token(&key);
        let mut authorised = false;
        loop {
            let mut request = connections
                .request(method.clone(), url.clone())
                .headers(endpoint.headers.clone())
                .headers(headers.clone());
            if let Some(authorization) = &authorization {
                request = request.header(AUTHORIZATION, authorization.value.clone());
            }
            let limit = self.client.timeouts.response;
            let response = match timeout(limit, request.send()).await {
                Ok(outcome) => outcome.map_err(|error| {
                    transport(&endpoint.host, what, error, self.client.dial_limit(endpoint))
                })?,
                Err(_) => {
                    return Err(Error::Timeout {
                        registry: endpoint.host.clone(),
                        doing: what,
                        limit,
                    });
                }
            };
            if response.status() == StatusCode::UNAUTHORIZED && !authorised {
                authorised = true;
                if let Some(fresh) = self.authorise(endpoint, credentials, &response).await? {
                    self.client.keep_token(key.clone(), fresh.clone());
                    authorization = Some(fresh);
                    continue;
                }
            }
            return self.judge(endpoint, credentials.is_some(), response, what).await;
        }
    }

    fn credentials_for<'a>(&'a self, endpoint: &'a Endpoint) -> Option<&'a Credentials> {
        let own = self.credentials.as_ref().filter(|_| endpoint.is_server);
        own.or(endpoint.credentials.as_ref())
    }

    /// Answers a 401. `None` means that there is nothing to show.
    async fn authorise(
        &self,
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
        response: &Response,
    ) -> Result<Option<Authorization>, Error> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenges
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter_map(Challenge::parse);
        // A token is worth less to a thief than a password.
        let Some(challenge) = challenges.max_by_key(|challenge| *challenge != Challenge::Basic) else {
            return Ok(credentials.and_then(Authorization::from_credentials));
        };
        let Challenge::Bearer {
            realm,
            service,
            scope,
        } = challenge
        else {
            return Ok(credentials.and_then(Authorization::from_credentials));
        };
        if let Some(bearer @ Credentials::Bearer { .. }) = credentials {
            return Ok(Authorization::from_credentials(bearer));
        }
        let refused = |reason: String| Error::Protocol {
            registry: endpoint.host.clone(),
            reason,
        };
        let repository = self.reference.repository();
        let url = auth::token_url(
            &realm,
            service.as_deref(),
            scope.as_deref(),
            repository,
            &endpoint.base,
        )
        .map_err(&refused)?;
        let doing = "a token";
        let host = url.host_str().unwrap_or_default().to_owned();
        let mut request = self.client.connections(endpoint)?.get(url);
        if let Some(authorization) = credentials.and_then(Authorization::from_credentials) {
            request = request.header(AUTHORIZATION, authorization.value);
        }
        let limit = self.client.timeouts.response;
        let answer = timeout(limit, request.send())
            .await
            .map_err(|_| Error::Timeout {
                registry: host.clone(),
                doing,
                limit,
            })?
            .map_err(|error| transport(&host, doing, error, self.client.dial_limit(endpoint)))?;
        let answer = self.judge(endpoint, credentials.is_some(), answer, doing).await?;
        let bytes = self.body(endpoint, answer, MAX_ANSWER_BYTES, doing).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|error| refused(format!("its token service's answer is malformed: {error}")))?;
        Authorization::from_answer(answer, Instant::now())
            .map(Some)
            .ok_or_else(|| refused("its token service gave no token".to_owned()))
    }

    /// Turns a bad status into an error.
    async fn judge(
        &self,
        endpoint: &Endpoint,
        authenticated: bool,
        response: Response,
        what: &'static str,
    ) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() || (status == StatusCode::RANGE_NOT_SATISFIABLE && what == LAYER) {
            return Ok(response);
        }
        let (image, registry) = (self.image(), self.registry().to_owned());
        match status {
            StatusCode::NOT_FOUND if what == MANIFEST => Err(Error::NotFound {
                image,
                registry,
                authenticated,
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::AccessDenied {
                image,
                registry,
                authenticated,
            }),
            _ => {
                let retry_after = retry_after(response.headers());
                if status == StatusCode::TOO_MANY_REQUESTS
                    && retry_after.is_some_and(|wait| wait > MAX_BACK_OFF)
                {
                    return Err(Error::RateLimited {
                        registry: endpoint.host.clone(),
                        retry_after,
                    });
                }
                let body = self
                    .body(endpoint, response, MAX_ANSWER_BYTES, what)
                    .await
                    .unwrap_or_default();
                Err(Error::Status {
                    registry: endpoint.host.clone(),
                    status: status.as_u16(),
                    what,
                    message: error_text(&body),
                    retry_after,
                })
            }
        }
    }

    /// Reads a small body, bounded in size and time.
    async fn body(
        &self,
        endpoint: &Endpoint,
        mut response: Response,
        limit_bytes: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, Error> {
        let limit = self.client.timeouts.response;
        let read =
            async {
                let mut bytes = Vec::new();
                while let Some(chunk) = response.chunk().await.map_err(|error| {
                    transport(&endpoint.host, what, error, self.client.dial_limit(endpoint))
                })? {
                    if bytes.len() as u64 + chunk.len() as u64 > limit_bytes {
                        let reason = format!("{what} is larger than {limit_bytes} bytes");
                        return Err(Error::Protocol {
                            registry: endpoint.host.clone(),
                            reason,
                        });
                    }
                    bytes.extend_from_slice(&chunk);
                }
                Ok(bytes)
            };
        match timeout(limit, read).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout {
                registry: endpoint.host.clone(),
                doing: what,
                limit,
            }),
        }
    }
}

fn read(doing: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::io(doing, path, error))
}

/// Certificate and key in one text, as TLS wants them.
fn client_pem(client: &ClientCertificate) -> Result<Vec<u8>, Error> {
    let mut pem = read("reading the client certificate", &client.certificate)?;
    if let Some(key) = &client.key {
        pem.push(b'\n');
        pem.extend(read("reading the key of the client certificate", key)?);
    }
    Ok(pem)
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for media_type in manifest::ACCEPTED {
        headers.append(ACCEPT, HeaderValue::from_static(media_type));
    }
    headers
}
