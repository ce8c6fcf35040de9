//! Reading on as records arrive.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;

use super::{Cursor, Error, Record, format, reader};
use crate::sys;

/// One read of a segment. A follower that lags reads piece by piece.
const READ_BYTES: u64 = 256 << 10;

/// Gives every record after a cursor, once, as it is written.
///
/// Its descriptor ([`AsFd`]) becomes readable when something was written: then call
/// [`Follower::next_batch`] until it gives nothing.
#[derive(Debug)]
pub struct Follower {
    dir: PathBuf,
    notify: OwnedFd,
    after: Option<Cursor>,
    /// The segment being read: its first record, and the file, positioned behind the last whole line.
    segment: Option<(u64, File)>,
}

impl Follower {
    /// `None` begins with the oldest record that is kept. A cursor whose segment has been removed
    /// begins there too.
    pub fn new(dir: impl AsRef<Path>, after: Option<Cursor>) -> Result<Self, Error> {
        let dir = dir.as_ref();
        let watch = || {
            let notify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let changes =
                inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE_SELF;
            inotify::add_watch(&notify, dir, changes)?;
            Ok::<_, rustix::io::Errno>(notify)
        };
        let notify = watch().map_err(|errno| Error::new("follow", dir, errno.into()))?;
        Ok(Self {
            dir: dir.to_owned(),
            notify,
            after,
            segment: None,
        })
    }

    /// Behind the last record given.
    pub fn cursor(&self) -> Option<Cursor> {
        self.after
    }

    /// What is there now; empty when there is nothing new. Does not wait. When the directory was
    /// removed it says so with an error.
    pub fn next_batch(&mut self) -> Result<Vec<Record>, Error> {
        self.forget_notices();
        self.try_batch()
            .map_err(|source| Error::new("follow", &self.dir, source))
    }

    /// Wait until something was written, or the time is over. May return early.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        sys::wait_readable(&self.notify, timeout).map_err(|source| Error::new("follow", &self.dir, source))
    }

    fn try_batch(&mut self) -> io::Result<Vec<Record>> {
        loop {
            let Some((first, file)) = &mut self.segment else {
                match self.pick_segment(None)? {
                    Some(picked) => self.segment = Some(picked),
                    None => return Ok(Vec::new()),
                }
                continue;
            };
            let first = *first;
            let start = file.stream_position()?;
            let mut content = Vec::new();
            file.by_ref().take(READ_BYTES).read_to_end(&mut content)?;
            let whole = content
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            file.seek(SeekFrom::Start(start + whole as u64))?;
            let lines = content
                .get(..whole)
                .unwrap_or_default()
                .split(|byte| *byte == b'\n')
                .filter_map(format::decode);
            let records: Vec<Record> = lines
                .filter(|record| self.after.is_none_or(|after| record.cursor > after))
                .collect();
            if let Some(last) = records.last() {
                self.after = Some(last.cursor);
                return Ok(records);
            }
            if whole > 0 {
                continue;
            }
            // Nothing more in this segment: the next one, if it has begun.
            match self.pick_segment(Some(first))? {
                Some(picked) => self.segment = Some(picked),
                None => return Ok(Vec::new()),
            }
        }
    }

    /// The segment after `current`, or the one that holds what comes after the cursor.
    fn pick_segment(&self, current: Option<u64>) -> io::Result<Option<(u64, File)>> {
        let segments = reader::segments(&self.dir)?;
        let wanted = match current {
            Some(current) => segments.into_iter().find(|first| *first > current),
            None => {
                let next = self.after.map_or(0, |Cursor(after)| after.saturating_add(1));
                let holding = segments.iter().rposition(|first| *first <= next).unwrap_or(0);
                segments.get(holding).copied()
            }
        };
        let Some(first) = wanted else { return Ok(None) };
        match File::open(self.dir.join(format::segment_name(first))) {
            Ok(file) => Ok(Some((first, file))),
            // Removed since it was listed; its successor is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget_notices(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while let Ok((read, _)) = rustix::io::read(&self.notify, &mut buffer)
            && !read.is_empty()
        {}
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}
