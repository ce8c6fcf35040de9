//! What an address space still lacks. Plain values.

use std::collections::BTreeMap;
use std::ops::Range;

/// Pages that follow one another in memory and in the file. All in bytes, and in whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// Where its contents begin in the file.
    pub(super) at: u64,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// The first `bytes` of it, and the others.
    pub(super) fn split(self, bytes: u64) -> (Self, Self) {
        let first = Self { bytes, ..self };
        let rest = Self {
            start: self.start + bytes,
            bytes: self.bytes - bytes,
            at: self.at + bytes,
        };
        (first, rest)
    }

    /// What of it lies in the range.
    fn within(self, range: &Range<u64>) -> Option<Self> {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Self {
            start,
            bytes: end - start,
            at: self.at + (start - self.start),
        })
    }
}

/// The pages of one address space that are in the file and not yet in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing {
    /// By their start; none overlaps another.
    pieces: BTreeMap<u64, Piece>,
}

impl Missing {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Adds a piece. What is there already at its addresses must have been taken before.
    pub(super) fn put(&mut self, piece: Piece) {
        if piece.bytes > 0 {
            self.pieces.insert(piece.start, piece);
        }
    }

    /// Takes the pages around this address: as many as follow one another and lie within the window.
    pub(super) fn take(&mut self, address: u64, window: &Range<u64>) -> Option<Piece> {
        let (_, &piece) = self.pieces.range(..=address).next_back()?;
        if address >= piece.end() {
            return None;
        }
        let taken = piece.within(window)?;
        self.cut(piece, &taken);
        Some(taken)
    }

    /// Takes the first pages at or after this address, else the very first: at most so many bytes.
    pub(super) fn next(&mut self, from: u64, bytes_max: u64) -> Option<Piece> {
        let after = self.pieces.range(from..).next();
        let (_, &piece) = after.or_else(|| self.pieces.first_key_value())?;
        let taken = piece.within(&(piece.start..piece.start + bytes_max))?;
        self.cut(piece, &taken);
        Some(taken)
    }

    /// The address space has no use for these any more.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        self.take_all(range);
    }

    /// Takes all that lies in the range.
    pub(super) fn take_all(&mut self, range: &Range<u64>) -> Vec<Piece> {
        let mut taken = Vec::new();
        while let Some(piece) = self.first_in(range) {
            let Some(part) = piece.within(range) else { break };
            self.cut(piece, &part);
            taken.push(part);
        }
        taken
    }

    /// The pages at `from` are at `to` now; what was missing there was overwritten.
    pub(super) fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let (source, target) = (from..from.saturating_add(bytes), to..to.saturating_add(bytes));
        let moving = self.take_all(&source);
        self.forget(&target);
        for part in moving {
            self.put(Piece {
                start: part.start - from + to,
                ..part
            });
        }
    }

    /// The first piece that lies in the range, if only in part.
    fn first_in(&self, range: &Range<u64>) -> Option<Piece> {
        let before = self.pieces.range(..range.start).next_back();
        let across = before.filter(|(_, piece)| piece.end() > range.start);
        let found = across.or_else(|| self.pieces.range(range.start..range.end).next())?;
        Some(*found.1)
    }

    /// Removes a part of a piece that is there.
    fn cut(&mut self, piece: Piece, part: &Piece) {
        self.pieces.remove(&piece.start);
        let (before, rest) = piece.split(part.start - piece.start);
        let (_, after) = rest.split(part.bytes);
        self.put(before);
        self.put(after);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = super::super::PAGE_BYTES;

    /// Page by page: where its contents are.
    fn pages(missing: &Missing) -> BTreeMap<u64, u64> {
        let of = |piece: &Piece| {
            let piece = *piece;
            (0..piece.bytes / PAGE).map(move |n| (piece.start + n * PAGE, piece.at + n * PAGE))
        };
        missing.pieces.values().flat_map(of).collect()
    }

    fn piece_pages(piece: Piece) -> BTreeMap<u64, u64> {
        let mut one = Missing::default();
        one.put(piece);
        pages(&one)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u64),
        Next(u64, u64),
        Forget(u64, u64),
        Move(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let page = 0..64_u64;
        prop_oneof![
            page.clone().prop_map(Step::Take),
            (page.clone(), 1..5_u64).prop_map(|(from, most)| Step::Next(from, most)),
            (page.clone(), 1..20_u64).prop_map(|(from, count)| Step::Forget(from, count)),
            // Never onto itself: the kernel refuses that.
            (0..32_u64, 32..64_u64, 1..16_u64)
                .prop_map(|(from, to, count)| { Step::Move(from, to, count.min(to - from)) }),
        ]
    }

    proptest! {
        /// Whatever happens, it is what a plain table of pages is, and nothing is handed out twice.
        #[test]
        fn it_is_a_table_of_pages(
            holes in proptest::collection::vec((1..6_u64, 0..4_u64), 1..12),
            steps in proptest::collection::vec(step(), 0..40),
        ) {
            let mut missing = Missing::default();
            let (mut start, mut at) = (0, 0);
            for (count, hole) in holes {
                missing.put(Piece { start, bytes: count * PAGE, at });
                start += (count + hole) * PAGE;
                at += count * PAGE;
            }
            let mut model = pages(&missing);
            for step in steps {
                match step {
                    Step::Take(page) => {
                        let address = page * PAGE + 17;
                        let window = (page & !15) * PAGE..((page & !15) + 16) * PAGE;
                        match missing.take(address, &window) {
                            Some(piece) => {
                                prop_assert!(piece.start <= address && address < piece.end());
                                prop_assert!(piece.start >= window.start && piece.end() <= window.end);
                                for (page, at) in piece_pages(piece) {
                                    prop_assert_eq!(model.remove(&page), Some(at));
                                }
                            }
                            None => prop_assert!(!model.contains_key(&(page * PAGE))),
                        }
                    }
                    Step::Next(from, most) => match missing.next(from * PAGE, most * PAGE) {
                        Some(piece) => {
                            prop_assert!(piece.bytes <= most * PAGE);
                            for (page, at) in piece_pages(piece) {
                                prop_assert_eq!(model.remove(&page), Some(at));
                            }
                        }
                        None => prop_assert!(model.is_empty()),
                    },
                    Step::Forget(from, count) => {
                        let range = from * PAGE..(from + count) * PAGE;
                        missing.forget(&range);
                        model.retain(|page, _| !range.contains(page));
                    }
                    Step::Move(from, to, count) => {
                        missing.moved(from * PAGE, to * PAGE, count * PAGE);
                        let source = from * PAGE..(from + count) * PAGE;
                        let moving: Vec<_> = model.range(source.clone()).map(|(page, at)| (*page, *at)).collect();
                        let target = to * PAGE..(to + count) * PAGE;
                        model.retain(|page, _| !source.contains(page) && !target.contains(page));
                        for (page, at) in moving {
                            model.insert(page - from * PAGE + to * PAGE, at);
                        }
                    }
                }
                prop_assert_eq!(pages(&missing), model.clone());
                prop_assert_eq!(missing.is_empty(), model.is_empty());
            }
        }
    }
}
