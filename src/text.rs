//! Words for people: the templates, and how text from outside is made harmless in each place that shows it.
//!
//! Every sentence that a person reads stands in `templates/`; code hands over data. In `.html` everything is escaped
//! by itself; in `.md` (comments, checks) text from outside goes through `code` or `fence`, in which Markdown, mentions
//! and links mean nothing.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../templates/", $name)))),*]
    };
}

const TEMPLATES: &[(&str, &str)] = &templates![
    "failures.txt",
    "refusals.txt",
    "comment.md",
    "answer.md",
    "check.md",
    "status.txt",
    "deployment.txt",
    "macros.html",
    "layout.html",
    "home.html",
    "pipeline.html",
    "app.html",
    "run.html",
    "log.html",
    "deliveries.html",
    "delivery.html",
    "audit.html",
    "flaky.html",
    "alert.txt",
    "metrics.html",
    "alerts.html",
    "message.html",
    "cli.txt",
    "demo.txt",
];

/// The templates, ready to be filled.
pub struct Texts(Environment<'static>);

impl Texts {
    pub fn load() -> Texts {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(
            |name| {
                if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None }
            },
        );
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.add_filter("code", |text: String| code(&text));
        environment.add_filter("fence", |lines: Vec<String>| fence(&lines));
        environment.add_filter("block", |text: String| fence(&text.lines().map(str::to_owned).collect::<Vec<_>>()));
        environment.add_filter("short", |sha: String| sha.chars().take(7).collect::<String>());
        environment.add_filter("size", |bytes: u64| size(bytes));
        environment.add_filter("plain", |text: String| plain(&text, 10_000));
        for (name, source) in TEMPLATES {
            environment.add_template(name, source).expect("the templates are part of the program and were tested");
        }
        Texts(environment)
    }

    /// Fills a template.
    ///
    /// # Panics
    /// Never for the templates of the program: a test fills each of them.
    pub fn render(&self, name: &str, context: impl Serialize) -> String {
        let filled = self.0.get_template(name).and_then(|template| template.render(Value::from(Serde(context))));
        match filled {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(template = name, "a template could not be filled: {error:#}");
                String::new()
            }
        }
    }

    /// Fills a template that makes one line: white space is folded.
    pub fn line(&self, name: &str, context: impl Serialize) -> String {
        self.render(name, context).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Text from outside as one harmless line of Markdown: a code span, in which nothing is a link or a mention.
pub fn code(text: &str) -> String {
    let line = plain(text, 200).replace('|', "¦");
    if line.trim().is_empty() {
        return "` `".to_owned();
    }
    let longest = longest_run(&line, '`');
    let marks = "`".repeat(longest + 1);
    if longest > 0 { format!("{marks} {line} {marks}") } else { format!("`{line}`") }
}

/// Lines from outside as a block of Markdown that they can't end.
pub fn fence(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| plain(line, 500)).collect();
    let longest = lines.iter().map(|line| longest_run(line, '`')).max().unwrap_or(0);
    let marks = "`".repeat(longest.max(2) + 1);
    format!("{marks}text\n{}\n{marks}", lines.join("\n"))
}

fn longest_run(text: &str, wanted: char) -> usize {
    let (mut longest, mut run) = (0, 0);
    for character in text.chars() {
        run = if character == wanted { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

/// One line without escape sequences, control characters or characters that turn the reading direction; at most `most`
/// characters, with an ellipsis where it was cut.
pub fn plain(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most * 4));
    let mut characters = text.chars().peekable();
    let mut count = 0;
    while let Some(character) = characters.next() {
        if count == most {
            out.push('…');
            break;
        }
        match character {
            '\u{1b}' => skip_escape(&mut characters),
            '\t' | '\n' | '\r' => {
                out.push(' ');
                count += 1;
            }
            // Marks, embeddings, overrides and isolates of the bidirectional algorithm; zero-width characters.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {}
            character if character.is_control() => {}
            character => {
                out.push(character);
                count += 1;
            }
        }
    }
    out
}

fn skip_escape(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match characters.next() {
        // A control sequence ends with a letter or one of @[\]^_`{|}~.
        Some('[') => {
            for character in characters.by_ref().take(100) {
                if ('\u{40}'..='\u{7e}').contains(&character) {
                    break;
                }
            }
        }
        // An operating system command (a title, a link, the clipboard) ends with BEL or ESC \.
        Some(']' | 'P' | '_' | '^' | 'X') => {
            let mut escaped = false;
            for character in characters.by_ref().take(5_000) {
                if character == '\u{7}' || (escaped && character == '\\') {
                    break;
                }
                escaped = character == '\u{1b}';
            }
        }
        _ => {}
    }
}

/// `1.4 MB`, as people write it.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_harmless_in_comments() {
        assert_eq!(code("main"), "`main`");
        assert_eq!(code("a`b``c"), "``` a`b``c ```");
        assert_eq!(code("@team <img src=x> [x](http://x)\n# y"), "`@team <img src=x> [x](http://x) # y`");
        assert_eq!(code("\u{1b}[31mred\u{1b}[0m\u{202e}txt\0"), "`redtxt`");
        assert_eq!(code("a|b"), "`a¦b`");
        let fenced = fence(&["```".to_owned(), "/promote".to_owned()]);
        assert!(fenced.starts_with("````text\n```\n/promote\n````"), "{fenced}");
        assert_eq!(plain("\u{1b}]0;title\u{7}after\u{1b}]52;c;x\u{1b}\\end", 50), "afterend");
        assert_eq!(plain(&"x".repeat(10), 4), "xxxx…");
        assert_eq!(size(1_400_000), "1.4 MB");
    }
}
