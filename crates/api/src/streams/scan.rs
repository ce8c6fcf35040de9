//! Reading kept logs of several instances as one, page by page, in either direction.
//!
//! The contract pages by time: the next page begins where this one ends. Lines of one moment must therefore never
//! be cut apart, or a client would lose some. A page ends at the end of a moment, so it may hold a few lines more or
//! fewer than asked for.

use tram_site::{LogCursor, LogEntry, LogQuery, Site};
use tram_store::record::Instance;
use tram_types::Timestamp;

use super::select::Selection;
use crate::{error::Error, query::Order, state::ApiState};

/// Lines read at once from one instance when lines are filtered.
const CHUNK_LINES: usize = 2_000;
/// Lines that one request looks at in one instance: a filter that matches nothing must come to an end.
const SCANNED_LINES_MAX: usize = 100_000;

/// What to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// From here, included.
    pub(super) start: Timestamp,
    /// To here, excluded.
    pub(super) end: Timestamp,
    pub(super) order: Order,
    pub(super) limit: usize,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// In the order asked for.
    pub(super) lines: Vec<(usize, LogEntry)>,
    /// The window of the next page, when there may be more.
    pub(super) next: Option<(Timestamp, Timestamp)>,
}

/// Lines of one instance.
struct Read {
    lines: Vec<LogEntry>,
    /// Where the reading was cut off: lines beyond are not known.
    known_to: Option<Timestamp>,
}

/// Reads a page. Each line comes with the index of its instance.
pub(super) async fn page(
    api: &ApiState,
    instances: &[Instance],
    selection: &Selection,
    window: Window,
) -> Result<Scanned, Error> {
    let mut lines = Vec::new();
    let mut known_to: Option<Timestamp> = None;
    for (index, instance) in instances.iter().enumerate() {
        let Some(site) = api.sites.for_region(&instance.region) else {
            continue;
        };
        let read = match window.order {
            Order::Descending => backwards(site.as_ref(), instance, selection, window).await?,
            Order::Ascending => forwards(site.as_ref(), instance, selection, window).await?,
        };
        known_to = match (known_to, read.known_to, window.order) {
            (known, None, _) => known,
            (None, cut, _) => cut,
            (Some(known), Some(cut), Order::Descending) => Some(known.max(cut)),
            (Some(known), Some(cut), Order::Ascending) => Some(known.min(cut)),
        };
        lines.extend(read.lines.into_iter().map(|line| (index, line)));
    }
    Ok(arrange(lines, known_to, window))
}

/// Sorts, and cuts at the end of a moment.
fn arrange(mut lines: Vec<(usize, LogEntry)>, known_to: Option<Timestamp>, window: Window) -> Scanned {
    lines.sort_by(|(one, a), (two, b)| (a.at, one, a.cursor).cmp(&(b.at, two, b.cursor)));
    match window.order {
        Order::Descending => {
            lines.reverse();
            lines.retain(|(_, line)| known_to.is_none_or(|known| line.at >= known));
        }
        Order::Ascending => lines.retain(|(_, line)| known_to.is_none_or(|known| line.at < known)),
    }
    let mut cut = None;
    if let Some((_, last)) = lines.get(window.limit.saturating_sub(1)) {
        let moment = last.at;
        let end = lines
            .iter()
            .position(|(_, line)| match window.order {
                Order::Descending => line.at < moment,
                Order::Ascending => line.at > moment,
            })
            .unwrap_or(lines.len());
        if end < lines.len() {
            lines.truncate(end);
            cut = Some(match window.order {
                Order::Descending => moment,
                Order::Ascending => after(moment),
            });
        }
    }
    let next = cut.or(known_to).map(|bound| match window.order {
        Order::Descending => (window.start, bound),
        Order::Ascending => (bound, window.end),
    });
    Scanned { lines, next }
}

/// The moment after this one.
pub(super) fn after(moment: Timestamp) -> Timestamp {
    Timestamp::from_micros(moment.as_micros().saturating_add(1))
}

/// How many lines to read at first.
fn first_chunk(selection: &Selection, window: Window) -> usize {
    match selection.matcher {
        super::select::Matcher::All => window.limit.saturating_add(1),
        _ => CHUNK_LINES,
    }
}

/// The newest lines first.
async fn backwards(
    site: &dyn Site,
    instance: &Instance,
    selection: &Selection,
    window: Window,
) -> Result<Read, Error> {
    let mut lines: Vec<LogEntry> = Vec::new();
    let mut oldest: Option<(Timestamp, LogCursor)> = None;
    let mut chunk = first_chunk(selection, window);
    let mut scanned = 0;
    loop {
        let query = LogQuery {
            after: None,
            start: Some(window.start),
            // The moment of the oldest line again, of which some lines may still be missing.
            end: Some(oldest.map_or(window.end, |(at, _)| after(at))),
            streams: selection.streams.clone(),
            limit: chunk,
            newest: true,
        };
        let page = site.logs(instance.id, &query).await.map_err(unreadable)?;
        let fresh: Vec<LogEntry> = page
            .entries
            .into_iter()
            .filter(|line| oldest.is_none_or(|(_, cursor)| line.cursor < cursor))
            .collect();
        scanned += fresh.len();
        let progressed = fresh.first().map(|line| (line.at, line.cursor));
        lines.extend(
            fresh
                .into_iter()
                .filter(|line| selection.matcher.matches(&line.message)),
        );
        if !page.has_more {
            return Ok(Read {
                lines,
                known_to: None,
            });
        }
        match progressed {
            Some(reached) => oldest = Some(reached),
            // A moment with more lines than were asked for.
            None => chunk = chunk.saturating_mul(2),
        }
        let Some((at, _)) = oldest else {
            return Ok(Read {
                lines,
                known_to: None,
            });
        };
        let complete = lines.iter().filter(|line| line.at > at).count();
        if complete >= window.limit || scanned >= SCANNED_LINES_MAX || chunk > SCANNED_LINES_MAX {
            return Ok(Read {
                lines,
                known_to: Some(after(at)),
            });
        }
        chunk = chunk.max(CHUNK_LINES);
    }
}

/// The oldest lines first.
async fn forwards(
    site: &dyn Site,
    instance: &Instance,
    selection: &Selection,
    window: Window,
) -> Result<Read, Error> {
    let mut lines: Vec<LogEntry> = Vec::new();
    let mut cursor = None;
    let mut chunk = first_chunk(selection, window);
    let mut scanned = 0;
    loop {
        let query = LogQuery {
            after: cursor,
            start: Some(window.start),
            end: Some(window.end),
            streams: selection.streams.clone(),
            limit: chunk,
            newest: false,
        };
        let page = site.logs(instance.id, &query).await.map_err(unreadable)?;
        scanned += page.entries.len();
        let newest = page.entries.last().map(|line| (line.at, line.cursor));
        lines.extend(
            page.entries
                .into_iter()
                .filter(|line| selection.matcher.matches(&line.message)),
        );
        let (true, Some((at, reached))) = (page.has_more, newest) else {
            return Ok(Read {
                lines,
                known_to: None,
            });
        };
        cursor = Some(reached);
        let complete = lines.iter().filter(|line| line.at < at).count();
        if complete >= window.limit || scanned >= SCANNED_LINES_MAX {
            return Ok(Read {
                lines,
                known_to: Some(at),
            });
        }
        chunk = CHUNK_LINES;
    }
}

pub(super) fn unreadable(error: tram_site::Error) -> Error {
    Error::Unavailable {
        message: "the logs cannot be read now: try again".to_owned(),
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use tram_site::LogStream;
    use tram_types::InstanceId;

    use super::*;

    fn line(micros: i64, cursor: u64) -> (usize, LogEntry) {
        let entry = LogEntry {
            instance: InstanceId::random(),
            at: Timestamp::from_micros(micros),
            stream: LogStream::Stdout,
            message: String::new(),
            cursor: LogCursor(cursor),
        };
        (0, entry)
    }

    fn window(order: Order, limit: usize) -> Window {
        Window {
            start: Timestamp::EPOCH,
            end: Timestamp::from_micros(100),
            order,
            limit,
        }
    }

    #[test]
    fn a_moment_is_never_cut_apart() {
        let lines = vec![line(1, 1), line(2, 2), line(2, 3), line(3, 4)];
        let newest = arrange(lines.clone(), None, window(Order::Descending, 2));
        assert_eq!(
            newest
                .lines
                .iter()
                .map(|(_, line)| line.cursor.0)
                .collect::<Vec<_>>(),
            [4, 3, 2]
        );
        assert_eq!(newest.next, Some((Timestamp::EPOCH, Timestamp::from_micros(2))));
        let oldest = arrange(lines, None, window(Order::Ascending, 2));
        assert_eq!(
            oldest
                .lines
                .iter()
                .map(|(_, line)| line.cursor.0)
                .collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(
            oldest.next,
            Some((Timestamp::from_micros(3), Timestamp::from_micros(100)))
        );
    }

    #[test]
    fn lines_beyond_what_is_known_of_all_instances_wait() {
        let lines = vec![line(1, 1), line(5, 2)];
        let page = arrange(
            lines,
            Some(Timestamp::from_micros(4)),
            window(Order::Descending, 10),
        );
        assert_eq!(page.lines.len(), 1);
        assert_eq!(page.next, Some((Timestamp::EPOCH, Timestamp::from_micros(4))));
    }

    #[test]
    fn the_last_page_has_no_next() {
        assert_eq!(
            arrange(vec![line(1, 1)], None, window(Order::Descending, 1)).next,
            None
        );
    }
}
