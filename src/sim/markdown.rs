//! Comments as a person sees them: the Markdown that comments use, made HTML. Safe by construction: everything is
//! escaped except the tags written here; a tag of the text itself comes through only from a short list, without
//! attributes, and is always closed in the block that opened it. Links are http and https only, images never load.

use std::fmt::Write as _;

/// Tags of the text that may come through inside a line.
const INLINE_TAGS: [&str; 11] = ["b", "strong", "i", "em", "del", "code", "kbd", "sub", "sup", "br", "samp"];
/// How deep quotes and lists may nest.
const DEPTH: usize = 12;

/// Renders a comment's body.
pub fn render(text: &str) -> String {
    let text = without_comments(&text.replace("\r\n", "\n"));
    let lines: Vec<&str> = text.lines().collect();
    let mut html = String::with_capacity(text.len() * 2);
    blocks(&lines, 0, &mut html);
    html
}

pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Takes `<!-- … -->` out, except in code; one that is never closed hides the rest.
fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut in_fence = false;
    let mut in_comment = false;
    for line in text.split_inclusive('\n') {
        if !in_comment && fence(line).is_some() {
            in_fence = !in_fence;
        }
        if in_fence {
            kept.push_str(line);
            continue;
        }
        let mut rest = line;
        loop {
            if in_comment {
                match rest.find("-->") {
                    Some(at) => {
                        rest = &rest[at + 3..];
                        in_comment = false;
                    }
                    None => break,
                }
            }
            let start = rest.match_indices("<!--").map(|(at, _)| at).find(|at| {
                // An odd number of backticks in front means that it stands in a code span.
                rest[..*at].matches('`').count().is_multiple_of(2)
            });
            match start {
                Some(at) => {
                    kept.push_str(&rest[..at]);
                    rest = &rest[at + 4..];
                    in_comment = true;
                }
                None => {
                    kept.push_str(rest);
                    break;
                }
            }
        }
    }
    kept
}

fn fence(line: &str) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    for mark in ["```", "~~~"] {
        if let Some(rest) = line.strip_prefix(mark) {
            return Some((mark, rest.trim()));
        }
    }
    None
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    let rest = line.get(level..)?;
    ((1..=6).contains(&level) && rest.starts_with(' ')).then(|| (level, rest.trim().trim_end_matches('#').trim_end()))
}

fn is_rule(line: &str) -> bool {
    let line: String = line.chars().filter(|character| !character.is_whitespace()).collect();
    line.len() >= 3 && ["-", "*", "_"].iter().any(|mark| line.replace(mark, "").is_empty())
}

/// Indent, width of the marker, whether it is numbered.
fn item(line: &str) -> Option<(usize, usize, bool)> {
    let indent = line.len() - line.trim_start().len();
    let rest = line.trim_start();
    let mut characters = rest.chars();
    match characters.next()? {
        '-' | '*' | '+' if rest[1..].starts_with(' ') => Some((indent, indent + 2, false)),
        digit if digit.is_ascii_digit() => {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let after = rest.get(digits..)?;
            ((after.starts_with(". ") || after.starts_with(") ")) && digits < 10).then_some((
                indent,
                indent + digits + 2,
                true,
            ))
        }
        _ => None,
    }
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|');
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for character in line.chars() {
        match character {
            '|' if !escaped => cells.push(String::new()),
            _ => {
                if let Some(cell) = cells.last_mut() {
                    if escaped && character != '|' {
                        cell.push('\\');
                    }
                    if character != '\\' || escaped {
                        cell.push(character);
                    }
                }
            }
        }
        escaped = character == '\\' && !escaped;
    }
    if cells.last().is_some_and(|cell| cell.trim().is_empty()) {
        cells.pop();
    }
    cells.into_iter().map(|cell| cell.trim().to_owned()).collect()
}

fn is_separator(line: &str) -> bool {
    line.contains('-') && line.contains('|') && line.trim().chars().all(|character| "|-: ".contains(character))
}

/// A line that is about `details` and `summary`.
fn is_disclosure(line: &str) -> bool {
    let line = line.trim_start().to_ascii_lowercase();
    ["<details", "</details", "<summary", "</summary"].iter().any(|tag| line.starts_with(tag))
}

fn opens_block(lines: &[&str], at: usize) -> bool {
    let line = lines[at];
    fence(line).is_some()
        || heading(line.trim_start()).is_some()
        || is_rule(line)
        || line.trim_start().starts_with('>')
        || item(line).is_some()
        || is_disclosure(line)
}

fn blocks(lines: &[&str], depth: usize, html: &mut String) {
    let mut open_details = 0_usize;
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        if line.trim().is_empty() {
            at += 1;
        } else if let Some((mark, language)) = fence(line) {
            let end =
                (at + 1..lines.len()).find(|next| lines[*next].trim_start().starts_with(mark)).unwrap_or(lines.len());
            let language: String = language.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
            let _ = write!(html, "<pre><code class=\"language-{language}\">");
            for code in &lines[at + 1..end] {
                html.push_str(&escape(code));
                html.push('\n');
            }
            html.push_str("</code></pre>\n");
            at = end + 1;
        } else if let Some((level, text)) = heading(line.trim_start()) {
            let _ = writeln!(html, "<h{level}>{}</h{level}>", inline(text));
            at += 1;
        } else if is_disclosure(line) {
            disclosure(line, &mut open_details, html);
            at += 1;
        } else if line.contains('|') && lines.get(at + 1).is_some_and(|next| is_separator(next)) {
            at = table(lines, at, html);
        } else if is_rule(line) {
            html.push_str("<hr>\n");
            at += 1;
        } else if line.trim_start().starts_with('>') && depth < DEPTH {
            let end = (at..lines.len()).find(|next| !lines[*next].trim_start().starts_with('>')).unwrap_or(lines.len());
            let inner: Vec<&str> = lines[at..end]
                .iter()
                .map(|line| {
                    let line = line.trim_start().trim_start_matches('>');
                    line.strip_prefix(' ').unwrap_or(line)
                })
                .collect();
            html.push_str("<blockquote>\n");
            blocks(&inner, depth + 1, html);
            html.push_str("</blockquote>\n");
            at = end;
        } else if item(line).is_some() && depth < DEPTH {
            at = list(lines, at, depth, html);
        } else {
            let end = (at + 1..lines.len())
                .find(|next| lines[*next].trim().is_empty() || opens_block(lines, *next))
                .unwrap_or(lines.len());
            let text: Vec<&str> = lines[at..end].iter().map(|line| line.trim()).collect();
            let _ = writeln!(html, "<p>{}</p>", inline(&text.join("\n")));
            at = end;
        }
    }
    for _ in 0..open_details {
        html.push_str("</details>\n");
    }
}

fn disclosure(line: &str, open: &mut usize, html: &mut String) {
    let mut rest = line.trim();
    while !rest.is_empty() {
        let lower = rest.to_ascii_lowercase();
        if let Some(after) = lower.strip_prefix("<details") {
            let end = after.find('>').map_or(rest.len(), |at| rest.len() - after.len() + at + 1);
            html.push_str(if after.trim_start().starts_with("open") { "<details open>" } else { "<details>" });
            *open += 1;
            rest = &rest[end..];
        } else if lower.starts_with("</details>") {
            if *open > 0 {
                html.push_str("</details>\n");
                *open -= 1;
            }
            rest = &rest["</details>".len()..];
        } else if lower.starts_with("<summary>") {
            rest = &rest["<summary>".len()..];
            let end = rest.to_ascii_lowercase().find("</summary>");
            let (inner, after) = match end {
                Some(end) => (&rest[..end], &rest[end + "</summary>".len()..]),
                None => (rest, ""),
            };
            if *open > 0 {
                let _ = writeln!(html, "<summary>{}</summary>", inline(inner.trim()));
            } else {
                let _ = writeln!(html, "<p>{}</p>", inline(inner.trim()));
            }
            rest = after;
        } else if lower.starts_with("</summary>") {
            rest = &rest["</summary>".len()..];
        } else {
            let next = rest[1..].find('<').map_or(rest.len(), |at| at + 1);
            let text = rest[..next].trim();
            if !text.is_empty() {
                let _ = writeln!(html, "<p>{}</p>", inline(text));
            }
            rest = &rest[next..];
        }
        rest = rest.trim_start();
    }
}

fn table(lines: &[&str], at: usize, html: &mut String) -> usize {
    let head = cells(lines[at]);
    let aligns: Vec<&str> = cells(lines[at + 1])
        .iter()
        .map(|cell| match (cell.starts_with(':'), cell.ends_with(':')) {
            (true, true) => " class=\"center\"",
            (false, true) => " class=\"right\"",
            _ => "",
        })
        .collect();
    let align = |column: usize| aligns.get(column).copied().unwrap_or("");
    html.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for (column, cell) in head.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", align(column), inline(cell));
    }
    html.push_str("</tr></thead>\n<tbody>\n");
    let mut end = at + 2;
    while end < lines.len() && lines[end].contains('|') && !lines[end].trim().is_empty() {
        html.push_str("<tr>");
        let row = cells(lines[end]);
        for column in 0..head.len() {
            let cell = row.get(column).map_or("", String::as_str);
            let _ = write!(html, "<td{}>{}</td>", align(column), inline(cell));
        }
        html.push_str("</tr>\n");
        end += 1;
    }
    html.push_str("</tbody></table></div>\n");
    end
}

fn list(lines: &[&str], at: usize, depth: usize, html: &mut String) -> usize {
    let Some((indent, _, numbered)) = item(lines[at]) else { return at + 1 };
    let tag = if numbered { "ol" } else { "ul" };
    let _ = writeln!(html, "<{tag}>");
    let mut next = at;
    while let Some((own_indent, width, own_numbered)) = lines.get(next).and_then(|line| item(line)) {
        if own_indent != indent || own_numbered != numbered {
            break;
        }
        let mut inner = vec![lines[next].get(width..).unwrap_or("")];
        next += 1;
        while let Some(line) = lines.get(next) {
            let own = line.len() - line.trim_start().len();
            let blank = line.trim().is_empty();
            let deeper = !blank && own > indent;
            let lazy = !blank
                && !deeper
                && !opens_block(lines, next)
                && !inner.last().is_some_and(|last| last.trim().is_empty());
            let gap = blank
                && lines
                    .get(next + 1)
                    .is_some_and(|after| !after.trim().is_empty() && after.len() - after.trim_start().len() > indent);
            if !deeper && !lazy && !gap {
                break;
            }
            inner.push(line.get(own.min(width)..).unwrap_or(""));
            next += 1;
        }
        html.push_str("<li>");
        let first = inner[0];
        for (mark, state) in [("[ ] ", ""), ("[x] ", " checked"), ("[X] ", " checked")] {
            if let Some(rest) = first.strip_prefix(mark) {
                let _ = write!(html, "<input type=\"checkbox\" disabled{state}> ");
                inner[0] = rest;
                break;
            }
        }
        let tight =
            (1..inner.len()).find(|at| opens_block(&inner, *at) || inner[*at].trim().is_empty()).unwrap_or(inner.len());
        if opens_block(&inner, 0) {
            blocks(&inner, depth + 1, html);
        } else {
            html.push_str(&inline(&inner[..tight].join("\n")));
            blocks(&inner[tight..], depth + 1, html);
        }
        html.push_str("</li>\n");
    }
    let _ = writeln!(html, "</{tag}>");
    next
}

/// Text inside a block. Tags opened here are closed here.
fn inline(text: &str) -> String {
    let mut html = String::with_capacity(text.len() * 2);
    spans(text, 0, &mut html);
    html
}

fn spans(text: &str, depth: usize, html: &mut String) {
    let mut open: Vec<&'static str> = Vec::new();
    let mut rest = text;
    let mut before = '\n';
    while let Some(character) = rest.chars().next() {
        let taken = if depth < DEPTH { special(rest, before, depth, &mut open, html) } else { 0 };
        let length = if taken > 0 {
            taken
        } else {
            match character {
                '\n' => html.push_str("<br>\n"),
                _ => html.push_str(&escape(&rest[..character.len_utf8()])),
            }
            character.len_utf8()
        };
        before = rest[..length].chars().next_back().unwrap_or(' ');
        rest = &rest[length..];
    }
    while let Some(tag) = open.pop() {
        let _ = write!(html, "</{tag}>");
    }
}

/// Renders what starts here, if it is more than a character; returns how much of the text it took.
fn special(rest: &str, before: char, depth: usize, open: &mut Vec<&'static str>, html: &mut String) -> usize {
    let first = rest.chars().next().unwrap_or(' ');
    match first {
        '\\' if rest[1..].starts_with(|next: char| next.is_ascii_punctuation()) => {
            html.push_str(&escape(&rest[1..2]));
            2
        }
        '`' => {
            let ticks = rest.bytes().take_while(|byte| *byte == b'`').count();
            let mark = &rest[..ticks];
            let Some(end) = rest[ticks..].find(mark) else { return 0 };
            let _ = write!(html, "<code>{}</code>", escape(rest[ticks..ticks + end].trim()));
            ticks + end + ticks
        }
        '*' | '_' | '~' => emphasis(rest, first, before, depth, html),
        '!' if rest.starts_with("![") => match link(&rest[1..]) {
            Some((label, _, length)) => {
                let _ = write!(html, "<span class=\"image\">{}</span>", escape(label));
                length + 1
            }
            None => 0,
        },
        '[' => match link(rest) {
            Some((label, address, length)) => {
                if is_web(address) {
                    let _ = write!(html, "<a href=\"{}\" rel=\"noreferrer\">", escape(address));
                    spans(label, depth + 1, html);
                    html.push_str("</a>");
                } else {
                    spans(label, depth + 1, html);
                }
                length
            }
            None => 0,
        },
        'h' if !before.is_alphanumeric() && is_web(rest) => {
            let end = rest.find(|next: char| next.is_whitespace() || "<>\"'`|".contains(next)).unwrap_or(rest.len());
            let address = rest[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', '*', '_']);
            let _ = write!(html, "<a href=\"{0}\" rel=\"noreferrer\">{0}</a>", escape(address));
            address.len()
        }
        '@' if !before.is_alphanumeric() => {
            let end = rest[1..]
                .find(|next: char| !next.is_ascii_alphanumeric() && next != '-')
                .map_or(rest.len(), |end| end + 1);
            if end > 1 {
                let _ = write!(html, "<strong>{}</strong>", escape(&rest[..end]));
                end
            } else {
                0
            }
        }
        '<' => tag(rest, open, html),
        _ => 0,
    }
}

fn emphasis(rest: &str, mark: char, before: char, depth: usize, html: &mut String) -> usize {
    let run = rest.chars().take_while(|character| *character == mark).count();
    let (width, tag) = match (mark, run) {
        ('~', 2) => (2, "del"),
        ('~', _) => return 0,
        (_, 1) => (1, "em"),
        (_, 2..) => (2, "strong"),
        _ => return 0,
    };
    let inner = &rest[width..];
    if inner.starts_with(char::is_whitespace) || (mark == '_' && before.is_alphanumeric()) {
        return 0;
    }
    let closing = &rest[..width];
    let mut from = 0;
    while let Some(found) = inner[from..].find(closing) {
        let end = from + found;
        let body = &inner[..end];
        let after = inner[end + width..].chars().next().unwrap_or(' ');
        let longer = width == 1 && (after == mark || body.ends_with(mark));
        let in_word = mark == '_' && after.is_alphanumeric();
        let in_code = !body.matches('`').count().is_multiple_of(2);
        if !(body.is_empty() || body.ends_with(char::is_whitespace) || longer || in_word || in_code) {
            let _ = write!(html, "<{tag}>");
            spans(body, depth + 1, html);
            let _ = write!(html, "</{tag}>");
            return width + end + width;
        }
        from = end + closing.len();
    }
    0
}

/// `[label](address)`: label, address, length.
fn link(rest: &str) -> Option<(&str, &str, usize)> {
    let mut depth = 0_usize;
    let mut close = None;
    for (at, character) in rest.char_indices() {
        match character {
            '[' => depth += 1,
            ']' => {
                depth -= 1;
                if depth == 0 {
                    close = Some(at);
                    break;
                }
            }
            '\n' if depth == 0 => return None,
            _ => {}
        }
    }
    let close = close?;
    let target = rest[close + 1..].strip_prefix('(')?;
    let end = target.find(')')?;
    let address = target[..end].split_whitespace().next().unwrap_or("").trim_matches(['<', '>']);
    Some((&rest[1..close], address, close + 2 + end + 1))
}

fn is_web(address: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        address
            .strip_prefix(scheme)
            .is_some_and(|host| host.starts_with(|first: char| first.is_alphanumeric() || first == '['))
    })
}

fn tag(rest: &str, open: &mut Vec<&'static str>, html: &mut String) -> usize {
    let Some(end) = rest.find('>') else { return 0 };
    let inner = rest[1..end].trim().trim_end_matches('/').trim().to_ascii_lowercase();
    let (closes, name) = match inner.strip_prefix('/') {
        Some(name) => (true, name.to_owned()),
        None => (false, inner.split_whitespace().next().unwrap_or("").to_owned()),
    };
    let Some(known) = INLINE_TAGS.into_iter().find(|known| *known == name) else {
        // Other tags of this kind vanish, their text stays; anything else is shown as it is.
        return match ["a", "p", "img", "div", "span", "picture", "source"].contains(&name.as_str()) {
            true => end + 1,
            false => 0,
        };
    };
    if known == "br" {
        html.push_str("<br>");
    } else if !closes {
        open.push(known);
        let _ = write!(html, "<{known}>");
    } else if open.last() == Some(&known) {
        open.pop();
        let _ = write!(html, "</{known}>");
    }
    end + 1
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn comments_render_as_a_person_expects() {
        for (source, html) in [
            ("Hello **you**\nand _me_", "<p>Hello <strong>you</strong><br>\nand <em>me</em></p>\n"),
            ("<!-- landfall -->\n# Up", "<h1>Up</h1>\n"),
            ("see `<!-- x -->`", "<p>see <code>&lt;!-- x --&gt;</code></p>\n"),
            ("[a](http://x/?q=1&r=2)", "<p><a href=\"http://x/?q=1&amp;r=2\" rel=\"noreferrer\">a</a></p>\n"),
            ("[a](javascript:alert(1))", "<p>a)</p>\n"),
            ("![alt](http://x/i.png)", "<p><span class=\"image\">alt</span></p>\n"),
            (
                "- one\n- [x] two\n  - three",
                "<ul>\n<li>one</li>\n<li><input type=\"checkbox\" disabled checked> two<ul>\n<li>three</li>\n</ul>\n</li>\n</ul>\n",
            ),
            (
                "| a | b |\n|---|--:|\n| 1 | 2 |",
                "<div class=\"scroll\"><table>\n<thead><tr><th>a</th><th class=\"right\">b</th></tr></thead>\n<tbody>\n<tr><td>1</td><td class=\"right\">2</td></tr>\n</tbody></table></div>\n",
            ),
            (
                "<details><summary>More</summary>\n\ntext\n\n</details>",
                "<details><summary>More</summary>\n<p>text</p>\n</details>\n",
            ),
            ("```rust\n<b>\n```", "<pre><code class=\"language-rust\">&lt;b&gt;\n</code></pre>\n"),
            ("snake_case_name", "<p>snake_case_name</p>\n"),
        ] {
            assert_eq!(render(source), html, "{source}");
        }
    }

    #[test]
    fn nothing_of_the_text_becomes_a_tag_that_is_not_listed() {
        for hostile in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "<b onclick=alert(1)>x",
            "</main></div><script>",
            "<details><summary><script>x</script>",
            "[x](http://a\"onmouseover=alert(1))",
            "**<svg/onload=alert(1)>**",
            "> <iframe src=javascript:1>",
            "| <script> |\n|---|\n| </td><script> |",
            "```\"><script>\nx\n```",
            "http://a'\"><script>",
        ] {
            let html = render(hostile);
            for tag in ["<script", "<img", "<svg", "<iframe", "</main", "</div><", "onclick=alert(1)>x"] {
                assert!(!html.contains(tag), "{hostile} became {html}");
            }
            assert_eq!(html.matches("<details").count(), html.matches("</details>").count(), "{html}");
        }
    }

    #[test]
    fn deep_and_long_texts_end() {
        render(&">".repeat(5_000));
        render(&"[".repeat(3_000));
        render(&"*a ".repeat(2_000));
        render(&"- ".repeat(500));
    }
}
