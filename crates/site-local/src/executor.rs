//! How the executor of a sandbox comes into an instance.
//!
//! It is one file of this machine, mounted read-only on a path that no image uses, and the first program of the
//! instance. So the image needs nothing: no shell, no libc, no user database.

use sha2::{Digest, Sha256};
use tram_sandbox::protocol::BindMount;
use tram_site::spec::ExecutorSpec;

use crate::config::Config;
use crate::launch::Error;

/// Where the executor is inside.
pub(crate) const PATH: &str = "/.tramontane/executor";

/// Where a copy of a running sandbox is told who it is (crates/executor, `identity.rs`).
pub(crate) const IDENTITY_PATH: &str = "/.tramontane/identity";

/// The variable with the secret that clients show to an executor.
pub(crate) const SECRET_VARIABLE: &str = "SANDBOX_SECRET";

/// Tells an executor that it is handed digests of secrets: an instance is given nothing from which its secret could be
/// read, so that neither a copy of it nor a snapshot has it.
const SECRET_FORM: [&str; 2] = ["--secret-form", "sha256"];

/// What an executor is handed in the place of its secret (crates/executor, `secret.rs`).
pub(crate) fn digest_of(secret: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(secret)))
}

/// Whether an executor that was started with these words, each followed by a zero byte, takes digests. One of an earlier
/// version does not, and goes on in copies of what it runs in.
pub(crate) fn takes_digests(words: &[u8]) -> bool {
    // What stands behind `--` is the sandbox's own.
    let words: Vec<&[u8]> = words
        .split(|byte| *byte == 0)
        .take_while(|word| *word != b"--")
        .collect();
    words
        .windows(SECRET_FORM.len())
        .any(|pair| pair == SECRET_FORM.map(str::as_bytes))
}

/// The words of the first program: the executor, and after `--` the sandbox's own program, where there is one.
pub(crate) fn words(executor: &ExecutorSpec, own: Vec<String>) -> Vec<String> {
    // Flags, because the environment belongs to the sandbox: `PORT` may be meant for its programs.
    let mut words = vec![
        PATH.to_owned(),
        "--port".to_owned(),
        executor.port.to_string(),
        "--proxy-port".to_owned(),
        executor.proxy_port.to_string(),
        "--auth".to_owned(),
        executor.access.as_str().to_owned(),
    ];
    words.extend(SECRET_FORM.map(str::to_owned));
    if !own.is_empty() {
        words.push("--".to_owned());
        words.extend(own);
    }
    words
}

/// The mount that shows the executor inside.
pub(crate) fn mount(config: &Config) -> Result<BindMount, Error> {
    Ok(BindMount {
        source: config.executor.clone().ok_or(Error::NoExecutor)?,
        target: PATH.into(),
        readonly: true,
    })
}

#[cfg(test)]
mod tests {
    use tram_site::spec::ExecutorAccess;

    use super::*;

    #[test]
    fn an_executor_that_takes_digests_is_known_by_its_words() {
        let executor = ExecutorSpec {
            port: 3030,
            proxy_port: 3031,
            access: ExecutorAccess::Pool,
        };
        let line = |words: Vec<String>| words.join("\0") + "\0";
        assert!(takes_digests(line(words(&executor, Vec::new())).as_bytes()));
        assert!(!takes_digests(
            b"/.tramontane/executor\0--port\x003030\0--secret-form\0"
        ));
        assert!(!takes_digests(b""));
        assert_eq!(
            digest_of("first"),
            "sha256:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
        );
    }
}
