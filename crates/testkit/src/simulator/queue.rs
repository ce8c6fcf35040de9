//! What happens next: events by time, and those of one instant in the order in which they were planned.

use std::{cmp::Reverse, collections::BinaryHeap};

use tram_types::Timestamp;

/// Events to come.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    planned: u64,
    now: Timestamp,
}

#[derive(Debug)]
struct Entry<E> {
    at: Timestamp,
    sequence: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<E> Queue<E> {
    /// An empty one; its clock stands at `start`.
    #[must_use]
    pub const fn new(start: Timestamp) -> Self {
        Self {
            heap: BinaryHeap::new(),
            planned: 0,
            now: start,
        }
    }

    /// The instant of the event that was taken last.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// Plans an event; one for the past happens now, after what is planned for now already.
    pub fn plan(&mut self, at: Timestamp, event: E) {
        let entry = Entry {
            at: at.max(self.now),
            sequence: self.planned,
            event,
        };
        self.planned += 1;
        self.heap.push(Reverse(entry));
    }

    /// Takes the next event and moves the clock to it; `None` when nothing more will happen.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_planned() {
        let at = Timestamp::from_micros;
        let mut queue = Queue::new(at(0));
        queue.plan(at(5), 'b');
        queue.plan(at(1), 'a');
        queue.plan(at(5), 'c');
        assert_eq!(queue.pop(), Some('a'));
        assert_eq!(queue.now(), at(1));
        assert_eq!(queue.pop(), Some('b'));
        queue.plan(at(2), 'd');
        assert_eq!(queue.pop(), Some('c'), "what is late comes after what was due");
        assert_eq!(queue.pop(), Some('d'));
        assert_eq!((queue.pop(), queue.now()), (None, at(5)), "time never goes back");
    }
}
