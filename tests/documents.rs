//! README and docs promise only what is shown: each test and each step of the demo that they name is there.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<(PathBuf, String)> {
    let docs = std::fs::read_dir(root().join("docs")).expect("docs can be read");
    let docs =
        docs.map(|entry| entry.expect("an entry").path()).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let all = std::iter::once(root().join("README.md")).chain(docs);
    all.map(|path| (path.clone(), std::fs::read_to_string(path).expect("a document can be read"))).collect()
}

fn code(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            code(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a source can be read"));
        }
    }
}

/// What stands between `open` and `close`, each with its line.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (line, mut rest) in text.lines().enumerate() {
        while let Some((inside, after)) = rest.split_once(open).and_then(|(_, rest)| rest.split_once(close)) {
            found.push((line + 1, inside));
            rest = after;
        }
    }
    found
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let mut all = String::new();
    code(&root().join("src"), &mut all);
    code(&root().join("tests"), &mut all);
    let (mut named, mut missing) = (0, Vec::new());
    for (path, text) in documents() {
        for (line, name) in between(&text, "`", '`') {
            let is_test = name.matches('_').count() >= 3
                && name
                    .chars()
                    .all(|character| character.is_ascii_lowercase() || character == '_' || character.is_ascii_digit());
            if is_test {
                named += 1;
                if !all.contains(&format!("fn {name}(")) {
                    missing.push(format!("{}:{line}: {name}", path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no test has these names:\n{}", missing.join("\n"));
    assert!(named > 20, "only {named} names of tests were found");
}

#[test]
fn every_step_of_the_demo_that_the_documents_name_is_there() {
    let story = std::fs::read_to_string(root().join("src/demo/story.rs")).expect("the story can be read");
    let (mut named, mut missing) = (0, Vec::new());
    for (path, text) in documents() {
        for (line, step) in between(&text, "demo: \"", '"') {
            named += 1;
            if !story.contains(&format!("\"{step}\"")) {
                missing.push(format!("{}:{line}: {step}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "the demo has no such steps:\n{}", missing.join("\n"));
    assert!(named > 5, "only {named} steps were found");
}
