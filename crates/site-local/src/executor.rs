//! How the executor of a sandbox comes into an instance.
//!
//! It is one file of this machine, mounted read-only on a path that no image uses, and the first program of the
//! instance. So the image needs nothing: no shell, no libc, no user database.

use tram_sandbox::protocol::BindMount;
use tram_site::spec::ExecutorSpec;

use crate::config::Config;
use crate::launch::Error;

/// Where the executor is inside.
pub(crate) const PATH: &str = "/.tramontane/executor";

/// Where a copy of a running sandbox is told who it is (crates/executor, `identity.rs`).
pub(crate) const IDENTITY_PATH: &str = "/.tramontane/identity";

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
