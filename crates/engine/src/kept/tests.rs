use super::*;

const SCOPE: u64 = 7;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file with these sequences, the bytes of each being its number.
    fn keep(&self, identity: &str, sequences: &[Vec<Token>], bytes_max: u64) -> usize {
        let mut making = Making::new(&self.path("beside"), identity.to_owned(), bytes_max).unwrap();
        for (number, tokens) in (0..).zip(sequences) {
            std::fs::write(self.path("one"), vec![number; 3 * CHUNK / 2]).unwrap();
            making.add(SCOPE, tokens, &self.path("one")).unwrap();
        }
        making.put(&self.path("kept")).unwrap()
    }

    fn open(&self, identity: &str) -> Kept {
        Kept::open(&self.path("kept"), identity)
    }
}

fn later() -> Instant {
    Instant::now() + std::time::Duration::from_secs(3600)
}

fn counted(from: Token, count: usize) -> Vec<Token> {
    (from..).take(count).collect()
}

#[test]
fn the_longest_beginning_is_found_and_taken_once() {
    let place = Place::new();
    let sequences = [counted(0, 40), counted(0, 100), counted(500, 64)];
    assert_eq!(place.keep("a", &sequences, u64::MAX), 3);
    let mut kept = place.open("a");
    assert_eq!(kept.find(SCOPE, &counted(0, 90)), Some((1, 80)), "whole blocks");
    assert_eq!(
        kept.find(SCOPE, &counted(0, 96)),
        Some((1, 80)),
        "the last token is computed"
    );
    assert_eq!(kept.find(SCOPE + 1, &counted(0, 90)), None, "of another tenant");
    assert_eq!(kept.find(SCOPE, &counted(500, 8)), None, "less than a block");
    let to = place.path("taken");
    assert_eq!(kept.take(1, &to).unwrap(), sequences[1]);
    assert_eq!(std::fs::read(&to).unwrap(), vec![1; 3 * CHUNK / 2]);
    let again = kept.find(SCOPE, &counted(0, 90)).map(|(_, common)| common);
    assert_eq!(again, Some(32), "the other that begins so");
}

#[test]
fn what_nobody_took_is_kept_for_the_next_time() {
    let place = Place::new();
    place.keep("a", &[counted(0, 40), counted(100, 40)], u64::MAX);
    let mut kept = place.open("a");
    kept.take(0, &place.path("taken")).unwrap();
    let mut making = Making::new(&place.path("beside"), "a".to_owned(), u64::MAX).unwrap();
    std::fs::write(place.path("one"), b"new").unwrap();
    making.add(SCOPE, &counted(0, 48), &place.path("one")).unwrap();
    assert!(making.has(SCOPE, &counted(0, 40)), "as the beginning of another");
    making.add_rest(&kept, later()).unwrap();
    assert_eq!(making.put(&place.path("kept")).unwrap(), 2);
    let mut kept = place.open("a");
    assert!(kept.find(SCOPE, &counted(0, 60)).is_some(), "once");
    let (at, common) = kept.find(SCOPE, &counted(100, 60)).unwrap();
    assert_eq!((common, kept.length(at)), (32, 40));
    kept.take(at, &place.path("taken")).unwrap();
    assert_eq!(
        std::fs::read(place.path("taken")).unwrap(),
        vec![1; 3 * CHUNK / 2]
    );
}

#[test]
fn what_was_taken_and_gave_way_since_is_kept() {
    let place = Place::new();
    place.keep("a", &[counted(0, 40)], u64::MAX);
    let mut kept = place.open("a");
    kept.take(0, &place.path("taken")).unwrap();
    assert_eq!(kept.find(SCOPE, &counted(0, 40)), None);
    let mut making = Making::new(&place.path("beside"), "a".to_owned(), u64::MAX).unwrap();
    making.add_rest(&kept, Instant::now()).unwrap();
    assert!(!making.has(SCOPE, &counted(0, 40)), "the time is over");
    making.add_rest(&kept, later()).unwrap();
    assert_eq!(making.put(&place.path("kept")).unwrap(), 1);
    assert!(place.open("a").find(SCOPE, &counted(0, 40)).is_some());
}

#[test]
fn what_has_no_room_is_left_out() {
    let place = Place::new();
    let sequences = [counted(0, 40), counted(100, 40)];
    assert_eq!(place.keep("a", &sequences, 2 * CHUNK as u64), 1);
    assert!(place.open("a").find(SCOPE, &counted(0, 40)).is_some());
    assert!(place.open("a").find(SCOPE, &counted(100, 40)).is_none());
}

#[test]
fn what_is_not_whole_or_not_ours_counts_for_nothing() {
    let place = Place::new();
    let found = |identity: &str| place.open(identity).find(SCOPE, &counted(0, 40));
    assert_eq!(found("a"), None, "no file");
    place.keep("a", &[counted(0, 40)], u64::MAX);
    assert_eq!(found("b"), None, "another model");
    assert!(found("a").is_some());
    let whole = std::fs::read(place.path("kept")).unwrap();
    for length in [0, 1, 19, 20, CHUNK, whole.len() - 1] {
        std::fs::write(place.path("kept"), &whole[..length]).unwrap();
        assert_eq!(found("a"), None, "{length} of {} bytes", whole.len());
    }
    let mut huge = whole.clone();
    let at = whole.len() - 20;
    huge[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(place.path("kept"), huge).unwrap();
    assert_eq!(found("a"), None, "an index longer than the file");
}

#[test]
fn damage_is_seen_before_it_is_used() {
    let place = Place::new();
    place.keep("a", &[counted(0, 40), counted(100, 40)], u64::MAX);
    let mut damaged = std::fs::read(place.path("kept")).unwrap();
    damaged[CHUNK] ^= 1;
    std::fs::write(place.path("kept"), damaged).unwrap();
    let mut kept = place.open("a");
    let taken = kept.take(0, &place.path("taken")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::InvalidData);
    assert!(kept.find(SCOPE, &counted(0, 40)).is_none(), "nor tried again");
    assert!(
        kept.find(SCOPE, &counted(100, 40)).is_some(),
        "the others are whole"
    );
}
