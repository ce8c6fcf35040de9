//! Network namespaces with a name: made before an instance, wired by somebody else, deleted after it.
//!
//! Called by `site-local`, which puts interfaces into them with rtnetlink. Owns only the namespace and
//! the file that keeps it.
//!
//! The one design choice to know: a thread that has entered another namespace is never used again, so
//! everything here happens on a thread of its own that ends at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::UnmountFlags;

use crate::state::ignore_missing;
use crate::sys;

/// A network namespace could not be made, entered or deleted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the network namespace {}", path.display())]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Error {
    fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Make a namespace with its loopback interface up, and keep it at this path (parents are made). It
/// lives until [`delete`], whatever happens to this process. Fails when the path exists.
pub fn create(path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let make = || {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o400)
            .open(path)?;
        let made = on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            sys::loopback_up()?;
            Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", path)?)
        });
        if made.is_err() {
            // The error above says more than a failure to clean up.
            let _ = fs::remove_file(path);
        }
        made
    };
    make().map_err(|source| Error::new("create", path, source))
}

/// Take the name away; the namespace goes with its last process. Deleting a missing one succeeds, and
/// so does deleting one whose creation was cut in half.
pub fn delete(path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    let remove = || {
        loop {
            match rustix::mount::unmount(path, UnmountFlags::DETACH) {
                // There may be more than one mount on it.
                Ok(()) => {}
                // Not a mount, or nothing there.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        ignore_missing(fs::remove_file(path))
    };
    remove().map_err(|source| Error::new("delete", path, source))
}

/// Run a closure inside the namespace, on a thread of its own, and give back what it returned.
/// Sockets opened inside stay inside, wherever they are used later.
pub fn run_in<T: Send>(path: impl AsRef<Path>, closure: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let path = path.as_ref();
    let enter = || {
        let namespace = File::open(path)?;
        on_new_thread(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(closure())
        })
    };
    enter().map_err(|source| Error::new("enter", path, source))
}

fn on_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => result,
            // The panic is the caller's own; let it go on where it would have.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_namespace_outlives_the_thread_that_made_it_and_goes_when_deleted() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/name");
        create(&path).unwrap();
        assert!(create(&path).is_err());
        let namespace = || fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let inside = run_in(&path, namespace).unwrap();
        assert_eq!(inside, fs::metadata(&path).unwrap().ino());
        assert_ne!(inside, namespace());
        // Its loopback is up, and nothing of ours is there.
        let listener = run_in(&path, || std::net::TcpListener::bind("127.0.0.1:80").unwrap()).unwrap();
        assert!(std::net::TcpStream::connect("127.0.0.1:80").is_err() || listener.local_addr().is_ok());
        delete(&path).unwrap();
        assert!(!path.exists());
        delete(&path).unwrap();
    }
}
