//! The local site with the real parts: kernel, supervisor, registry, programs.
//!
//! Needs root, `nft`, `busybox` (static), `skopeo` and `docker-registry`; fails where one is missing, unless TRAM_TESTS_MAY_SKIP is set.
//! Each test has its own state directory, network and processes, and checks that nothing of them is left.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail like tests"
)]

mod disk;
mod images;
mod life;
mod mesh;
mod restart;
mod support;
