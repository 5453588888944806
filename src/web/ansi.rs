//! A line of somebody's output as spans of text with class names: colours stay, everything else that a terminal would
//! obey does not. What is hidden from the eye (control characters, marks that turn the reading direction) is made
//! visible; the spans become text nodes, so nothing in a line is ever markup.

use serde::Serialize;
use std::fmt::Write as _;

/// Bytes of a line that a page shows; the rest is counted, not shown.
pub const SHOWN: usize = 16 * 1024;

/// Text in one style; the class is one of the style sheet's, empty for plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    pub class: String,
    pub text: String,
}

/// The Select Graphic Rendition state of ECMA-48, as far as pages show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    bold: bool,
    faint: bool,
    italic: bool,
    underlined: bool,
    reversed: bool,
    struck: bool,
    ink: Option<u8>,
    ground: Option<u8>,
}

pub fn spans(line: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut style = Style::default();
    let end = (0..=SHOWN.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    let mut characters = line[..end].chars().peekable();
    let mut text = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.peek() {
                Some('[') => {
                    characters.next();
                    if let Some(parameters) = control_sequence(&mut characters) {
                        flush(&mut spans, style, &mut text);
                        style.select(&parameters);
                    }
                }
                // Operating system commands (titles, links, the clipboard), device control, privacy messages.
                Some(']' | 'P' | '_' | '^' | 'X') => {
                    characters.next();
                    skip_string(&mut characters);
                    text.push('␛');
                }
                _ => text.push('␛'),
            },
            '\t' => text.push('\t'),
            // The end of a line that was written for a terminal or for Windows.
            '\r' if characters.peek().is_none() => {}
            '\u{0}'..='\u{1f}' => text.extend(char::from_u32(0x2400 + u32::from(character))),
            '\u{7f}' => text.push('␡'),
            '\u{80}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}' => {
                let _ = write!(text, "⟨U+{:04X}⟩", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    flush(&mut spans, style, &mut text);
    if end < line.len() {
        spans.push(Span { class: "cut".to_owned(), text: format!("…+{}", line.len() - end) });
    }
    spans
}

/// The line without styles, as one text.
pub fn visible(line: &str) -> String {
    spans(line).into_iter().map(|span| span.text).collect()
}

/// The line with its styles as a terminal shows them, and nothing else that it would obey.
pub fn for_terminal(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    for span in spans(line) {
        let parameters: Vec<String> = span.class.split(' ').filter_map(parameter).collect();
        if parameters.is_empty() {
            out.push_str(&span.text);
        } else {
            let _ = write!(out, "\u{1b}[{}m{}\u{1b}[0m", parameters.join(";"), span.text);
        }
    }
    out
}

/// The parameter that selects what a class names.
fn parameter(class: &str) -> Option<String> {
    let number = |text: &str| text.parse::<u8>().ok();
    match class {
        "b" => Some("1".to_owned()),
        "d" => Some("2".to_owned()),
        "i" => Some("3".to_owned()),
        "u" => Some("4".to_owned()),
        "rv" => Some("7".to_owned()),
        "s" => Some("9".to_owned()),
        _ => match class.split_at_checked(1)? {
            ("f", colour) => number(colour).map(|colour| format!("38;5;{colour}")),
            ("g", colour) => number(colour).map(|colour| format!("48;5;{colour}")),
            _ => None,
        },
    }
}

fn flush(spans: &mut Vec<Span>, style: Style, text: &mut String) {
    if !text.is_empty() {
        spans.push(Span { class: style.class(), text: std::mem::take(text) });
    }
}

/// Reads to the end of a control sequence; its parameters if it selects a style, `None` for all others.
fn control_sequence(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Vec<u16>> {
    let mut parameters = String::new();
    for _ in 0..100 {
        match characters.peek() {
            Some(character @ '\u{20}'..='\u{3f}') => {
                parameters.push(*character);
                characters.next();
            }
            Some('m') => {
                characters.next();
                let plain = parameters.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':'));
                return plain.then(|| {
                    parameters.split([';', ':']).map(|number| number.parse().unwrap_or(0)).collect::<Vec<u16>>()
                });
            }
            Some('\u{40}'..='\u{7e}') => {
                characters.next();
                return None;
            }
            _ => return None,
        }
    }
    None
}

/// Reads to BEL or ESC `\`, at most 4,096 characters, so that an open end does not swallow more.
fn skip_string(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let mut escaped = false;
    for character in characters.by_ref().take(4096) {
        if character == '\u{7}' || (escaped && character == '\\') {
            return;
        }
        escaped = character == '\u{1b}';
    }
}

impl Style {
    fn select(&mut self, parameters: &[u16]) {
        let mut rest = parameters;
        while let [first, tail @ ..] = rest {
            rest = tail;
            match first {
                0 => *self = Style::default(),
                1 => self.bold = true,
                2 => self.faint = true,
                3 => self.italic = true,
                4 => self.underlined = true,
                7 => self.reversed = true,
                9 => self.struck = true,
                21 | 22 => (self.bold, self.faint) = (false, false),
                23 => self.italic = false,
                24 => self.underlined = false,
                27 => self.reversed = false,
                29 => self.struck = false,
                30..=37 => self.ink = u8::try_from(first - 30).ok(),
                90..=97 => self.ink = u8::try_from(first - 90 + 8).ok(),
                39 => self.ink = None,
                40..=47 => self.ground = u8::try_from(first - 40).ok(),
                100..=107 => self.ground = u8::try_from(first - 100 + 8).ok(),
                49 => self.ground = None,
                38 | 48 => {
                    let (colour, tail) = extended(rest);
                    rest = tail;
                    if *first == 38 { self.ink = colour } else { self.ground = colour }
                }
                _ => {}
            }
        }
    }

    fn class(self) -> String {
        let mut classes = Vec::new();
        for (set, class) in [
            (self.bold, "b"),
            (self.faint, "d"),
            (self.italic, "i"),
            (self.underlined, "u"),
            (self.struck, "s"),
            (self.reversed, "rv"),
        ] {
            if set {
                classes.push(class.to_owned());
            }
        }
        classes.extend(self.ink.map(|colour| format!("f{colour}")));
        classes.extend(self.ground.map(|colour| format!("g{colour}")));
        classes.join(" ")
    }
}

/// `5;n` or `2;r;g;b` after 38 or 48; true colours become the nearest of the 6×6×6 cube.
fn extended(parameters: &[u16]) -> (Option<u8>, &[u16]) {
    match parameters {
        [5, number, rest @ ..] => (u8::try_from(*number).ok(), rest),
        [2, red, green, blue, rest @ ..] => {
            let step = |value: u16| (value.min(255) * 5 + 127) / 255;
            (u8::try_from(16 + 36 * step(*red) + 6 * step(*green) + step(*blue)).ok(), rest)
        }
        [_, rest @ ..] => (None, rest),
        [] => (None, &[]),
    }
}

/// The style sheet's rules for the 240 colours above the sixteen named ones, by xterm's table.
pub fn palette() -> String {
    let mut css = String::new();
    for number in 16..=255u32 {
        let (red, green, blue) = if number < 232 {
            let level = |value: u32| if value == 0 { 0 } else { 55 + 40 * value };
            let cube = number - 16;
            (level(cube / 36), level(cube / 6 % 6), level(cube % 6))
        } else {
            let grey = 8 + 10 * (number - 232);
            (grey, grey, grey)
        };
        let _ = writeln!(
            css,
            ".f{number}{{color:#{red:02x}{green:02x}{blue:02x}}}.g{number}{{background:#{red:02x}{green:02x}{blue:02x}}}"
        );
    }
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> Vec<(String, String)> {
        spans(line).into_iter().map(|span| (span.class, span.text)).collect()
    }

    #[test]
    fn colours_stay_and_nothing_else_is_obeyed() {
        let plain = |text: &str| vec![(String::new(), text.to_owned())];
        let pair = |class: &str, text: &str| (class.to_owned(), text.to_owned());
        assert_eq!(shown("hello"), plain("hello"));
        assert_eq!(shown("\u{1b}[1;31mred\u{1b}[0m no"), [pair("b f1", "red"), pair("", " no")]);
        assert_eq!(shown("\u{1b}[38;5;208mo\u{1b}[48:2:255:0:0mx"), [pair("f208", "o"), pair("f208 g196", "x")]);
        assert_eq!(shown("\u{1b}[90mgrey\u{1b}[39mplain"), [pair("f8", "grey"), pair("", "plain")]);
        // Erasing and moving the cursor would overwrite what stands there.
        assert_eq!(shown("a\u{1b}[2K\u{1b}[1Ab"), plain("ab"));
        assert_eq!(shown("a\u{1b}]52;c;cm0gLXJm\u{7}b"), plain("a␛b"));
        assert_eq!(shown("a\u{1b}]8;;http://x\u{1b}\\b"), plain("a␛b"));
        assert_eq!(shown("a\rb\0\u{8}\u{202e}c\r"), plain("a␍b␀␈⟨U+202E⟩c"));
        assert_eq!(shown("<script>"), plain("<script>"));
        assert_eq!(shown("\u{1b}[38mx\u{1b}[999mx\u{1b}["), [pair("", "x"), pair("", "x")]);
    }

    #[test]
    fn a_terminal_gets_colours_and_nothing_else() {
        assert_eq!(for_terminal("\u{1b}[1;31mred\u{1b}[0m\u{1b}]0;t\u{7}\u{1b}[2J."), "\u{1b}[1;38;5;1mred\u{1b}[0m␛.");
        assert_eq!(for_terminal("plain"), "plain");
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        let line = "ä".repeat(SHOWN);
        let spans = spans(&line);
        assert_eq!(spans[0].text.len(), SHOWN);
        assert_eq!(spans[1].text, format!("…+{SHOWN}"));
    }
}
