//! Where in a TOML text something stands, and what was probably meant.

use std::{ops::Range, path::Path};

use toml::de::{DeTable, DeValue};

/// A fault of the file: where, what, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{file}:{line}: {}{what}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct Misfit {
    pub file: String,
    pub line: usize,
    /// `api.listen`; empty where the text is not TOML.
    pub key: String,
    pub what: String,
}

impl Misfit {
    pub(super) fn new(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or_default();
        let at = span.start;
        // A key that is there twice is only once in what was read.
        let word = || text.get(span.clone()).filter(|word| is_key(word)).map(str::to_owned);
        Self {
            file: file.display().to_string(),
            line: line_at(text, at),
            key: key_at(text, at).or_else(word).unwrap_or_default(),
            what: advise(error.message()),
        }
    }
}

fn is_key(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn line_at(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// serde's words with the nearest known one put forward.
fn advise(message: &str) -> String {
    let message = message.trim();
    let Some((wrong, known)) = message.split_once(", expected") else { return message.to_owned() };
    let (Some(wrong_word), known_words) = (quoted(wrong).next(), quoted(known).collect::<Vec<_>>()) else {
        return message.to_owned();
    };
    let kind = if wrong.starts_with("unknown field") { "unknown key" } else { "unknown value" };
    let known_here = known_words.join(", ");
    match nearest(wrong_word, &known_words) {
        Some(near) => format!("{kind} `{wrong_word}`; did you mean `{near}`? (known here: {known_here})"),
        None => format!("{kind} `{wrong_word}`; remove it or take one of those known here: {known_here}"),
    }
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The word that is at most a third of its letters away.
pub(crate) fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, word) = known.iter().map(|word| (distance(wrong, word), *word)).min()?;
    (distance <= 1 + wrong.len() / 3 && distance < word.len()).then_some(word)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let here = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row[b.len()]
}

/// The line on which a key such as `vips.internal` is set.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let mut found = None;
    each_key(text, &mut |path, key_span, _| {
        if path == key {
            found = Some(line_at(text, key_span.start));
        }
    });
    found
}

/// The innermost key whose name or value stands at `at`.
fn key_at(text: &str, at: usize) -> Option<String> {
    let mut found: Option<String> = None;
    each_key(text, &mut |path, key_span, value_span| {
        let deeper = found.as_ref().is_none_or(|found| path.len() > found.len());
        if deeper && (key_span.contains(&at) || value_span.contains(&at)) {
            found = Some(path.to_owned());
        }
    });
    found
}

fn each_key(text: &str, visit: &mut impl FnMut(&str, Range<usize>, Range<usize>)) {
    // A text that is not TOML still has the keys that could be read.
    let (table, _) = DeTable::parse_recoverable(text);
    walk("", table.get_ref(), visit);
}

fn walk(above: &str, table: &DeTable<'_>, visit: &mut impl FnMut(&str, Range<usize>, Range<usize>)) {
    for (key, value) in table.iter() {
        let path = if above.is_empty() { key.get_ref().to_string() } else { format!("{above}.{}", key.get_ref()) };
        visit(&path, key.span(), value.span());
        if let DeValue::Table(inner) = value.get_ref() {
            walk(&path, inner, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let known = ["listen", "follow"];
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("folow", &known), Some("follow"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_key_is_found_on_its_line() {
        let text = "a = 1\n[b]\nc = 2\nd.e = 3\n";
        assert_eq!(line_of(text, "a"), Some(1));
        assert_eq!(line_of(text, "b.c"), Some(3));
        assert_eq!(line_of(text, "b.d.e"), Some(4));
        assert_eq!(line_of(text, "b.x"), None);
    }
}
