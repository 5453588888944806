//! Real test runners, each with a small project that sets none of the keys of `[tests]`: it is found out how to run it, its
//! files are dealt to two nodes, and the verdict is right, of a suite that does not even load as well.
//!
//! pytest, RSpec, Go and PHPUnit come with the system's packages (`script/test` installs them); those of npm are in
//! `script/try-runners`, since they need its registry.

use crate::support::machine::Machine;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A project that is tested by this command on two nodes.
fn project(command: &str, files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let manifest = json!({
        "buildpacks": [{ "url": "procfile" }],
        "environments": { "test": { "formation": { "test": { "quantity": 2 } }, "scripts": { "test": command } } },
    });
    let own = [("Procfile", "worker: sleep 60\n".to_owned()), ("app.json", manifest.to_string())];
    let given = files.iter().map(|(path, text)| (*path, (*text).to_owned()));
    own.into_iter().chain(given).map(|(path, text)| (path.to_owned(), text)).collect()
}

/// What a run is to come to: tests passed and failed, and the files that are red with why.
async fn comes_to(machine: &Machine, run: u64, passed: u64, failed: u64, red: &[(&str, &str)]) -> Value {
    let run = machine.verdict(run).await;
    assert_eq!(run["verdict"]["kind"], if red.is_empty() { "passed" } else { "failed" }, "{run:#}");
    let counts = (&run["counts"]["passed"], &run["counts"]["failed"]);
    assert_eq!(counts, (&passed.into(), &failed.into()), "{run:#}");
    assert_eq!(run["nodes"], 2, "{run:#}");
    let red: Vec<Value> = red.iter().map(|(path, why)| json!({ "path": path, "why": why, "on_base": false })).collect();
    assert_eq!(run["split"]["red_files"], json!(red), "{run:#}");
    run
}

fn has(program: &str) -> bool {
    let there = Path::new(program).exists();
    if !there {
        eprintln!("not tried: there is no {program} (script/test installs it)");
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_tested_by_pytest_is_dealt_without_a_key_and_one_long_file_is_cut_by_its_cases() {
    if !has("/usr/bin/pytest") {
        return;
    }
    let machine = Machine::start().await;
    let long = "import pytest, time\n\n@pytest.mark.parametrize('number', range(8))\ndef test_sleeps(number):\n    \
                time.sleep(0.4)\n\nclass TestMore:\n    def test_adds(self):\n        time.sleep(0.2)\n";
    let short = "def test_adds():\n    assert 1 + 1 == 2\n";
    let mut files = project("pytest -q", &[("pytest.ini", "[pytest]\n"), ("tests/test_long.py", long)]);
    for name in ["a", "b", "c"] {
        files.insert(format!("tests/test_{name}.py"), short.to_owned());
    }
    let repository = machine.make_repository("checked", &files).await;
    let run = comes_to(&machine, 1, 12, 0, &[]).await;
    assert_eq!(run["split"]["planned"], 4, "nothing is known of it yet: {run:#}");

    // Now its cases are known. One of them is gone, one is new, and each runs once.
    let changed = long.replace("range(8)", "range(1, 9)");
    files.insert("tests/test_long.py".to_owned(), changed.clone());
    machine.push(&repository, "main", &files, "Change a case").await;
    let run = comes_to(&machine, 2, 12, 0, &[]).await;
    assert!(run["split"]["planned"].as_u64() > Some(4), "the long file was not cut: {run:#}");
    let bars = run["files"].as_array().expect("a list");
    let nodes: std::collections::BTreeSet<u64> =
        bars.iter().filter(|bar| bar["path"] == "tests/test_long.py").filter_map(|bar| bar["node"].as_u64()).collect();
    assert_eq!(nodes.len(), 2, "both nodes had a part of it: {run:#}");

    // A failure within a part, a file that can't be loaded, and one whose process vanishes with a zero.
    files.insert("tests/test_long.py".to_owned(), changed.replace("time.sleep(0.2)", "assert 1 == 2"));
    files.insert("tests/test_a.py".to_owned(), "import not_there\n".to_owned());
    files.insert("tests/test_b.py".to_owned(), "import os\ndef test_b():\n    os._exit(0)\n".to_owned());
    machine.push(&repository, "main", &files, "Break it").await;
    let red = [("tests/test_a.py", "failed"), ("tests/test_b.py", "missing"), ("tests/test_long.py", "failed")];
    let run = comes_to(&machine, 3, 9, 2, &red).await;
    let failures: Vec<String> = run["lanes"]
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|lane| lane["failures"].as_array().cloned().unwrap_or_default())
        .map(|failure| failure["name"].to_string())
        .collect();
    assert!(failures.iter().any(|name| name.contains("test_adds")), "{failures:?}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_tested_by_rspec_is_dealt_without_a_key_and_a_load_error_is_red() {
    if !has("/usr/bin/rspec") {
        return;
    }
    let machine = Machine::start().await;
    let long = "RSpec.describe 'Long' do\n  6.times { |i| it(\"sleeps #{i}\") { sleep 0.4 } }\nend\n";
    let short = "RSpec.describe 'Sum' do\n  it('adds') { expect(1 + 1).to eq 2 }\nend\n";
    let gems = "gem 'rspec'\ngem 'rspec_junit_formatter'\n";
    let mut files =
        project("bundle exec rspec", &[(".rspec", "--color\n"), ("Gemfile", gems), ("spec/long_spec.rb", long)]);
    for name in ["a", "b", "c"] {
        files.insert(format!("spec/{name}_spec.rb"), short.to_owned());
    }
    let repository = machine.make_repository("checked", &files).await;
    comes_to(&machine, 1, 9, 0, &[]).await;
    let changed = long.replace("6.times", "7.times");
    files.insert("spec/long_spec.rb".to_owned(), changed);
    machine.push(&repository, "main", &files, "One more").await;
    let run = comes_to(&machine, 2, 10, 0, &[]).await;
    assert!(run["split"]["planned"].as_u64() > Some(4), "the long file was not cut: {run:#}");
    files.insert("spec/a_spec.rb".to_owned(), "require 'not_there'\n".to_owned());
    files.insert("spec/b_spec.rb".to_owned(), short.replace("eq 2", "eq 3"));
    machine.push(&repository, "main", &files, "Break it").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let red: Vec<(&str, &str)> = run["split"]["red_files"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|file| (file["path"].as_str().unwrap_or_default(), file["why"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(red, [("spec/a_spec.rb", "crashed"), ("spec/b_spec.rb", "failed")], "{run:#}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_tested_by_go_is_dealt_by_packages() {
    if !has("/usr/bin/gotestsum") || !has("/usr/bin/go") {
        return;
    }
    let machine = Machine::start().await;
    let test = |package: &str, body: &str| {
        format!("package {package}\n\nimport \"testing\"\n\nfunc TestIt(t *testing.T) {{\n{body}\n}}\n")
    };
    let fine = "\tif 1+1 != 2 {\n\t\tt.Fatal(\"no\")\n\t}";
    let mut files = project("go test ./...", &[("go.mod", "module example.com/checked\n\ngo 1.19\n")]);
    for name in ["one", "two", "three"] {
        files.insert(format!("{name}/it_test.go"), test(name, fine));
    }
    let repository = machine.make_repository("checked", &files).await;
    comes_to(&machine, 1, 3, 0, &[]).await;
    files.insert("two/it_test.go".to_owned(), test("two", "\tt.Fatal(\"the answer is wrong\")"));
    files.insert("three/it_test.go".to_owned(), test("three", "\tundefined()"));
    machine.push(&repository, "main", &files, "Break it").await;
    let run = machine.verdict(2).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let red: Vec<&Value> =
        run["split"]["red_files"].as_array().expect("a list").iter().map(|file| &file["path"]).collect();
    assert_eq!(red, ["./three", "./two"], "{run:#}");
    assert_eq!(run["counts"]["passed"], 1, "{run:#}");
    machine.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_tested_by_phpunit_is_dealt_by_files() {
    if !has("/usr/bin/phpunit") {
        return;
    }
    let machine = Machine::start().await;
    let test = |name: &str, body: &str| {
        format!(
            "<?php\nuse PHPUnit\\Framework\\TestCase;\nfinal class {name} extends TestCase {{\n  \
             public function testIt(): void {{ {body} }}\n}}\n"
        )
    };
    let settings =
        "<phpunit><testsuites><testsuite name=\"all\"><directory>tests</directory></testsuite></testsuites></phpunit>";
    let mut files = project("vendor/bin/phpunit", &[("phpunit.xml", settings)]);
    // As the preset runs it, but for the program: that of the system needs its extensions named, whose settings lie in
    // /etc, where no sandbox looks.
    let command = "[tests]\ncommand = \"\"\"status=0; number=0; set -- dom mbstring tokenizer xml xmlwriter ctype
php=$(ls /usr/bin/php8* | head -n 1); for one in $@; do php=\"$php -d extension=$one\"; done
for file in {files}; do number=$((number + 1)); $php /usr/bin/phpunit --log-junit {junit}.$number.xml $file || status=$?; done
exit $status\"\"\"\n";
    files.insert(".github/landfall.toml".to_owned(), command.to_owned());
    for name in ["ATest", "BTest", "CTest"] {
        files.insert(format!("tests/{name}.php"), test(name, "$this->assertSame(2, 1 + 1);"));
    }
    let repository = machine.make_repository("checked", &files).await;
    comes_to(&machine, 1, 3, 0, &[]).await;
    files.insert("tests/BTest.php".to_owned(), test("BTest", "$this->assertSame(3, 1 + 1);"));
    machine.push(&repository, "main", &files, "Break it").await;
    comes_to(&machine, 2, 2, 1, &[("tests/BTest.php", "failed")]).await;
    files.insert("tests/BTest.php".to_owned(), "<?php\nthis is no PHP\n".to_owned());
    machine.push(&repository, "main", &files, "Break more").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    assert_eq!(run["split"]["red_files"][0]["path"], "tests/BTest.php", "{run:#}");
    machine.leave().await;
}

/// A project whose packages come from npm, with a file of slow tests, three of fast ones, and then a broken one.
async fn of_npm(name: &str, packages: Value, file: impl Fn(&str) -> String, texts: [&str; 3], cut: bool) {
    let machine = Machine::start().await;
    let [long, short, broken] = texts;
    let package = json!({ "name": name, "version": "1.0.0", "private": true, "scripts": { "test": name },
        "devDependencies": packages });
    let test = json!({ "formation": { "test": { "quantity": 2 } }, "scripts": { "test": "npm test" } });
    let mut files: BTreeMap<String, String> = [
        ("Procfile", "worker: sleep 60\n".to_owned()),
        ("app.json", json!({ "environments": { "test": test } }).to_string()),
        ("package.json", package.to_string()),
        (&file("long"), long.to_owned()),
    ]
    .map(|(path, text)| (path.to_owned(), text))
    .into();
    for other in ["a", "b", "c"] {
        files.insert(file(other), short.to_owned());
    }
    let repository = machine.make_repository("checked", &files).await;
    comes_to(&machine, 1, 9, 0, &[]).await;
    files.insert(file("long"), long.replace("length: 6", "length: 7"));
    machine.push(&repository, "main", &files, "One more").await;
    let run = comes_to(&machine, 2, 10, 0, &[]).await;
    assert_eq!(run["split"]["planned"].as_u64() > Some(4), cut, "{run:#}");
    files.insert(file("a"), broken.to_owned());
    files.insert(file("b"), "import nothing from './not-there.js';\n".to_owned());
    machine.push(&repository, "main", &files, "Break it").await;
    let run = machine.verdict(3).await;
    assert_eq!(run["verdict"]["kind"], "failed", "{run:#}");
    let red = run["split"]["red_files"].as_array().expect("a list");
    let red: Vec<&str> = red.iter().map(|file| file["path"].as_str().unwrap_or_default()).collect();
    assert_eq!(red, [file("a"), file("b")], "{run:#}");
    machine.leave().await;
}

/// Six tests of 0.4 s each, with names of their own.
fn slow(import: &str, word: &str) -> String {
    let loops = "for (const n of Array.from({ length: 6 }, (_, at) => at))";
    let sleep = "() => new Promise((done) => setTimeout(done, 400))";
    format!("{import}describe('long (very)', () => {{\n  {loops} {{ {word}(`sleeps ${{n}}`, {sleep}); }}\n}});\n")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages come from npm's registry: script/try-runners"]
async fn a_project_tested_by_jest_is_dealt_without_a_key_and_one_long_file_is_cut_by_its_cases() {
    let packages = json!({ "jest": "^30", "jest-junit": "^17" });
    let long = slow("", "test");
    let texts =
        [&long, "test('adds', () => { expect(1 + 1).toBe(2); });\n", "test('adds', () => { expect(1).toBe(2); });\n"];
    of_npm("jest", packages, |name| format!("src/{name}.test.js"), texts, true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages come from npm's registry: script/try-runners"]
async fn a_project_tested_by_vitest_is_dealt_without_a_key_and_one_long_file_is_cut_by_its_cases() {
    let import = "import { describe, expect, test } from 'vitest';\n";
    let long = slow(import, "test");
    let short = format!("{import}test('adds', () => {{ expect(1 + 1).toBe(2); }});\n");
    let broken = short.replace("toBe(2)", "toBe(3)");
    let packages = json!({ "vitest": "^4" });
    of_npm("vitest", packages, |name| format!("src/{name}.test.mjs"), [&long, &short, &broken], true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "its packages come from npm's registry: script/try-runners"]
async fn a_project_tested_by_mocha_is_dealt_without_a_key() {
    let long = slow("", "it");
    let short = "const assert = require('assert');\nit('adds', () => assert.equal(1 + 1, 2));\n";
    let broken = short.replace("+ 1, 2", "+ 1, 3");
    let packages = json!({ "mocha": "^11" });
    of_npm("mocha", packages, |name| format!("test/{name}.js"), [&long, short, &broken], false).await;
}
