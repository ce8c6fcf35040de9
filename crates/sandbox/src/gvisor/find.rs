//! The program runsc: finding it, and whether it works here.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::config;
use crate::installed;

/// The day of the oldest release that is known to work, as releases are named.
pub const VERSION_MIN: u32 = 20_240_729;
/// Where `scripts/runsc` puts it.
const INSTALLED: &str = "/usr/local/lib/tramontane/runsc/runsc";
/// Where others put it.
const SYSTEM: [&str; 2] = ["/usr/local/bin/runsc", "/usr/bin/runsc"];
/// How many digits name a day.
const DAY_DIGITS: usize = 8;
/// The words it is tried with: it starts itself inside itself.
const TRIAL: [&str; 2] = ["/runsc", "--version"];

/// A runsc that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runsc {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, as it says.
    pub version: String,
}

/// Why there is no runsc to use. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Nobody installed it.
    #[error("gVisor is not installed: run `scripts/runsc` (a release of {VERSION_MIN} or newer)")]
    NotInstalled,
    /// The one that was named cannot be run.
    #[error("{} cannot be run: {source}", program.display())]
    Broken {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is older than what works.
    #[error("{} is of {version}, and a release of {VERSION_MIN} or newer is needed: run `scripts/runsc`", program.display())]
    TooOld {
        /// Which.
        program: PathBuf,
        /// What it says.
        version: String,
    },
    /// It is there and runs nothing on this machine.
    #[error("{} runs nothing here: {said}", program.display())]
    Machine {
        /// Which.
        program: PathBuf,
        /// Its own words.
        said: String,
    },
}

impl Runsc {
    /// The runsc to use: the one named, else the one that was installed for Tramontane, else the system's. Takes some
    /// tens of milliseconds, since it is asked for its version.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(named: Option<&Path>) -> Result<Self, Missing> {
        let places = [INSTALLED].into_iter().chain(SYSTEM);
        installed::find(named, places, Self::examine, Missing::NotInstalled)
    }

    fn examine(program: &Path) -> Result<Self, Missing> {
        let broken = |source| Missing::Broken {
            program: program.to_owned(),
            source,
        };
        // It is shown to instances by this name, and a symlink would be followed elsewhere.
        let program = std::fs::canonicalize(program).map_err(broken)?;
        let text = installed::said_version(&program).map_err(broken)?;
        let Some(version) = version(&text) else {
            return Err(broken(io::Error::other("it does not say its version")));
        };
        let version = version.to_owned();
        if day(&version).is_none_or(|day| day < VERSION_MIN) {
            return Err(Missing::TooOld { program, version });
        }
        Ok(Self { program, version })
    }

    /// Runs something in it: runsc itself, whose version it then says. Takes some tenths of a second, and root.
    ///
    /// # Errors
    /// What went wrong.
    pub fn check(&self) -> Result<(), Missing> {
        let broken = |source| Missing::Broken {
            program: self.program.clone(),
            source,
        };
        let directory = std::env::temp_dir().join(format!("tram-runsc-{}", uuid::Uuid::new_v4()));
        let tried = self.try_in(&directory).map_err(broken);
        let removed = std::fs::remove_dir_all(&directory).map_err(broken);
        let said = tried?;
        removed?;
        if said.status.success() && version(&String::from_utf8_lossy(&said.stdout)).is_some() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&said.stderr);
        Err(Missing::Machine {
            program: self.program.clone(),
            said: text.trim().lines().last().unwrap_or("it says nothing").to_owned(),
        })
    }

    fn try_in(&self, directory: &Path) -> io::Result<std::process::Output> {
        let root = directory.join("root");
        std::fs::create_dir_all(&root)?;
        // A copy, because the temporary directory may be on another file system than the program.
        std::fs::copy(&self.program, root.join("runsc"))?;
        let bundle = config::trial(&root, &TRIAL);
        std::fs::write(directory.join("config.json"), bundle.to_string())?;
        // Without a network: what that takes is arranged for every instance.
        Command::new(&self.program)
            .arg("--root")
            .arg(directory.join("state"))
            .args([
                "--platform=systrap",
                "--network=none",
                "--ignore-cgroups=true",
                "--overlay2=none",
            ])
            .args(["run", "--bundle"])
            .arg(directory)
            .arg("trial")
            .stdin(Stdio::null())
            .output()
    }
}

/// `release-20240729.0` of `runsc version release-20240729.0`.
fn version(text: &str) -> Option<&str> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("runsc version "))?;
    Some(line.trim())
}

/// The day in a version: eight digits after something that is none.
fn day(version: &str) -> Option<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| digits.len() == DAY_DIGITS)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_of_a_release_is_found_however_it_is_packaged() {
        assert_eq!(
            version("runsc version release-20250505.0\nspec: 1.1.0"),
            Some("release-20250505.0")
        );
        assert_eq!(day("release-20250505.0"), Some(20_250_505));
        assert_eq!(day("0.0~20240729.0"), Some(20_240_729));
        assert_eq!(day("VERSION_MISSING"), None);
    }

    #[test]
    fn a_program_that_is_no_runsc_is_not_taken() {
        let found = Runsc::find(Some(Path::new("/bin/true")));
        assert!(matches!(found, Err(Missing::Broken { .. })), "{found:?}");
    }
}
