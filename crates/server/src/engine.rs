//! The server of models (`tram-engine`), which this binary carries: what runs in the instances of a model.
//!
//! A static program: an image that holds nothing else can run it. It is compiled for the CPU of the machine that built
//! `tram` (docs/decisions/2026-11-26-the-engine-is-a-workspace-of-its-own.md).

/// The program, as build.rs made it; none in a `tram` that was built without the feature `engine`.
#[cfg(feature = "engine")]
pub const PROGRAM: Option<&[u8]> = Some(include_bytes!(env!("TRAM_ENGINE")));
/// The program, as build.rs made it; none in a `tram` that was built without the feature `engine`.
#[cfg(not(feature = "engine"))]
pub const PROGRAM: Option<&[u8]> = None;

#[cfg(all(test, feature = "engine"))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_runs_with_nothing_around_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("tram-engine");
        std::fs::write(&path, PROGRAM.unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).unwrap();
        let mut engine = std::process::Command::new(&path);
        let output = engine
            .args(["serve", "--model", "/none"])
            .env_clear()
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "it looks for the model");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot read the model file `/none`"), "{said}");
    }
}
