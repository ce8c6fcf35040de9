//! This machine as a site.
