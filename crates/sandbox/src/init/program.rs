//! Finding and executing the program.
//!
//! The one design choice to know: everything is prepared before the privileges go and the filter is
//! on, so that afterwards there is nothing left but `execve`.

use std::convert::Infallible;
use std::ffi::CString;

use nix::errno::Errno;

use super::{During, Step};
use crate::protocol::LaunchFailure;

/// Where programs are searched when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program ready to be executed.
#[derive(Debug)]
pub(super) struct Program {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    words: Vec<String>,
}

impl Program {
    pub(super) fn prepare(argv: &[String], env: &[(String, String)]) -> Step<Self> {
        let what = || "prepare the program".to_owned();
        let c_string =
            |text: String| CString::new(text).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL));
        let name = argv.first().cloned().unwrap_or_default();
        let candidates = if name.contains('/') {
            vec![name]
        } else {
            let path = env
                .iter()
                .find(|(name, _)| name == "PATH")
                .map_or(DEFAULT_PATH, |(_, value)| value);
            // An empty entry means the working directory, as in a shell.
            path.split(':')
                .map(|dir| {
                    if dir.is_empty() {
                        format!("./{name}")
                    } else {
                        format!("{dir}/{name}")
                    }
                })
                .collect()
        };
        let candidates: Result<Vec<_>, _> = candidates.into_iter().map(c_string).collect();
        let words: Result<Vec<_>, _> = argv.iter().cloned().map(c_string).collect();
        let env: Result<Vec<_>, _> = env
            .iter()
            .map(|(name, value)| c_string(format!("{name}={value}")))
            .collect();
        Ok(Self {
            candidates: candidates.during(what)?,
            argv: words.during(what)?,
            env: env.during(what)?,
            words: argv.to_vec(),
        })
    }

    /// The first that can be executed is. Else the most telling error: "not permitted" of one
    /// directory says more than "not found" of the others.
    pub(super) fn exec(self) -> Step<Infallible> {
        let mut verdict = Errno::ENOENT;
        for candidate in &self.candidates {
            let Err(errno) = nix::unistd::execve(candidate, &self.argv, &self.env);
            match errno {
                Errno::ENOENT | Errno::ENOTDIR => {
                    if self.candidates.len() == 1 {
                        verdict = errno;
                    }
                }
                Errno::EACCES => verdict = errno,
                _ => {
                    verdict = errno;
                    break;
                }
            }
        }
        let program = self.words.first().cloned().unwrap_or_default();
        Err(LaunchFailure::Exec {
            program,
            argv: self.words,
            errno: verdict as i32,
        })
    }
}
