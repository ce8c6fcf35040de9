//! From a stream of bytes to lines.

/// A longer line is split into several records: Docker's limit.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Collects the bytes of one stream until a line is whole.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Hands every line that is now whole to `line(continued, text)`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(bool, &str)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            self.extend(head, &mut line);
            self.flush_as(false, &mut line);
        }
        self.extend(bytes, &mut line);
    }

    /// The stream ended: what is left is a line, though nobody ended it.
    pub(crate) fn finish(&mut self, mut line: impl FnMut(bool, &str)) {
        if !self.partial.is_empty() {
            self.flush_as(false, &mut line);
        }
    }

    fn extend(&mut self, mut bytes: &[u8], line: &mut impl FnMut(bool, &str)) {
        while self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            let (head, rest) = bytes.split_at((LINE_BYTES_MAX - self.partial.len()).min(bytes.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            // A character that the limit would cut goes to the next record whole.
            let kept = self.partial.split_off(character_boundary(&self.partial));
            self.flush_as(true, line);
            self.partial = kept;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn flush_as(&mut self, continued: bool, line: &mut impl FnMut(bool, &str)) {
        let bytes = match self.partial.strip_suffix(b"\r") {
            Some(stripped) if !continued => stripped,
            _ => &self.partial,
        };
        line(continued, &String::from_utf8_lossy(bytes));
        self.partial.clear();
    }
}

/// The end of the last whole character: at most three bytes before the end.
fn character_boundary(bytes: &[u8]) -> usize {
    let end = bytes.len();
    for back in 1..=3.min(end) {
        let Some(byte) = bytes.get(end - back) else { break };
        let width = match byte {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            // The middle of a character: look further back.
            0x80..=0xBF => continue,
            _ => return end,
        };
        return if width > back { end - back } else { end };
    }
    end
}
