//! From a layer's blob to its directory: once, whole, durable.

use std::fs::{self, File};
use std::sync::Arc;

use futures_util::FutureExt;

use super::Inner;
use super::download::{Place, download};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Descriptor;
use crate::registry::Source;
use crate::unpack::{self, Budget, LayerReport, UnpackError};

/// Another image may name the same blob with another (wrong) diff id, and its failed unpacking takes the blob
/// away under our hands. Such images do not come in numbers.
const MAX_VANISHED: u32 = 4;

/// Where a layer's blob comes from if it is not here.
pub(super) type MaybeSource = Option<Arc<Source>>;

/// Makes one layer ready: finds it, or fetches and unpacks it. `on_bytes` sees bytes of the blob on disk.
pub(super) async fn ensure_layer(
    inner: &Arc<Inner>,
    source: MaybeSource,
    descriptor: Descriptor,
    diff_id: Digest,
    budget: Budget,
    on_bytes: impl FnMut(u64),
) -> Result<Arc<LayerReport>, Error> {
    if let Some(report) = inner.layout.layer(&diff_id, &descriptor.digest)? {
        charge(&budget, &report, &descriptor)?;
        return Ok(Arc::new(report));
    }
    inner
        .unpacks
        .run((diff_id, descriptor.digest), on_bytes, |bytes_done| {
            let (inner, source, descriptor) = (Arc::clone(inner), source.clone(), descriptor.clone());
            let budget = budget.clone();
            async move {
                for _ in 0..MAX_VANISHED {
                    if let Some(source) = &source {
                        let on_bytes = |bytes| {
                            bytes_done.send_replace(bytes);
                        };
                        let fetch = |bytes_done| {
                            let place = Place {
                                blob: inner.layout.blob_path(&descriptor.digest),
                                partial: inner.layout.partial_path(&descriptor.digest),
                                floor: Arc::clone(&inner.floor),
                            };
                            download(place, Arc::clone(source), descriptor.clone(), bytes_done).boxed()
                        };
                        inner.downloads.run(descriptor.digest, on_bytes, fetch).await?;
                    }
                    bytes_done.send_replace(descriptor.size);
                    if let Some(report) = unpack(&inner, &descriptor, diff_id, &budget).await? {
                        return Ok(Arc::new(report));
                    }
                }
                Err(Error::io(
                    "finding the fetched layer",
                    &inner.layout.blob_path(&descriptor.digest),
                    std::io::Error::from(std::io::ErrorKind::NotFound),
                ))
            }
            .boxed()
        })
        .await
}

/// A layer that is here already counts like one that arrives.
fn charge(budget: &Budget, report: &LayerReport, descriptor: &Descriptor) -> Result<(), Error> {
    budget
        .take_bytes(report.archive_bytes)
        .and_then(|()| budget.take_entries(report.entries))
        .map_err(|source| Error::Layer {
            layer: descriptor.digest,
            source,
        })
}

/// `None` when the blob is no longer there.
async fn unpack(
    inner: &Arc<Inner>,
    descriptor: &Descriptor,
    diff_id: Digest,
    budget: &Budget,
) -> Result<Option<LayerReport>, Error> {
    let permit = Arc::clone(&inner.unpack_permits)
        .acquire_owned()
        .await
        .map_err(|_| Error::Layer {
            layer: descriptor.digest,
            source: UnpackError::Cancelled,
        })?;
    // Dropped with this future, which is how the thread learns that nobody waits any more.
    let (budget, _cancel) = budget.cancellable();
    let (inner, descriptor) = (Arc::clone(inner), descriptor.clone());
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let path = inner.layout.blob_path(&descriptor.digest);
        let blob = match File::open(&path) {
            Ok(blob) => blob,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("opening", &path, error)),
        };
        let outcome = unpack_blob(&inner, blob, &descriptor, diff_id, &budget);
        // A blob that did not unpack is of no use to a later attempt either.
        let cancelled = matches!(
            &outcome,
            Err(Error::Layer {
                source: UnpackError::Cancelled,
                ..
            })
        );
        if !cancelled && (outcome.is_err() || !inner.settings.keep_layer_blobs) {
            let _ = fs::remove_file(path);
        }
        outcome.map(Some)
    })
    .await?
}

fn unpack_blob(
    inner: &Inner,
    blob: File,
    descriptor: &Descriptor,
    diff_id: Digest,
    budget: &Budget,
) -> Result<LayerReport, Error> {
    let layout = &inner.layout;
    let refused = |source: UnpackError| match source {
        UnpackError::Io { source, .. } if is_full(&source) => Error::DiskFull {
            path: layout.directory("layers"),
            source,
        },
        source => Error::Layer {
            layer: descriptor.digest,
            source,
        },
    };
    let directory = layout.temporary_directory()?;
    let report = unpack::unpack_layer(blob, directory.path(), budget).map_err(refused)?;
    if report.diff_id != diff_id {
        return Err(refused(UnpackError::DiffId {
            expected: diff_id,
            actual: report.diff_id,
        }));
    }
    if report.skipped_devices > 0 {
        tracing::warn!(layer = %descriptor.digest, count = report.skipped_devices, "device nodes of an image layer were left out");
    }
    // The report first: a layer without one is cleared at the next start, and so is a report without a layer.
    layout.write_layer_report(&report, &descriptor.digest)?;
    directory.keep_as(&layout.layer_path(&diff_id))?;
    Ok(report)
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}
