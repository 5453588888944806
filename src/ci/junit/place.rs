//! Where in the repository a failure points, found in the text that runners print.

use regex::Regex;
use std::sync::LazyLock;

/// `path.ext:12`, `path.ext(12)` and `File "path.ext", line 12`.
static PLACE: LazyLock<Regex> = LazyLock::new(|| {
    let path = r"[A-Za-z0-9_@+./\[\]-]+\.[A-Za-z]{1,6}";
    Regex::new(&format!(
        r#"File "([^"\n]+\.[A-Za-z]{{1,6}})", line (\d{{1,7}})|({path})(?::(\d{{1,7}})|\((\d{{1,7}})\))"#
    ))
    .expect("it is a pattern")
});

/// Parts of paths that belong to others.
const FOREIGN: [&str; 8] =
    ["node_modules/", "site-packages/", "dist-packages/", "/gems/", "/rustc/", "/.cargo/", "vendor/", "/usr/lib/"];

/// Lines of a failure's text that are looked through.
const MOST_LINES: usize = 400;

/// The first place in the case's own file, else the last one that is inside the repository where the text is a Python
/// traceback (the failing line stands last), else the first one.
pub fn location(text: &str, file: Option<&str>) -> Option<(String, u32)> {
    let mut places: Vec<(&str, u32)> = Vec::new();
    for line in text.lines().take(MOST_LINES) {
        let line = line.get(..2_000).unwrap_or(line);
        for found in PLACE.captures_iter(line) {
            let path = found.get(1).or_else(|| found.get(3)).map(|path| path.as_str());
            let number = found.get(2).or_else(|| found.get(4)).or_else(|| found.get(5));
            let number = number.and_then(|number| number.as_str().parse().ok()).filter(|number| *number > 0);
            if let (Some(path), Some(number)) = (path, number) {
                let path = relative(path);
                if is_ours(path) {
                    places.push((path, number));
                }
            }
        }
    }
    let own = file.map(relative);
    let in_own = places.iter().filter(|(path, _)| own.is_some_and(|own| own == *path)).collect::<Vec<_>>();
    let python = text.contains("Traceback") || text.lines().any(|line| line.starts_with("E   "));
    let found = if python { in_own.last().copied() } else { in_own.first().copied() };
    let found = found.or_else(|| if python { places.last() } else { places.first() });
    found.map(|(path, number)| ((*path).to_owned(), *number))
}

/// As from the root of the code, which lies in `/app`.
pub fn relative(path: &str) -> &str {
    let path = path.strip_prefix("file://").unwrap_or(path);
    let path = path.strip_prefix("/app/").unwrap_or(path);
    path.strip_prefix("./").unwrap_or(path)
}

fn is_ours(path: &str) -> bool {
    !path.starts_with('/')
        && !path.starts_with("../")
        && !path.contains("://")
        && !FOREIGN.iter().any(|part| path.contains(part))
}
