//! Who may import whom, and which names only one module may say. The tables below are the rule; everything that
//! breaks it is printed with its place.
//!
//! Sources are read as text: comments, literals and test code are taken out first.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Module → what it may import of ours. `domain` and `clock` know nothing else of ours; each line below may import
/// only from lines above it.
const LAYERS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("domain", &["clock"]),
    ("outside", &[]),
    ("ci", &["domain", "clock"]),
    ("node", &["domain", "ci"]),
    ("workflow", &["domain", "ci", "clock"]),
    ("text", &["domain"]),
    ("vault", &["domain"]),
    ("config", &["domain"]),
    ("store", &["domain", "clock"]),
    ("github", &["domain", "clock", "outside"]),
    ("platform", &["domain", "clock"]),
    ("slug", &["domain", "platform", "clock"]),
    ("router", &["domain", "clock"]),
    ("acme", &["clock"]),
    ("addons", &["domain", "outside"]),
    ("meters", &["domain", "clock"]),
    ("figures", &["clock"]),
    ("drains", &["domain", "clock"]),
    (
        "reconcile",
        &[
            "domain", "ci", "workflow", "clock", "outside", "text", "vault", "config", "store", "github", "platform",
            "slug", "router", "addons", "meters", "figures", "drains",
        ],
    ),
    (
        "web",
        &[
            "domain",
            "clock",
            "store",
            "github",
            "reconcile",
            "text",
            "config",
            "platform",
            "router",
            "workflow",
            "meters",
            "figures",
            "drains",
        ],
    ),
    // The simulated GitHub shares nothing with us, so both sides of the wire cannot share a mistake.
    ("sim", &[]),
    // The composition root puts everything together, but for the faces that start it.
    (
        "server",
        &[
            "domain",
            "clock",
            "outside",
            "text",
            "vault",
            "config",
            "store",
            "github",
            "platform",
            "slug",
            "router",
            "acme",
            "meters",
            "drains",
            "reconcile",
            "web",
        ],
    ),
    ("demo", &["domain", "config", "github", "reconcile", "web", "server", "sim"]),
    (
        "cli",
        &[
            "domain", "clock", "ci", "text", "config", "store", "github", "platform", "slug", "router", "node", "web",
            "server", "sim", "demo",
        ],
    ),
];

/// Of a module that may be imported, the only parts that this one may: `(importer, imported, first words)`.
const PARTS: &[(&str, &str, &[&str])] = &[
    // The pages never call GitHub: the intake checks signatures and reads payloads.
    ("web", "github", &["signature", "payload", "event", "Envelope", "WebhookSecrets"]),
    ("demo", "github", &["install_crypto_provider"]),
    ("cli", "github", &["install_crypto_provider"]),
    ("cli", "ci", &["wire"]),
    ("cli", "slug", &["ArchiveLimits", "pack_with_toolchains"]),
];

/// A name, where it may stand (a module, or a file below `src/`), and why there.
struct Reserved {
    names: &'static [&'static str],
    places: &'static [(&'static str, &'static str)],
}

const RESERVED: &[Reserved] = &[
    Reserved { names: &["sled::"], places: &[("store", "the index over the journal")] },
    Reserved { names: &["octocrab::"], places: &[("github", "GitHub's wire")] },
    Reserved { names: &["hyper::"], places: &[("router", "the proxy")] },
    Reserved { names: &["instant_acme", "rcgen"], places: &[("acme", "certificates of custom domains")] },
    Reserved {
        names: &["bwrap"],
        places: &[
            ("platform", "the sandbox"),
            ("node/descendants.rs", "knows by it that it is in a sandbox of its own"),
        ],
    },
    Reserved {
        names: &["actix_web::"],
        places: &[
            ("web", "pages and intake"),
            ("server.rs", "holds the handle that ends the web server"),
            ("sim", "is a web server of its own"),
        ],
    },
    Reserved {
        names: &["reqwest::"],
        places: &[
            ("demo", "looks as a person's browser would"),
            ("cli", "asks the control plane"),
            ("sim", "sends webhooks"),
            ("addons", "asks partners for add-ons"),
            ("drains", "sends log lines"),
            ("reconcile/mod.rs", "holds the client for partners"),
            ("server.rs", "makes that client"),
        ],
    },
    Reserved { names: &["tokio_postgres", "postgres_protocol"], places: &[("addons", "makes roles and databases")] },
    Reserved {
        names: &["process::Command", "std::process::{", "tokio::process::"],
        places: &[
            ("platform", "starts supervisors and sandboxes"),
            ("node", "runs test commands, inside the sandbox"),
            ("slug", "runs git"),
            ("sim", "runs git, and may import nothing of ours that could"),
        ],
    },
    Reserved {
        names: &["\"-c\"", "sh -c"],
        places: &[
            ("platform", "an app's command, inside the sandbox"),
            ("slug", "git's settings; the words that launch a process, inside the sandbox"),
            ("sim", "git's settings"),
            ("addons", "PostgreSQL's settings on its own command line, inside the sandbox"),
        ],
    },
    Reserved {
        names: &["SystemTime::now", "UNIX_EPOCH.elapsed"],
        places: &[("clock.rs", "is the wall clock"), ("sim", "has a clock of its own")],
    },
    Reserved {
        // Not a wall clock: only good for measuring how long something takes.
        names: &["Instant::now"],
        places: &[
            ("platform", "graces and limits of processes, which must not follow a clock that somebody sets"),
            ("slug", "limits of git's work"),
            ("router", "what a request took, and how long a target is waited for"),
            ("github", "the time between two writes, and what a call took"),
            ("node", "limits and heartbeats of test commands"),
            ("sim", "what a call took"),
            ("demo", "what a step took"),
        ],
    },
    Reserved {
        names: &["env::var"],
        places: &[
            ("config.rs", "reads the environment for all"),
            ("node/mod.rs", "knows by their names the values that no report may show"),
        ],
    },
    Reserved {
        names: &["SystemRandom", "getrandom", "thread_rng"],
        places: &[
            ("vault.rs", "keys, nonces and generated secrets"),
            ("router", "numbers of requests"),
            ("github", "signs with the app's key"),
            ("sim", "makes tokens"),
        ],
    },
];

/// `workflow` and `ci` decide; they neither wait, ask nor look (invariant 2).
const PURE: &[&str] = &["workflow", "ci", "domain"];
const IMPURE: &[&str] =
    &["async ", ".await", "tokio::", "std::fs", "std::net", "std::process", "std::thread", "std::env", "std::io"];

struct Source {
    /// Below `src/`, such as `store/index.rs`.
    path: String,
    module: String,
    raw: String,
    /// Without comments, literals and test code; as many lines as the file has.
    code: String,
    /// As `code`, but with literals.
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> &'static [Source] {
    static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(read_sources);
    &SOURCES
}

fn read_sources() -> Vec<Source> {
    let folder = root().join("src");
    let mut paths = Vec::new();
    collect(&folder, &mut paths);
    paths.sort();
    assert!(paths.len() > 50, "only {} sources were found in {}", paths.len(), folder.display());
    let read = |path: PathBuf| {
        let raw = std::fs::read_to_string(&path).expect("a source can be read");
        let path = path.strip_prefix(&folder).expect("below src").to_string_lossy().into_owned();
        let first = path.split('/').next().expect("a path has parts");
        let module = first.trim_end_matches(".rs").to_owned();
        let (code, text) = (strip(&raw, false), strip(&raw, true));
        Source { module, code, text, raw, path }
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Files that are compiled for tests only.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"))
}

/// Blanks comments, and literals unless they are kept, and everything from a `#[cfg(test)]` module on.
fn strip(raw: &str, keep_literals: bool) -> String {
    let end = raw.find("#[cfg(test)]\nmod tests {").unwrap_or(raw.len());
    let characters: Vec<char> = raw[..end].chars().collect();
    let mut code = String::with_capacity(raw.len());
    let mut at = 0;
    let blank = |character: char| if character == '\n' { '\n' } else { ' ' };
    while at < characters.len() {
        let rest = &characters[at..];
        let length = if starts(rest, "//") {
            rest.iter().position(|&character| character == '\n').unwrap_or(rest.len())
        } else if starts(rest, "/*") {
            (2..rest.len()).find(|&n| rest[n - 1] == '*' && rest[n] == '/').map_or(rest.len(), |n| n + 1)
        } else if let Some(length) = literal(rest, at.checked_sub(1).map(|before| characters[before])) {
            if keep_literals {
                code.extend(&rest[..length]);
                at += length;
                continue;
            }
            length
        } else {
            code.push(rest[0]);
            at += 1;
            continue;
        };
        code.extend(rest[..length].iter().map(|&character| blank(character)));
        at += length;
    }
    code
}

fn starts(rest: &[char], with: &str) -> bool {
    with.chars().enumerate().all(|(place, character)| rest.get(place) == Some(&character))
}

/// The length of the string or character literal that begins here.
fn literal(rest: &[char], before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|character| character.is_alphanumeric() || character == '_');
    if rest[0] == 'r' && !in_word {
        let hashes = rest[1..].iter().take_while(|&&character| character == '#').count();
        if rest.get(1 + hashes) == Some(&'"') {
            let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            let body = 2 + hashes;
            let length = rest[body..].windows(close.len()).position(|window| window == close);
            return Some(length.map_or(rest.len(), |length| body + length + close.len()));
        }
    }
    if rest[0] == '"' {
        let mut at = 1;
        while at < rest.len() && rest[at] != '"' {
            at += if rest[at] == '\\' { 2 } else { 1 };
        }
        return Some((at + 1).min(rest.len()));
    }
    // A lifetime has no closing quote.
    if rest[0] == '\'' {
        if rest.get(1) == Some(&'\\') {
            return (3..rest.len().min(14)).find(|&n| rest[n] == '\'').map(|n| n + 1);
        }
        if rest.get(2) == Some(&'\'') {
            return Some(3);
        }
    }
    None
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// What is imported of ours, as `(module, the words after it, place in the text)`: `crate::a::b`, and each branch of
/// `crate::{a::b, c}`.
fn imports(code: &str) -> Vec<(String, String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let word_before = code[..at].chars().next_back().is_some_and(|character| character.is_alphanumeric());
        // `$crate` of a macro is this crate too.
        if word_before {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            for branch in branches(list) {
                found.push((word(&branch), after_word(&branch), at));
            }
        } else {
            found.push((word(rest), after_word(rest), at));
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// The path that follows the first word, up to where it ends; of a list in braces the whole list.
fn after_word(text: &str) -> String {
    let rest = text.trim_start();
    let rest = &rest[word(rest).len()..];
    let Some(rest) = rest.strip_prefix("::") else { return String::new() };
    match rest.strip_prefix('{') {
        Some(list) => branches(list).join(","),
        None => word(rest),
    }
}

/// The parts of a list in braces, whose opening brace is gone.
fn branches(list: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for character in list.chars() {
        match character {
            '}' if depth == 0 => break,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        parts.last_mut().expect("there is one").push(character);
    }
    parts.iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn report(complaints: &[String]) {
    let mut all = String::new();
    for complaint in complaints {
        writeln!(all, "{complaint}").expect("a string takes all");
    }
    assert!(complaints.is_empty(), "{} places break a rule:\n{all}", complaints.len());
}

#[test]
fn every_module_imports_only_what_it_may() {
    let mut complaints = Vec::new();
    let known: BTreeSet<&str> = LAYERS.iter().map(|(module, _)| *module).collect();
    for source in sources() {
        // The map and the program's first line.
        if ["lib", "main"].contains(&source.module.as_str()) {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(module, _)| *module == source.module) else {
            complaints.push(format!("src/{}:1: the module `{}` is in no layer", source.path, source.module));
            continue;
        };
        if is_test(&source.path) {
            continue;
        }
        for (module, rest, at) in imports(&source.code) {
            let place = format!("src/{}:{}", source.path, line_of(&source.code, at));
            if module == source.module {
                continue;
            }
            if !known.contains(module.as_str()) {
                complaints.push(format!("{place}: `crate::{module}` is no module of the table"));
            } else if !allowed.contains(&module.as_str()) {
                complaints.push(format!("{place}: {} may not import {module}", source.module));
            }
            let part = PARTS.iter().find(|(from, of, _)| *from == source.module && *of == module);
            if let Some((from, of, parts)) = part {
                for name in rest.split(',').map(word) {
                    if !parts.contains(&name.as_str()) {
                        complaints.push(format!("{place}: {from} may not import {of}::{name}"));
                    }
                }
            }
        }
    }
    report(&complaints);
}

#[test]
fn the_layers_have_no_circle() {
    let mut complaints = Vec::new();
    for (place, (module, allowed)) in LAYERS.iter().enumerate() {
        for imported in *allowed {
            if !LAYERS[..place].iter().any(|(above, _)| above == imported) {
                complaints.push(format!("{module} may import {imported}, which does not stand above it"));
            }
        }
    }
    report(&complaints);
}

#[test]
fn reserved_names_stand_only_in_their_place() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !is_test(&source.path)) {
        for rule in RESERVED {
            if rule.places.iter().any(|(place, _)| *place == source.module || *place == source.path) {
                continue;
            }
            for name in rule.names {
                // What is quoted can only be found with its quotes.
                let searched = if name.contains(['"', ' ']) { &source.text } else { &source.code };
                for (at, _) in searched.match_indices(name) {
                    if *name == "std::process::{"
                        && !searched[at..].split(['}', ';']).next().unwrap_or("").contains("Command")
                    {
                        continue;
                    }
                    let places: Vec<&str> = rule.places.iter().map(|(place, _)| *place).collect();
                    let line = line_of(searched, at);
                    complaints.push(format!(
                        "src/{}:{line}: `{name}` may only stand in {}",
                        source.path,
                        places.join(", ")
                    ));
                }
            }
        }
    }
    report(&complaints);
}

/// The crash test (`crash.rs`) can only kill the control plane at calls that say so.
#[test]
fn every_effect_crosses_the_line_where_the_crash_test_kills() {
    const EFFECTS: &[&str] = &[
        "platform.start(",
        "platform.stop(",
        "platform.remove(",
        "platform.publish(",
        "router.set(",
        "source.fetch(",
        "source.check_out(",
        "= provision(",
        "= deprovision(",
        "http.post(",
    ];
    let mut complaints = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| source.module == "reconcile" && !is_test(&source.path)) {
        let lines: Vec<&str> = source.code.lines().collect();
        for (place, line) in lines.iter().enumerate() {
            let Some(effect) = EFFECTS.iter().find(|effect| line.contains(**effect)) else { continue };
            seen += 1;
            let crosses = lines[place.saturating_sub(2)..place].iter().any(|line| line.contains("outside::point("));
            if !crosses {
                complaints.push(format!(
                    "src/{}:{}: no outside::point right before `{effect}`",
                    source.path,
                    place + 1
                ));
            }
        }
    }
    report(&complaints);
    assert!(seen >= EFFECTS.len(), "only {seen} effects were found: are they called by other names now?");
}

#[test]
fn what_decides_is_pure() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| PURE.contains(&source.module.as_str()) && !is_test(&source.path)) {
        for name in IMPURE {
            for (at, _) in source.code.match_indices(name) {
                complaints.push(format!(
                    "src/{}:{}: `{}` is not pure",
                    source.path,
                    line_of(&source.code, at),
                    name.trim()
                ));
            }
        }
    }
    report(&complaints);
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (at, _) in source.text.match_indices("allow(") {
            let attribute = source.text[..at].ends_with("#[") || source.text[..at].ends_with("#![");
            if attribute {
                let line = line_of(&source.text, at);
                complaints.push(format!("src/{}:{line}: write #[expect(…, reason = \"…\")]", source.path));
            }
        }
        for (at, _) in source.text.match_indices("#[expect(") {
            let attribute = source.text[at..].split(")]").next().unwrap_or_default();
            if !attribute.contains("reason") {
                complaints.push(format!(
                    "src/{}:{}: an expectation without a reason",
                    source.path,
                    line_of(&source.text, at)
                ));
            }
        }
    }
    report(&complaints);
}

#[test]
fn every_file_opens_with_why_it_is_there() {
    let missing: Vec<String> = sources()
        .iter()
        .filter(|source| !source.raw.starts_with("//!"))
        .map(|source| format!("src/{}:1: does not open with `//!`", source.path))
        .collect();
    report(&missing);
}

/// The detectors detect, or the tests above would be silent for ever.
#[test]
fn what_breaks_a_rule_is_seen() {
    let code = strip(
        "use crate::{store::Store, web};\n// crate::demo\nlet a = \"crate::cli\"; let b = r#\"crate::sim\"#; let c = '\"';\n\
         fn f<'a>(x: &'a str) { crate::github::signature::check(); }\n/* crate::ci */ use crate::github::{self, Event};\n\
         #[cfg(test)]\nmod tests { use crate::vault; }\n",
        false,
    );
    let found: Vec<(String, String, usize)> =
        imports(&code).into_iter().map(|(module, rest, at)| (module, rest, line_of(&code, at))).collect();
    let expected = [("store", "Store", 1), ("web", "", 1), ("github", "signature", 4), ("github", "self,Event", 5)];
    assert_eq!(found, expected.map(|(module, rest, line)| (module.to_owned(), rest.to_owned(), line)));
}
