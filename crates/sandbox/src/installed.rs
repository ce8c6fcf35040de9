//! Programs of others that are installed beside the system: CRIU and runsc.
//!
//! Owns the order in which they are looked for. What a version must be, and what is said when there is none, is each
//! program's own.

use std::path::Path;
use std::process::{Command, Stdio};

/// The program that was named, else the first of `places` that is there and will do. When none will, why the first that is
/// there will not, which is the most telling: it was installed for us. `absent`: none is there at all.
pub(crate) fn find<P, E>(
    named: Option<&Path>,
    places: impl IntoIterator<Item = &'static str>,
    examine: impl Fn(&Path) -> Result<P, E>,
    absent: E,
) -> Result<P, E> {
    if let Some(program) = named {
        return examine(program);
    }
    let mut reason = None;
    let places = places.into_iter().map(Path::new);
    for program in places.filter(|program| program.exists()) {
        match examine(program) {
            Ok(found) => return Ok(found),
            Err(why) => reason = reason.or(Some(why)),
        }
    }
    Err(reason.unwrap_or(absent))
}

/// What a program says when it is asked for its version.
pub(crate) fn said_version(program: &Path) -> std::io::Result<String> {
    let said = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_will_do_is_taken_and_else_the_first_reason_told() {
        let examine = |program: &Path| match program.to_str() {
            Some("/bin/sh") => Ok("it"),
            Some(other) => Err(other.to_owned()),
            None => Err(String::new()),
        };
        let found = |places: &[&'static str]| find(None, places.iter().copied(), examine, "none".to_owned());
        assert_eq!(found(&["/nowhere", "/bin", "/bin/sh"]), Ok("it"));
        assert_eq!(found(&["/nowhere", "/bin", "/etc"]), Err("/bin".to_owned()));
        assert_eq!(found(&["/nowhere"]), Err("none".to_owned()));
        let named = find(Some(Path::new("/etc")), ["/bin/sh"], examine, "none".to_owned());
        assert_eq!(
            named,
            Err("/etc".to_owned()),
            "no other in place of the one that was named"
        );
    }
}
