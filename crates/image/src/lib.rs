//! OCI images: reference, pull, keep, unpack, collect.
//!
//! An image name goes in, a list of directories fit as overlayfs lower directories comes out, with the
//! configuration of the image beside it. The crate owns one directory on disk and knows nothing of
//! services, instances or the API. Its callers are the local site (launch) and the API server
//! (`docker-helper/verify`, `tram images`); [`artifact`] serves `tram models pull`, without a store.
//!
//! ```no_run
//! use tram_image::{ImageStore, Progress, PullPolicy, PullRequest, Settings};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = ImageStore::open("/var/lib/tramontane/images", Settings::default())?;
//! let request = PullRequest::new("nginx:1.29".parse()?).policy(PullPolicy::IfNotPresent);
//! let (progress, _watcher) = Progress::channel();
//! let image = store.ensure(&request, &progress).await?;
//! println!("{} has {} layers", image.reference, image.layers.len());
//! # Ok(())
//! # }
//! ```
//!
//! # The wire
//! The pull speaks the distribution protocol on `reqwest` directly, with its own small types for manifests,
//! instead of `oci-client` and `oci-spec`: a pull here continues a cut-off layer from the bytes on disk, tries
//! mirrors as containerd's host files order them, and bounds every body and every wait, and none of these can
//! be put under that client from outside. The manifest types read only what a pull needs and refuse documents
//! that could be read in two ways.
//!
//! # What the caller can rely on
//! - Every byte that reaches an instance was checked against a digest: manifest, configuration, compressed
//!   layer, and the layer's uncompressed archive (`diff_id`).
//! - A layer directory exists under its final name only after all of it is on disk (see [`store`]).
//! - Unpacking never touches anything outside the layer's directory (see [`unpack`]).
//! - An [`Image`] value keeps its layers from being collected for as long as the value lives.
//! - Every error says whose fault it is, whether trying again can help, and what to do ([`Error`]).

pub mod artifact;
pub mod digest;
pub mod error;
pub mod limits;
pub mod manifest;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod store;
pub mod unpack;
pub mod user;

mod flight;
mod floor;

pub use artifact::{Artifact, Artifacts};
pub use digest::Digest;
pub use error::{Error, Fault};
pub use limits::{Limits, Timeouts};
pub use manifest::{ArtifactLayer, ExposedPort, ImageConfig, Platform};
pub use progress::{BlobProgress, Phase, Progress, ProgressSender};
pub use reference::{Aliases, Reference};
pub use registry::{Credentials, RegistryConfig};
pub use store::{
    CollectPolicy, CollectReport, Freshness, Image, ImageStore, ImageSummary, Imported, Origin, PullPolicy,
    PullRequest, Settings, Verification, VerifyCode,
};
pub use user::{ResolvedUser, resolve_user};
