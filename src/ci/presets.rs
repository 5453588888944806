//! Which test runner a repository uses, and what it takes to split its tests: found from the tree alone.
//!
//! A preset fills in keys of `[tests]` that are not set. It is only taken where `scripts.test` is no more than a call of
//! that runner ([`covers`]), so a script that does other things as well is never replaced by guesswork.

use super::cases::CaseWay;
use crate::domain::FilePatterns;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

#[cfg(test)]
mod tests;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    Pytest,
    Rspec,
    Jest,
    Vitest,
    Mocha,
    GoTest,
    Nextest,
    Phpunit,
}

/// Files whose content [`detect`] asks for, where the tree has them.
pub const READ: [&str; 37] = [
    "package.json",
    ".mocharc.json",
    "jest.config.js",
    "jest.config.ts",
    "jest.config.mjs",
    "jest.config.cjs",
    "jest.config.mts",
    "jest.config.cts",
    "jest.config.json",
    "vitest.config.js",
    "vitest.config.ts",
    "vitest.config.mjs",
    "vitest.config.cjs",
    "vitest.config.mts",
    "vitest.config.cts",
    "vite.config.js",
    "vite.config.ts",
    "vite.config.mjs",
    "vite.config.cjs",
    "vite.config.mts",
    "vite.config.cts",
    "pytest.ini",
    "pyproject.toml",
    "setup.cfg",
    "tox.ini",
    "Pipfile",
    "requirements.txt",
    "requirements-dev.txt",
    "requirements/test.txt",
    "dev-requirements.txt",
    "Gemfile",
    "Gemfile.lock",
    "Cargo.toml",
    ".config/nextest.toml",
    "composer.json",
    "phpunit.xml",
    "phpunit.xml.dist",
];
/// Of a larger file nothing is read, in bytes.
pub const READ_LIMIT: usize = 1 << 20;

/// What is split, and how the runner is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    pub runner: Runner,
    /// `None` where the runner's own settings choose them in a way that is not understood: half of them would pass for
    /// all.
    pub files: Option<FilePatterns>,
    /// With `{files}` and `{junit}` in it, run by a shell.
    pub command: String,
    /// Set for `command`; values may hold `{junit}`.
    pub environment: Vec<(&'static str, &'static str)>,
    /// Where results are, if not where `{junit}` says.
    pub junit: Option<String>,
    pub unit: Unit,
    /// How it is told to run some of a file's test cases, where it can be.
    pub cases: Option<CaseWay>,
    /// The exit status for "no tests in these files", where it has one of its own.
    pub empty_status: Option<i32>,
    /// A package of the app's own that the command needs and the tree doesn't declare: without it there are no results,
    /// so the preset can't be used.
    pub needs: Option<&'static str>,
}

/// What one argument of the runner stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    File,
    /// The folder of the file, as Go's packages are named: `./server/api`.
    Folder,
    /// A target of Cargo: `--test name` of `tests/name.rs`, `--lib`, `--bins`.
    CargoTarget,
}

impl Unit {
    /// The item that a file belongs to, as the runner takes it; `None` where the runner has no argument for it.
    pub fn item(self, path: &str) -> Option<String> {
        match self {
            Unit::File => Some(path.to_owned()),
            Unit::Folder => Some(match path.rsplit_once('/') {
                Some((folder, _)) => format!("./{folder}"),
                None => ".".to_owned(),
            }),
            Unit::CargoTarget => match path {
                "src/lib.rs" => Some("--lib".to_owned()),
                "src/main.rs" => Some("--bins".to_owned()),
                _ => {
                    let inner = path.strip_prefix("tests/")?;
                    let name = inner.strip_suffix("/main.rs").or_else(|| inner.strip_suffix(".rs"))?;
                    (!name.contains('/')).then(|| format!("--test={name}"))
                }
            },
        }
    }
}

/// What is known of a tree: its paths, and the contents of [`READ`].
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    pub paths: &'a BTreeSet<String>,
    pub contents: &'a BTreeMap<String, String>,
}

impl Tree<'_> {
    fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    fn content(&self, path: &str) -> &str {
        self.contents.get(path).map(String::as_str).filter(|text| text.len() <= READ_LIMIT).unwrap_or_default()
    }

    fn any(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.paths.iter().any(|path| wanted(path))
    }

    /// Whether one of the runner's files of settings, those of [`READ`] that begin so, says something or can't be read.
    fn is_told(&self, settings: &str, says: impl Fn(&str) -> bool) -> bool {
        let mut own = READ.into_iter().filter(|path| path.starts_with(settings) && self.has(path));
        // `jest --init` writes every key that there is into a comment of its own.
        let is_said = |line: &&str| !line.trim_start().starts_with("//");
        let said = |text: &String| text.lines().filter(is_said).collect::<Vec<_>>().join("\n");
        own.any(|path| self.contents.get(path).is_none_or(|text| says(&said(text))))
    }

    fn package(&self) -> serde_json::Value {
        serde_json::from_str(self.content("package.json")).unwrap_or_default()
    }

    fn npm(&self, name: &str) -> bool {
        let package = self.package();
        ["dependencies", "devDependencies", "optionalDependencies"]
            .iter()
            .any(|kind| package.get(kind).and_then(|kind| kind.get(name)).is_some())
    }
}

/// The presets that fit, in a fixed order.
pub fn detect(tree: Tree<'_>) -> Vec<Preset> {
    let found =
        [pytest(tree), rspec(tree), vitest(tree), jest(tree), mocha(tree), go(tree), nextest(tree), phpunit(tree)];
    found.into_iter().flatten().collect()
}

/// The preset whose runner is all that `script` calls. `npm test`, `yarn test` and their like are looked up in
/// `package.json`.
pub fn covers(tree: Tree<'_>, presets: &[Preset], script: &str) -> Option<Preset> {
    let script = npm_script(tree, script.trim()).unwrap_or_else(|| script.trim().to_owned());
    presets.iter().find(|preset| is_bare_call(preset.runner, &script)).cloned()
}

static PLAIN_WORDS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[A-Za-z0-9_./=:, @-]+$").expect("it is a pattern"));

/// Neither a second command nor an argument that picks tests.
fn is_bare_call(runner: Runner, script: &str) -> bool {
    if !PLAIN_WORDS.is_match(script) {
        return false;
    }
    let mut words = script.split_whitespace().peekable();
    for prefix in [
        &["bundle", "exec"][..],
        &["npx"],
        &["pnpm", "exec"],
        &["yarn"],
        &["poetry", "run"],
        &["uv", "run"],
        &["pipenv", "run"],
        &["python", "-m"],
        &["python3", "-m"],
    ] {
        let mut ahead = words.clone();
        if prefix.iter().all(|word| ahead.next() == Some(word)) {
            words = ahead;
        }
    }
    let program = words.next().map(|word| word.rsplit('/').next().unwrap_or(word));
    let mut rest: Vec<&str> = words.collect();
    let second: &[&str] = match runner {
        Runner::Vitest => &["run"],
        Runner::GoTest => &["test"],
        Runner::Nextest => &["nextest", "run"],
        _ => &[],
    };
    for word in second {
        if rest.first() == Some(word) {
            rest.remove(0);
        } else if runner != Runner::Vitest {
            return false;
        }
    }
    let name = match runner {
        Runner::Pytest => ["pytest", "py.test"],
        Runner::Rspec => ["rspec", "rspec"],
        Runner::Jest => ["jest", "jest"],
        Runner::Vitest => ["vitest", "vitest"],
        Runner::Mocha => ["mocha", "mocha"],
        Runner::GoTest => ["go", "go"],
        Runner::Nextest => ["cargo", "cargo"],
        Runner::Phpunit => ["phpunit", "phpunit"],
    };
    // Options that only change what is printed; anything else could pick tests or set them up.
    let harmless = |word: &&str| {
        matches!(
            *word,
            "-q" | "-v"
                | "-vv"
                | "--verbose"
                | "--quiet"
                | "--ci"
                | "--color"
                | "--colors"
                | "--no-color"
                | "--color=yes"
                | "--color=always"
                | "--colors=always"
                | "./..."
        )
    };
    program.is_some_and(|program| name.contains(&program)) && rest.iter().all(harmless)
}

fn npm_script(tree: Tree<'_>, script: &str) -> Option<String> {
    let called = ["npm test", "npm t", "npm run test", "yarn test", "yarn run test", "pnpm test", "pnpm run test"];
    called.contains(&script).then(|| {
        let package = tree.package();
        let own = package.get("scripts").and_then(|scripts| scripts.get("test")).and_then(|test| test.as_str());
        own.unwrap_or_default().trim().to_owned()
    })
}

/// The items of a tree: what a list of patterns matches, as the runner takes it.
pub fn items(paths: &BTreeSet<String>, patterns: &FilePatterns, unit: Unit) -> BTreeSet<String> {
    let set = |patterns: &[String]| {
        let mut builder = globset::GlobSetBuilder::new();
        for pattern in patterns {
            // Patterns were checked when they were read; one that can't be used matches nothing.
            if let Ok(glob) = globset::GlobBuilder::new(pattern).literal_separator(true).build() {
                builder.add(glob);
            }
        }
        builder.build().unwrap_or_else(|_| globset::GlobSet::empty())
    };
    let (of, except) = (set(&patterns.of), set(&patterns.except));
    let chosen = paths.iter().filter(|path| of.is_match(path.as_str()) && !except.is_match(path.as_str()));
    chosen.filter_map(|path| unit.item(path)).collect()
}

fn patterns(of: &[&str], except: &[&str]) -> FilePatterns {
    let owned = |list: &[&str]| list.iter().map(|pattern| (*pattern).to_owned()).collect();
    FilePatterns { of: owned(of), except: owned(except) }
}

fn preset(runner: Runner, files: impl Into<Option<FilePatterns>>, command: &str) -> Preset {
    Preset {
        runner,
        files: files.into(),
        command: command.to_owned(),
        environment: Vec::new(),
        junit: None,
        unit: Unit::File,
        cases: None,
        empty_status: None,
        needs: None,
    }
}

fn pytest(tree: Tree<'_>) -> Option<Preset> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)\bpytest\b").expect("it is a pattern"));
    let declares = [
        "requirements.txt",
        "requirements-dev.txt",
        "requirements/test.txt",
        "dev-requirements.txt",
        "pyproject.toml",
        "Pipfile",
        "setup.cfg",
        "tox.ini",
    ];
    let named = declares.iter().any(|path| NAMED.is_match(tree.content(path)));
    let conftest = tree.any(|path| path == "conftest.py" || path.ends_with("/conftest.py"));
    if !(tree.has("pytest.ini") || conftest || named) {
        return None;
    }
    let (folders, names) = pytest_settings(tree);
    let folders = if folders.is_empty() { vec![String::new()] } else { folders };
    let of: Vec<String> = folders
        .iter()
        .flat_map(|folder| {
            let below = if folder.is_empty() { String::new() } else { format!("{}/", folder.trim_end_matches('/')) };
            names.iter().map(move |name| format!("{below}**/{name}"))
        })
        .collect();
    let except = ["**/node_modules/**", "**/.venv/**", "**/venv/**", "**/build/**", "**/dist/**", "**/.*/**"];
    let files = FilePatterns { of, except: except.map(str::to_owned).to_vec() };
    // The older family names file and line of each case.
    let command = "pytest {files} --junitxml={junit} -o junit_family=xunit1";
    Some(Preset { cases: Some(CaseWay::Pytest), empty_status: Some(5), ..preset(Runner::Pytest, files, command) })
}

/// `testpaths` and `python_files`, from the first file that has a section for pytest.
fn pytest_settings(tree: Tree<'_>) -> (Vec<String>, Vec<String>) {
    let default = || vec!["test_*.py".to_owned(), "*_test.py".to_owned()];
    let plain = |pattern: &String| !pattern.starts_with('/') && !pattern.contains("..") && !pattern.is_empty();
    let words =
        |text: &str| text.split([' ', '\n', '\t', ',']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    for (path, section) in [("pytest.ini", "pytest"), ("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")] {
        let Some(keys) = ini_section(tree.content(path), section) else { continue };
        let list = |key: &str| keys.get(key).map(|text| words(text)).unwrap_or_default();
        let (folders, names): (Vec<String>, Vec<String>) = (list("testpaths"), list("python_files"));
        let names = if names.is_empty() { default() } else { names };
        return (folders.into_iter().filter(plain).collect(), names.into_iter().filter(plain).collect());
    }
    let project: toml::Table = tree.content("pyproject.toml").parse().unwrap_or_default();
    let options = project.get("tool").and_then(|tool| tool.get("pytest")).and_then(|pytest| pytest.get("ini_options"));
    let list = |key: &str| -> Vec<String> {
        match options.and_then(|options| options.get(key)) {
            Some(toml::Value::String(text)) => words(text),
            Some(toml::Value::Array(all)) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    };
    let names = list("python_files");
    let names = if names.is_empty() { default() } else { names };
    (list("testpaths").into_iter().filter(plain).collect(), names.into_iter().filter(plain).collect())
}

/// Keys of one section, with their continued lines.
fn ini_section(text: &str, section: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let (mut inside, mut last) = (false, None::<String>);
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == section;
            last = None;
            if inside {
                found.get_or_insert_default();
            }
        } else if let (true, Some(keys)) = (inside, found.as_mut()) {
            if line.starts_with([' ', '\t'])
                && let Some(value) = last.as_ref().and_then(|last| keys.get_mut(last))
            {
                value.push(' ');
                value.push_str(trimmed);
            } else if let Some((key, value)) = trimmed.split_once('=') {
                last = Some(key.trim().to_owned());
                keys.insert(key.trim().to_owned(), value.trim().to_owned());
            }
        }
    }
    found
}

fn rspec(tree: Tree<'_>) -> Option<Preset> {
    let gems = format!("{}\n{}", tree.content("Gemfile"), tree.content("Gemfile.lock"));
    let specs = tree.any(|path| path.starts_with("spec/") && path.ends_with("_spec.rb"));
    if !specs || !(tree.has(".rspec") || gems.contains("rspec")) {
        return None;
    }
    let command = if tree.has("Gemfile") { "bundle exec rspec" } else { "rspec" };
    let command = format!("{command} --format progress --format RspecJunitFormatter --out {{junit}} {{files}}");
    let needs = (!gems.contains("rspec_junit_formatter")).then_some("rspec_junit_formatter");
    Some(Preset {
        cases: Some(CaseWay::Rspec),
        needs,
        ..preset(Runner::Rspec, patterns(&["spec/**/*_spec.rb"], &[]), &command)
    })
}

const SCRIPTS: &str = "{js,jsx,ts,tsx,mjs,cjs,mts,cts}";

fn vitest(tree: Tree<'_>) -> Option<Preset> {
    let workspace = tree.any(|path| path.starts_with("vitest.workspace."));
    let configured = workspace || tree.any(|path| path.starts_with("vitest.config."));
    if !(configured || tree.npm("vitest")) {
        return None;
    }
    let told =
        workspace || tree.is_told("vitest.config.", vitest_chooses) || tree.is_told("vite.config.", vitest_chooses);
    let named = format!("**/*.{{test,spec}}.{SCRIPTS}");
    let files = patterns(&[&named], &["**/node_modules/**", "**/dist/**", "**/cypress/**", "**/.*/**"]);
    let command = "npx vitest run --reporter=default --reporter=junit --outputFile.junit={junit} {files}";
    Some(Preset { cases: Some(CaseWay::Vitest), ..preset(Runner::Vitest, (!told).then_some(files), command) })
}

/// Whether settings of Vite or Vitest say which files are tests, or where they are. Other parts of them, such as those for
/// coverage, have keys of the same names.
fn vitest_chooses(text: &str) -> bool {
    static OBJECTS: LazyLock<Regex> = LazyLock::new(|| {
        let begins = r#"(\btest["']?\s*:|\bdefineConfig\s*\(|\bexport\s+default\b|\bmodule\.exports\s*=)[^{;]*\{"#;
        Regex::new(begins).expect("it is a pattern")
    });
    static TESTS: LazyLock<Regex> = LazyLock::new(|| {
        let keys = r#"\b(include|includeSource|exclude|dir|root|projects|workspace)["']?\s*([:,]|$)|\.\.\."#;
        Regex::new(keys).expect("it is a pattern")
    });
    static ROOT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"\broot["']?\s*([:,]|$)"#).expect("it is a pattern"));
    OBJECTS.find_iter(text).any(|found| {
        let keys = if found.as_str().starts_with("test") { &TESTS } else { &ROOT };
        keys.is_match(own_part(&text[found.end()..]).trim_end())
    })
}

/// What stands in an object itself, from behind its opening brace to its end: not what is inside of its values.
fn own_part(text: &str) -> String {
    let (mut own, mut depth, mut quote, mut escaped) = (String::new(), 0_u32, None, false);
    for letter in text.chars() {
        match (quote, letter) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), close) if open == close => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"' | '`') => quote = Some(letter),
            (None, '{' | '[' | '(') => depth += 1,
            (None, '}' | ']' | ')') if depth == 0 => break,
            (None, '}' | ']' | ')') => depth -= 1,
            (None, _) => {}
        }
        if depth == 0 {
            own.push(letter);
        }
    }
    own
}

fn jest(tree: Tree<'_>) -> Option<Preset> {
    let configured = tree.any(|path| path.starts_with("jest.config."));
    // Create React App brings Jest along.
    if !(configured || tree.npm("jest") || tree.package().get("jest").is_some()) {
        return None;
    }
    let needs = (!tree.npm("jest-junit")).then_some("jest-junit");
    let command = "npx jest --ci --reporters=default --reporters=jest-junit --runTestsByPath {files}";
    let environment = vec![("JEST_JUNIT_OUTPUT_FILE", "{junit}"), ("JEST_JUNIT_ADD_FILE_ATTRIBUTE", "true")];
    Some(Preset { environment, needs, cases: Some(CaseWay::Jest), ..preset(Runner::Jest, jest_files(tree), command) })
}

/// Jest's default, or what `testMatch` in `package.json` says.
fn jest_files(tree: Tree<'_>) -> Option<FilePatterns> {
    const KEYS: [&str; 6] = ["testMatch", "testRegex", "testPathIgnorePatterns", "projects", "roots", "rootDir"];
    static CHOOSES: LazyLock<Regex> =
        // Not `<rootDir>`, which stands in values of all kinds.
        LazyLock::new(|| Regex::new(&format!(r"(^|[^<\w])({})\b", KEYS.join("|"))).expect("it is a pattern"));
    if tree.is_told("jest.config.", |text| CHOOSES.is_match(text)) {
        return None;
    }
    let package = tree.package();
    let settings = package.get("jest");
    let says = |key: &&str| settings.and_then(|settings| settings.get(key)).is_some();
    if KEYS.iter().filter(|key| **key != "testMatch").any(says) {
        return None;
    }
    let of = match settings.and_then(|settings| settings.get("testMatch")) {
        None => vec![
            format!("**/__tests__/**/*.{SCRIPTS}"),
            format!("**/*.{{test,spec}}.{SCRIPTS}"),
            format!("**/{{test,spec}}.{SCRIPTS}"),
        ],
        Some(own) => plain_patterns(own)?,
    };
    Some(FilePatterns { of, except: vec!["**/node_modules/**".to_owned()] })
}

/// Patterns below the root; `None` where one of them says more than a pattern of ours can.
fn plain_patterns(own: &serde_json::Value) -> Option<Vec<String>> {
    let plain = |one: &serde_json::Value| {
        let pattern = one.as_str()?.trim_start_matches("<rootDir>/");
        let is_plain = !pattern.starts_with(['/', '!']) && !pattern.contains("..") && !pattern.contains('(');
        is_plain.then(|| pattern.to_owned())
    };
    own.as_array()?.iter().map(plain).collect()
}

fn mocha(tree: Tree<'_>) -> Option<Preset> {
    if !(tree.npm("mocha") || tree.any(|path| path.starts_with(".mocharc."))) {
        return None;
    }
    let command = "npx mocha --reporter xunit --reporter-option output={junit} {files}";
    Some(preset(Runner::Mocha, mocha_files(tree), command))
}

/// Mocha's default, in the folders below as well where its settings say so.
fn mocha_files(tree: Tree<'_>) -> Option<FilePatterns> {
    if tree.any(|path| path.starts_with(".mocharc.") && path != ".mocharc.json") {
        return None;
    }
    let mut settings: Vec<serde_json::Value> = Vec::new();
    if tree.has(".mocharc.json") {
        settings.push(serde_json::from_str(tree.content(".mocharc.json")).ok()?);
    }
    // Where both say something, the file does.
    settings.extend(tree.package().get("mocha").cloned());
    let says = |key: &str| settings.iter().find_map(|settings| settings.get(key));
    // What `spec` names it runs besides the files that it is given.
    if ["spec", "extension", "ignore", "exclude", "extends"].into_iter().any(|key| says(key).is_some()) {
        return None;
    }
    // It looks into `test` itself only, unless it is told otherwise.
    Some(match says("recursive").and_then(serde_json::Value::as_bool) {
        Some(true) => patterns(&["test/**/*.{js,cjs,mjs}"], &[]),
        _ => patterns(&["test/*.{js,cjs,mjs}", "test/**/*.{test,spec}.{js,cjs,mjs}"], &[]),
    })
}

fn go(tree: Tree<'_>) -> Option<Preset> {
    if !tree.has("go.mod") || !tree.any(|path| path.ends_with("_test.go")) {
        return None;
    }
    let files = patterns(&["**/*_test.go"], &["**/testdata/**", "**/_*/**", "**/.*/**", "vendor/**"]);
    let command = "gotestsum --junitfile {junit} --format standard-verbose -- {files}";
    Some(Preset { unit: Unit::Folder, ..preset(Runner::GoTest, files, command) })
}

fn nextest(tree: Tree<'_>) -> Option<Preset> {
    let cargo: toml::Table = tree.content("Cargo.toml").parse().unwrap_or_default();
    let config: toml::Table = tree.content(".config/nextest.toml").parse().unwrap_or_default();
    let profiles = config.get("profile").and_then(|profiles| profiles.as_table())?;
    // Nextest writes results only for a profile that says where.
    let written = |(name, profile): (&String, &toml::Value)| {
        let path = profile.get("junit")?.get("path")?.as_str()?;
        Some((name.clone(), format!("target/nextest/{name}/{path}")))
    };
    let (profile, junit) =
        profiles.iter().filter(|(name, _)| *name == "ci").chain(profiles.iter()).find_map(written)?;
    let plain = |text: &str| {
        text.chars().all(|one| one.is_ascii_alphanumeric() || "-_./".contains(one)) && !text.contains("..")
    };
    if !cargo.contains_key("package") || !plain(&profile) || !plain(&junit) {
        return None;
    }
    let files = patterns(&["tests/*.rs", "tests/*/main.rs", "src/lib.rs", "src/main.rs"], &[]);
    let command = format!("cargo nextest run --no-fail-fast --no-tests=pass --profile {profile} {{files}}");
    Some(Preset { junit: Some(junit), unit: Unit::CargoTarget, ..preset(Runner::Nextest, files, &command) })
}

fn phpunit(tree: Tree<'_>) -> Option<Preset> {
    static FOLDER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"<directory[^>]*>\s*([\w./-]+)\s*</directory>").expect("it is a pattern"));
    let composer: serde_json::Value = serde_json::from_str(tree.content("composer.json")).unwrap_or_default();
    let required = ["require", "require-dev"]
        .iter()
        .any(|kind| composer.get(kind).and_then(|kind| kind.get("phpunit/phpunit")).is_some());
    let settings =
        [tree.content("phpunit.xml"), tree.content("phpunit.xml.dist")].into_iter().find(|text| !text.is_empty());
    if !(required || tree.has("phpunit.xml") || tree.has("phpunit.xml.dist")) {
        return None;
    }
    // Only folders of suites: those of the sources stand in other elements.
    let suites =
        settings.and_then(|text| text.split("<testsuites").nth(1)).and_then(|text| text.split("</testsuites").next());
    let mut of: Vec<String> = FOLDER
        .captures_iter(suites.unwrap_or_default())
        .map(|found| found[1].trim_start_matches("./").trim_end_matches('/').to_owned())
        .filter(|folder| !folder.starts_with('/') && !folder.contains(".."))
        .map(|folder| format!("{folder}/**/*Test.php"))
        .collect();
    if of.is_empty() {
        of.push("tests/**/*Test.php".to_owned());
    }
    // It takes one file at a time in all of its versions.
    let command = "status=0; number=0; for file in {files}; do number=$((number + 1)); vendor/bin/phpunit --log-junit {junit}.$number.xml \"$file\" || status=$?; done; exit $status";
    Some(preset(Runner::Phpunit, FilePatterns { of, except: Vec::new() }, command))
}
