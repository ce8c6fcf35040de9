//! What the executor is told when it starts.
//!
//! Flags win over the environment: `PORT` is also a name that the sandbox's own programs go by, and they must be able
//! to have a value of their own.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::secret::Digest;

/// Where the executor listens unless told otherwise.
const PORT: u16 = 3030;
/// Where the relay to the bound port listens unless told otherwise.
const PROXY_PORT: u16 = 3031;
/// Where a sandbox of a pool keeps the secret it was claimed with, unless told otherwise.
const SECRET_PATH: &str = "/var/lib/sandbox-container/sandbox-secret";
/// How the platform names digests to [`SECRET_FORM_FLAG`].
const SECRET_FORM: &str = "sha256";
/// Says that secrets are handed in as their digests, in the variable and in the file of `identity`. The platform looks for
/// it in the words of an executor, to know whether that understands digests (crates/site-local, `executor.rs`).
const SECRET_FORM_FLAG: &str = "--secret-form";
/// The variable with the secret, or its digest. The programs of the sandbox do not get it.
pub(crate) const SECRET_VARIABLE: &str = "SANDBOX_SECRET";

/// Who may use the executor.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    /// Whoever shows the secret that this is of.
    Static(Digest),
    /// Whoever comes first; the secret shown then is the secret from then on, kept in this file.
    Pool(PathBuf),
}

/// Everything the executor is told.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) proxy_port: u16,
    pub(crate) access: Access,
    /// The sandbox's own program. Empty: none.
    pub(crate) command: Vec<OsString>,
}

impl Settings {
    /// Reads the arguments after the program's name, and the environment for what they leave open.
    ///
    /// # Errors
    ///
    /// A text for whoever starts the sandbox.
    pub(crate) fn read(
        arguments: impl Iterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut port = variable("PORT");
        let mut proxy_port = variable("PROXY_PORT");
        let mut auth = variable("SANDBOX_AUTH_MODE");
        let mut secret_path = variable("SANDBOX_SECRET_PATH");
        let mut secret_form = None;
        let mut arguments = arguments;
        let mut command = Vec::new();
        while let Some(argument) = arguments.next() {
            let setting = match argument.to_str() {
                Some("--") => {
                    command = arguments.by_ref().collect();
                    break;
                }
                Some("--port") => &mut port,
                Some("--proxy-port") => &mut proxy_port,
                Some("--auth") => &mut auth,
                Some("--secret-path") => &mut secret_path,
                Some(SECRET_FORM_FLAG) => &mut secret_form,
                _ => return Err(format!("unknown argument {}", argument.display())),
            };
            let value = arguments.next().and_then(|value| value.into_string().ok());
            *setting = Some(value.ok_or_else(|| format!("{} needs a value", argument.display()))?);
        }
        let digest = |secret: String| match secret_form.as_deref() {
            None => Ok(Digest::of_last(secret)),
            Some(SECRET_FORM) => Digest::read(&secret)
                .ok_or_else(|| format!("{SECRET_VARIABLE} must be `sha256:` and 64 hexadecimal digits")),
            Some(other) => Err(format!("{SECRET_FORM_FLAG} must be {SECRET_FORM}, not {other}")),
        };
        let access = match auth.as_deref().unwrap_or("static") {
            "static" => Access::Static(digest(variable(SECRET_VARIABLE).ok_or_else(|| {
                format!("the environment variable {SECRET_VARIABLE} is missing: set it to the secret that clients show")
            })?)?),
            "pool" => Access::Pool(PathBuf::from(secret_path.unwrap_or_else(|| SECRET_PATH.to_owned()))),
            other => return Err(format!("the authentication mode must be static or pool, not {other}")),
        };
        Ok(Self {
            port: number("the port", port, PORT)?,
            proxy_port: number("the proxy port", proxy_port, PROXY_PORT)?,
            access,
            command,
        })
    }
}

fn number(what: &str, given: Option<String>, usual: u16) -> Result<u16, String> {
    given.map_or(Ok(usual), |text| {
        let wrong = || format!("{what} must be a number from 0 to 65535, not {text}");
        text.parse().map_err(|_| wrong())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(arguments.iter().map(OsString::from), |name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn flags_win_over_the_environment() {
        let environment = [("PORT", "8000"), ("SANDBOX_SECRET", "s"), ("PROXY_PORT", "")];
        let settings = read(&["--port", "3030", "--", "serve", "--port", "1"], &environment).unwrap();
        assert_eq!((settings.port, settings.proxy_port), (3030, 3031));
        assert!(matches!(settings.access, Access::Static(kept) if kept.is(&Digest::of(b"s"))));
        assert_eq!(settings.command, ["serve", "--port", "1"]);
        assert_eq!(read(&[], &environment).unwrap().port, 8000);
    }

    #[test]
    fn a_pool_needs_no_secret_and_all_else_does() {
        let pool = read(&["--auth", "pool", "--secret-path", "/s"], &[]).unwrap();
        assert!(matches!(pool.access, Access::Pool(path) if path == std::path::Path::new("/s")));
        assert!(read(&[], &[]).unwrap_err().contains("SANDBOX_SECRET"));
        assert!(read(&["--auth", "none"], &[]).unwrap_err().contains("none"));
        assert!(
            read(&["--port", "x"], &[("SANDBOX_SECRET", "s")])
                .unwrap_err()
                .contains('x')
        );
        assert!(read(&["--port"], &[]).unwrap_err().contains("--port"));
        assert!(read(&["serve"], &[]).unwrap_err().contains("serve"));
    }

    #[test]
    fn the_platform_hands_in_digests() {
        let digest = Digest::of(b"s");
        let text = digest.to_string();
        let arguments = ["--secret-form", "sha256"];
        let settings = read(&arguments, &[("SANDBOX_SECRET", &text)]).unwrap();
        assert!(matches!(settings.access, Access::Static(kept) if kept.is(&digest)));
        assert!(
            read(&arguments, &[("SANDBOX_SECRET", "s")])
                .unwrap_err()
                .contains("sha256:")
        );
        let other = read(&["--secret-form", "md5"], &[("SANDBOX_SECRET", "s")]);
        assert!(other.unwrap_err().contains("md5"));
    }
}
