//! "Did you mean": the nearest of the names that exist.

/// Most edits between a word and what is suggested for it: more is another word.
const EDITS_MAX: usize = 3;

/// The name nearest to `given`, if one is near: at most [`EDITS_MAX`] edits and fewer than half of its letters.
pub(crate) fn nearest<'n>(given: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .map(|name| (edits(given, name), name))
        .filter(|(distance, name)| *distance <= EDITS_MAX && distance * 2 < name.chars().count().max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters to insert, remove or replace to come from one word to the other (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (index, have) in from.chars().enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        for (column, want) in to.iter().enumerate() {
            let above = row.get(column + 1).copied().unwrap_or(usize::MAX);
            let replaced = diagonal + usize::from(have != *want);
            let best = replaced.min(left + 1).min(above + 1);
            if let Some(cell) = row.get_mut(column) {
                *cell = left;
            }
            diagonal = above;
            left = best;
        }
        if let Some(cell) = row.last_mut() {
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (from, to, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("http_prot", "http_port", 2),
        ] {
            assert_eq!(edits(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(
            nearest("http-prt", ["http-port", "https-port"]),
            Some("http-port")
        );
        assert_eq!(nearest("colour", ["http-port", "https-port"]), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
