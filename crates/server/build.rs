//! Builds what `tram` carries within itself, since one binary is the whole cloud: the executor of sandboxes
//! (crates/executor) and, with the feature `engine`, the server of models (crates/engine).
//!
//! The executor has to run in images that have nothing, so it is linked statically, and small, so it has a profile of its own.
//! Cargo cannot say either of a dependency. So cargo is run again, with a target directory of its own below this
//! script's: it waits for no lock of the outer one, and the flags of the outer build do not reach it. What it needs was
//! fetched for the outer build already.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of the outer build that would change the executor, or that name a wrapper meant for the workspace alone
/// (clippy is one).
const NOT_INHERITED: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CLIPPY_ARGS",
];
/// The profile in the workspace's Cargo.toml.
const PROFILE: &str = "executor";
/// No library of the image is needed.
const STATIC: &str = "-C\u{1f}target-feature=+crt-static";

fn main() -> Result<(), String> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../..");
    if std::env::var_os("CARGO_FEATURE_ENGINE").is_some() {
        build_engine(&workspace)?;
    }
    build_executor(&workspace)
}

fn build_executor(workspace: &Path) -> Result<(), String> {
    for input in [
        "crates/executor/src",
        "crates/executor/Cargo.toml",
        "crates/transfer/src",
        "crates/transfer/Cargo.toml",
        "Cargo.lock",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let (out, target) = (PathBuf::from(variable("OUT_DIR")?), variable("TARGET")?);
    let directory = out.join("executor");
    let mut cargo = Command::new(variable("CARGO")?);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    let output = cargo
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "--package",
            "tram-executor",
            "--profile",
            PROFILE,
        ])
        .args(["--target", &target, "--target-dir"])
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", STATIC)
        .output()
        .map_err(|error| format!("cannot run cargo for the executor: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cannot build the executor (a static C library is needed: `libc6-dev` on Debian, `glibc-static` on \
             Fedora):\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let built = directory.join(&target).join(PROFILE).join("tram-executor");
    println!("cargo::rustc-env=TRAM_EXECUTOR={}", built.display());
    Ok(())
}

/// The engine is a workspace of its own, whose configuration says how it is built. Its target directory is one for all
/// profiles of the outer build: llama.cpp's kernels take minutes to compile.
fn build_engine(workspace: &Path) -> Result<(), String> {
    let engine = workspace.join("crates/engine");
    for input in ["src", "Cargo.toml", "Cargo.lock", ".cargo"] {
        println!("cargo::rerun-if-changed={}", engine.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let outer = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    // A relative one counts from where the outer build was begun, which is the workspace.
    let directory = workspace.join(outer).join("engine");
    let mut cargo = Command::new(variable("CARGO")?);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    let output = cargo
        .current_dir(&engine)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &directory)
        .args(["build", "--locked", "--release"])
        .output()
        .map_err(|error| format!("cannot run cargo for the engine: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cannot build the engine (a C++ compiler, cmake and libclang are needed: `g++ cmake libclang-dev` on \
             Debian; build with `--no-default-features` to do without):\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    // The engine's configuration names the host as its target.
    let built = directory.join(variable("HOST")?).join("release/tram-engine");
    // A copy, since the original is shared with every other checkout and may go without this one's being told.
    let copy = PathBuf::from(variable("OUT_DIR")?).join("tram-engine");
    std::fs::copy(&built, &copy).map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    println!("cargo::rustc-env=TRAM_ENGINE={}", copy.display());
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    std::env::var(name).map_err(|error| format!("cargo did not set {name}: {error}"))
}
