//! The suites: every case runs on both databases.
