//! Projects as people have them, and what is found to run their tests.

use super::*;

struct Repository {
    paths: BTreeSet<String>,
    contents: BTreeMap<String, String>,
}

fn repository(paths: &[&str], contents: &[(&str, &str)]) -> Repository {
    let contents: BTreeMap<String, String> =
        contents.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    Repository {
        paths: paths.iter().map(|path| (*path).to_owned()).chain(contents.keys().cloned()).collect(),
        contents,
    }
}

impl Repository {
    fn tree(&self) -> Tree<'_> {
        Tree { paths: &self.paths, contents: &self.contents }
    }

    fn only(&self) -> Preset {
        let mut found = detect(self.tree());
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn items(&self) -> Vec<String> {
        let preset = self.only();
        let files = preset.files.expect("its files are known");
        items(&self.paths, &files, preset.unit).into_iter().collect()
    }
}

#[test]
fn pytest_with_its_own_settings() {
    let plain = repository(
        &["tests/test_a.py", "tests/deep/b_test.py", "app/models.py", "node_modules/x/test_x.py", "conftest.py"],
        &[],
    );
    assert_eq!(plain.items(), ["tests/deep/b_test.py", "tests/test_a.py"]);
    let preset = plain.only();
    assert!(preset.cases.is_some() && preset.needs.is_none() && preset.empty_status == Some(5));
    let told = repository(
        &["tests/check_a.py", "tests/test_b.py", "other/check_c.py"],
        &[("pyproject.toml", "[tool.pytest.ini_options]\ntestpaths = ['tests']\npython_files = 'check_*.py'\n")],
    );
    assert_eq!(told.items(), ["tests/check_a.py"]);
    let ini = repository(
        &["unit/test_a.py", "it/test_b.py", "x/test_c.py"],
        &[("pytest.ini", "[pytest]\n# where\ntestpaths =\n    unit\n    it\naddopts = -q\n")],
    );
    assert_eq!(ini.items(), ["it/test_b.py", "unit/test_a.py"]);
    assert!(detect(repository(&["tests/test_a.py"], &[("requirements.txt", "flask\n")]).tree()).is_empty());
}

#[test]
fn ruby_and_php() {
    let rspec = repository(
        &["spec/models/user_spec.rb", "spec/spec_helper.rb", "lib/user.rb"],
        &[("Gemfile", "gem 'rspec-rails'\ngem 'rspec_junit_formatter'\n")],
    );
    assert_eq!(rspec.items(), ["spec/models/user_spec.rb"]);
    assert_eq!(rspec.only().needs, None);
    let bare = repository(&["spec/a_spec.rb"], &[("Gemfile.lock", "    rspec-core (3.13.0)\n")]);
    assert_eq!(bare.only().needs, Some("rspec_junit_formatter"));

    let php = repository(
        &["tests/Unit/ATest.php", "tests/Helper.php", "src/Thing.php", "src/ThingTest.php"],
        &[(
            "phpunit.xml.dist",
            "<phpunit><testsuites><testsuite name='u'><directory>./tests/Unit/</directory></testsuite></testsuites><source><include><directory>src</directory></include></source></phpunit>",
        )],
    );
    assert_eq!(php.items(), ["tests/Unit/ATest.php"]);
}

#[test]
fn javascript_runners_by_what_package_json_needs() {
    let files = ["src/a.test.ts", "src/__tests__/b.js", "test/c.js", "node_modules/x/y.test.js", "dist/spec.js"];
    let with = |package: &str| repository(&files, &[("package.json", package)]);
    let jest = with(r#"{"devDependencies":{"jest":"30","jest-junit":"16"}}"#);
    assert_eq!(jest.only().runner, Runner::Jest);
    assert_eq!(jest.items(), ["dist/spec.js", "src/__tests__/b.js", "src/a.test.ts"]);
    assert_eq!(jest.only().needs, None);
    assert_eq!(with(r#"{"devDependencies":{"jest":"30"}}"#).only().needs, Some("jest-junit"));
    let own = with(r#"{"jest":{"testMatch":["<rootDir>/test/**/*.js"]},"devDependencies":{"jest-junit":"16"}}"#);
    assert_eq!(own.items(), ["test/c.js"]);
    let vitest = with(r#"{"devDependencies":{"vitest":"3"}}"#);
    assert_eq!((vitest.only().runner, vitest.items()), (Runner::Vitest, vec!["src/a.test.ts".to_owned()]));
    let mocha = with(r#"{"devDependencies":{"mocha":"11"}}"#);
    assert_eq!((mocha.only().runner, mocha.items()), (Runner::Mocha, vec!["test/c.js".to_owned()]));
    assert!(detect(with("{ not json").tree()).is_empty());
}

#[test]
fn a_runner_that_is_told_which_files_are_tests_is_followed_or_nothing_is_dealt() {
    let files = ["test/setup.js", "test/unit/a.js", "e2e/b.e2e.js"];
    let known = |contents: &[(&str, &str)]| {
        let repository = repository(&files, contents);
        let files = repository.only().files?;
        Some(items(&repository.paths, &files, Unit::File).into_iter().collect::<Vec<String>>())
    };
    let package = |own: &str| format!(r#"{{"devDependencies":{{"mocha":"11"}},"mocha":{own}}}"#);
    let mocha = |rc: &str| known(&[("package.json", &package("{}")), (".mocharc.json", rc)]);
    let all = || Some(["test/setup.js", "test/unit/a.js"].map(str::to_owned).to_vec());
    assert_eq!(mocha(r#"{"recursive":true,"timeout":5000}"#), all());
    assert_eq!(mocha(r#"{"timeout":5000}"#), Some(vec!["test/setup.js".to_owned()]));
    assert_eq!(known(&[("package.json", &package(r#"{"recursive":true}"#))]), all());
    for told in [
        r#"{"spec":["test/**/*.js"]}"#,
        r#"{"extends":"./base.json"}"#,
        r#"{"ignore":"test/setup.js"}"#,
        r#"{"extension":["ts"]}"#,
        "// with a comment\n{}",
    ] {
        assert_eq!(mocha(told), None, "{told}");
    }
    assert_eq!(known(&[("package.json", &package("{}")), (".mocharc.yml", "recursive: true\n")]), None);

    let jest = |own: &str| known(&[("package.json", &format!(r#"{{"jest":{own}}}"#))]);
    assert_eq!(jest(r#"{"testMatch":["<rootDir>/e2e/**/*.js"]}"#), Some(vec!["e2e/b.e2e.js".to_owned()]));
    for told in [
        r#"{"testMatch":["**/*.e2e.js","**/?(*.)+(spec|test).js"]}"#,
        r#"{"testRegex":".*\\.e2e\\.js$"}"#,
        r#"{"rootDir":"src"}"#,
        r#"{"roots":["<rootDir>/e2e"]}"#,
        r#"{"projects":["a","b"]}"#,
        r#"{"testPathIgnorePatterns":["e2e"]}"#,
    ] {
        assert_eq!(jest(told), None, "{told}");
    }
    assert_eq!(known(&[("jest.config.js", "module.exports = { testMatch: ['**/*.e2e.js'] }")]), None);
    let generated = "export default {\n  // testMatch: ['**/*.js'],\n  preset: 'ts-jest',\n}";
    assert_eq!(known(&[("jest.config.ts", generated)]), Some(Vec::new()));
    let others = "module.exports = { setupFilesAfterEnv: ['<rootDir>/jest.setup.js'] }";
    assert_eq!(known(&[("jest.config.js", others)]), Some(Vec::new()));

    let config = |test: &str| format!("export default defineConfig({{ test: {{ {test} }} }})");
    let vitest = |path: &str, test: &str| {
        known(&[("package.json", r#"{"devDependencies":{"vitest":"3"}}"#), (path, &config(test))])
    };
    assert_eq!(vitest("vitest.config.ts", "globals: true"), Some(Vec::new()));
    assert_eq!(vitest("vitest.config.ts", "include: ['**/*.e2e.js']"), None);
    assert_eq!(vitest("vite.config.mts", "\"exclude\": ['e2e/**']"), None);
    assert_eq!(vitest("vitest.config.ts", "coverage: { exclude: ['a/{b,c}/}'] }, retry: 1"), Some(Vec::new()));
    assert_eq!(vitest("vitest.config.ts", "globals: true, include"), None);
    assert_eq!(vitest("vitest.config.ts", "...shared"), None);
    assert_eq!(vitest("vite.config.ts", "} , optimizeDeps: { include: ['a'] }, server: { root: 'x'"), Some(Vec::new()));
    assert_eq!(vitest("vite.config.ts", "}, root: 'app', build: {"), None);
    assert_eq!(vitest("vitest.workspace.ts", ""), None);
}

#[test]
fn go_by_packages_and_cargo_by_targets() {
    let go = repository(
        &["go.mod", "main_test.go", "server/a_test.go", "server/b_test.go", "server/testdata/x_test.go"],
        &[],
    );
    assert_eq!(go.items(), [".", "./server"]);
    let cargo = |config: &str| {
        repository(
            &["src/lib.rs", "tests/api.rs", "tests/story/main.rs", "tests/story/steps.rs", "tests/support/mod.rs"],
            &[("Cargo.toml", "[package]\nname = 'x'\n"), (".config/nextest.toml", config)],
        )
    };
    let nextest = cargo("[profile.ci.junit]\npath = 'junit.xml'\n");
    assert_eq!(nextest.items(), ["--lib", "--test=api", "--test=story"]);
    assert_eq!(nextest.only().junit.as_deref(), Some("target/nextest/ci/junit.xml"));
    assert!(detect(cargo("[profile.ci]\nretries = 1\n").tree()).is_empty(), "it would write no results");
    assert!(detect(cargo("[profile.ci.junit]\npath = '$(id)'\n").tree()).is_empty());
}

#[test]
fn only_a_bare_call_of_the_runner_is_replaced() {
    let package = r#"{"scripts":{"test":"jest --ci"},"devDependencies":{"jest":"30","jest-junit":"16"}}"#;
    let both = repository(&["conftest.py", "a.test.js", "go.mod", "a_test.go"], &[("package.json", package)]);
    let presets = detect(both.tree());
    let runner = |script: &str| covers(both.tree(), &presets, script).map(|preset| preset.runner);
    assert_eq!(runner("pytest"), Some(Runner::Pytest));
    assert_eq!(runner("python -m pytest -q"), Some(Runner::Pytest));
    assert_eq!(runner("poetry run pytest"), Some(Runner::Pytest));
    assert_eq!(runner("npm test"), Some(Runner::Jest));
    assert_eq!(runner("npx jest"), Some(Runner::Jest));
    assert_eq!(runner("go test ./..."), Some(Runner::GoTest));
    for other in [
        "pytest tests/unit",
        "pytest -k slow",
        "pytest && flake8",
        "pytest; true",
        "bin/test",
        "go vet ./...",
        "python manage.py test",
        "knapsack_pro queue:rspec",
        "$(pytest)",
        "",
    ] {
        assert_eq!(runner(other), None, "{other}");
    }
}

#[test]
fn patterns_choose_and_take_away() {
    let paths: BTreeSet<String> =
        ["tests/a.py", "tests/slow/b.py", "tests/deep/er/c.py", "x.py"].map(String::from).into();
    let chosen =
        |of: &[&str], except: &[&str]| items(&paths, &patterns(of, except), Unit::File).into_iter().collect::<Vec<_>>();
    assert_eq!(chosen(&["tests/**/*.py"], &["tests/slow/**"]), ["tests/a.py", "tests/deep/er/c.py"]);
    assert_eq!(chosen(&["tests/*.py"], &[]), ["tests/a.py"]);
    assert_eq!(chosen(&["nothing/**"], &[]), Vec::<String>::new());
}
