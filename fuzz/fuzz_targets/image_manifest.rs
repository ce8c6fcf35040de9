//! Manifests, indexes and configurations of images, as a registry sends them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tram_image::manifest::{self, ACCEPTED};

fuzz_target!(|data: &[u8]| {
    let _as_is = manifest::parse_manifest(data, None);
    let _as_artifact = manifest::parse_artifact(data, None);
    for content_type in ACCEPTED {
        let _typed = manifest::parse_manifest(data, Some(content_type));
    }
    let _config = manifest::parse_config(data);
});
