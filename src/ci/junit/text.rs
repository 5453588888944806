//! Text out of a result file: encodings, escapes, control characters, numbers as people write them.

use std::borrow::Cow;

/// UTF-8, or UTF-16 by its mark; what is neither is replaced character by character.
pub(super) fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let wide = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        Cow::Owned(String::from_utf16_lossy(&units))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        _ => String::from_utf8_lossy(bytes),
    }
}

/// The character of a reference without `&` and `;`, such as `lt` or `#x1B`.
pub(super) fn resolve(name: &str) -> Option<char> {
    match name {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// References resolved where they are known and left as they are where not; at most about `most` bytes.
pub(super) fn unescape(raw: &str, most: usize) -> String {
    let mut text = Capped::new(most);
    let mut rest = raw;
    while !rest.is_empty() && !text.is_full() {
        let Some(at) = rest.find('&') else {
            text.push(rest);
            break;
        };
        text.push(&rest[..at]);
        let tail = &rest[at + 1..];
        // No reference is longer than this.
        let end = tail.bytes().take(12).position(|byte| byte == b';');
        match end.and_then(|end| Some((end, resolve(tail.get(..end)?)?))) {
            Some((end, character)) => {
                text.push(character.encode_utf8(&mut [0; 4]));
                rest = &tail[end + 1..];
            }
            None => {
                text.push("&");
                rest = tail;
            }
        }
    }
    text.text
}

/// Text that stops growing.
#[derive(Debug)]
pub(super) struct Capped {
    text: String,
    most: usize,
}

impl Capped {
    pub(super) fn new(most: usize) -> Capped {
        Capped { text: String::new(), most }
    }

    pub(super) fn push(&mut self, more: &str) {
        let mut room = self.most.saturating_sub(self.text.len()).min(more.len());
        while !more.is_char_boundary(room) {
            room -= 1;
        }
        self.text.push_str(&more[..room]);
        if room < more.len() {
            // The first piece that doesn't fit ends it, or later ones would stand in its place.
            self.most = self.text.len();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= self.most
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// Without colours and control characters, also as pytest writes them out (`#x1B[31m`).
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let escape =
            rest.strip_prefix('\u{1b}').or_else(|| rest.strip_prefix("#x1B")).or_else(|| rest.strip_prefix('\u{9b}'));
        if let Some(after) = escape {
            rest = match after.strip_prefix('[') {
                Some(sequence) => {
                    let end = sequence.bytes().take(32).position(|byte| (0x40..=0x7e).contains(&byte));
                    end.map_or(sequence, |end| &sequence[end + 1..])
                }
                None => after,
            };
            continue;
        }
        if let Some(after) = rest.strip_prefix("#x00") {
            rest = after;
            continue;
        }
        if !character.is_control() || matches!(character, '\n' | '\t') {
            cleaned.push(character);
        }
        rest = &rest[character.len_utf8()..];
    }
    cleaned
}

/// `1.5`, `1,200.5` (Surefire), `1,200`, `0,5`, `2s`; not `NaN`, infinite, negative or longer than a year.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let text = text.strip_suffix('s').unwrap_or(text).trim_end();
    let groups: Vec<&str> = text.split(',').collect();
    let thousands = text.contains('.')
        || (groups.len() > 1
            && !groups[0].starts_with('0')
            && groups[1..].iter().all(|group| group.len() == 3 && group.bytes().all(|byte| byte.is_ascii_digit())));
    let plain: Cow<'_, str> = match (groups.len(), thousands) {
        (1, _) => Cow::Borrowed(text),
        (_, true) => Cow::Owned(text.replace(',', "")),
        (_, false) => Cow::Owned(text.replacen(',', ".", 1)),
    };
    let seconds: f64 = plain.parse().ok()?;
    (seconds.is_finite() && (0.0..=31_536_000.0).contains(&seconds)).then_some(seconds)
}
