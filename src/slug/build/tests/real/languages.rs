//! The other languages, each with a small app that needs no network. Where the machine has no such toolchain a line says
//! so; `script/setup` installs all but Java's and Rust's, which are large.

use super::*;

/// Whether a program is installed where sandboxes see it.
fn has(program: &str) -> bool {
    let found = Path::new("/usr/bin").join(program).exists();
    if !found {
        eprintln!("skipped: this machine has no /usr/bin/{program}");
    }
    found
}

fn built(place: &Place) -> Built {
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    built
}

#[test]
fn a_ruby_app_is_built_with_its_locked_gems() {
    if !has("ruby") || !has("bundle") {
        return;
    }
    let place = Place::new(&[
        ("Gemfile", "source 'https://rubygems.org'\ngem 'greeting', path: 'gems/greeting'\n"),
        (
            "Gemfile.lock",
            "PATH\n  remote: gems/greeting\n  specs:\n    greeting (1.0)\n\nGEM\n  remote: https://rubygems.org/\n  \
             specs:\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  greeting!\n\nBUNDLED WITH\n   2.3.15\n",
        ),
        (
            "gems/greeting/greeting.gemspec",
            "Gem::Specification.new do |s|\n  s.name = 'greeting'\n  s.version = '1.0'\n  s.summary = 'x'\n  \
             s.authors = ['x']\n  s.files = ['lib/greeting.rb']\nend\n",
        ),
        ("gems/greeting/lib/greeting.rb", "GREETING = 'hello from a gem'\n"),
        ("app.rb", "require 'greeting'\nputs GREETING, ENV['RACK_ENV']\n"),
        ("config.ru", ""),
    ]);
    let result = built(&place).result;
    assert_eq!(result.buildpacks, ["ruby"]);
    assert_eq!(result.process_types[0].0, "web");
    assert_eq!(place.output("bundle exec ruby app.rb", &[]), "hello from a gem\nproduction\n");
    assert_eq!(place.output("bundle exec ruby app.rb", &[("CI", "true")]), "hello from a gem\ntest\n");
    fs::remove_file(place.app().join("Gemfile.lock")).unwrap();
    let built = place.build("");
    assert!(built.status == 1 && built.log.contains(" !     There is no Gemfile.lock"), "{}", built.log);
}

#[test]
fn a_go_app_is_built_and_tested() {
    if !has("go") {
        return;
    }
    let place = Place::new(&[
        ("go.mod", "module example.com/hello\n\ngo 1.19\n"),
        ("main.go", "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(Greeting()) }\n"),
        ("greeting.go", "package main\n\nfunc Greeting() string { return \"hello from go\" }\n"),
        (
            "main_test.go",
            "package main\n\nimport \"testing\"\n\nfunc TestGreeting(t *testing.T) {\n\tif Greeting() == \"\" {\n\t\tt.Fatal()\n\t}\n}\n",
        ),
    ]);
    let result = built(&place).result;
    assert_eq!(result.process_types, super::super::texts(&[("web", "bin/hello")]));
    assert_eq!(place.output("bin/hello", &[]), "hello from go\n");
    assert!(place.output(&result.test_command.unwrap(), &[("GOFLAGS", "-mod=mod")]).contains("ok"));
    fs::write(place.app().join("main.go"), "package main\n\nfunc main() { fmt.Println() }\n").unwrap();
    let built = place.build("");
    assert!(built.status == 1 && built.log.contains(" !     go install ended with status"), "{}", built.log);
}

#[test]
fn a_php_app_is_built_and_served() {
    if !has("php") {
        return;
    }
    let place = Place::new(&[("index.php", "<?php echo 'hello from ', PHP_SAPI, ' ', $_SERVER['REQUEST_URI'];")]);
    let result = super::languages::built(&place).result;
    assert_eq!(result.process_types, super::super::texts(&[("web", "heroku-php-apache2")]));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = place.start(&result.process_types[0].1, &[("PORT", &port.to_string()), ("WEB_CONCURRENCY", "1")]);
    let child = std::os::unix::process::CommandExt::process_group(&mut command, 0).stderr(Stdio::null()).spawn();
    let web = Web { child: child.unwrap(), port };
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "php does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(web.get("/path").1, "hello from cli-server /path");
    drop(web);
    if !has("composer") {
        return;
    }
    let place = Place::new(&[
        ("composer.json", r#"{"autoload": {"psr-4": {"App\\": "src/"}}, "scripts": {"compile": "touch compiled"}}"#),
        ("src/Greeting.php", "<?php\nnamespace App;\nclass Greeting { const TEXT = 'autoloaded'; }\n"),
        ("public/index.php", "<?php require __DIR__ . '/../vendor/autoload.php'; echo App\\Greeting::TEXT;"),
        ("Procfile", "web: vendor/bin/heroku-php-apache2 public/\n"),
    ]);
    super::languages::built(&place);
    assert!(place.app().join("compiled").exists());
    assert!(place.app().join("vendor/bin/heroku-php-apache2").exists());
    assert_eq!(place.output("php public/index.php", &[]), "autoloaded");
    fs::remove_file(place.app().join("composer.lock")).unwrap();
    fs::write(place.app().join("composer.json"), r#"{"require": {"acme/x": "1"}}"#).unwrap();
    let built = place.build("");
    assert!(built.status == 1 && built.log.contains(" !     There is no composer.lock"), "{}", built.log);
}

/// A folder of programs that only say how they were called, before the machine's own on `PATH`.
fn pretend(place: &Place, programs: &[(&str, &str)]) -> String {
    let folder = place.folder.path().join("pretended");
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in programs {
        fs::write(folder.join(name), format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(folder.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:/usr/bin:/bin", folder.display())
}

const JAVAC: (&str, &str) = ("javac", "echo javac 17.0.1");

#[test]
fn java_is_built_by_maven_and_by_the_gradle_wrapper() {
    let place = Place::new(&[
        ("pom.xml", "<project/>"),
        ("system.properties", "java.runtime.version=21\n"),
        ("src/test/java/T.java", ""),
        ("Procfile", "web: java -jar target/app.jar\n"),
    ]);
    let path = pretend(&place, &[JAVAC, ("mvn", "echo \"maven: $*\"; mkdir -p target; touch target/app.jar")]);
    let built = place.build_with("", &[("MAVEN_CUSTOM_OPTS", "-Dx=y")], &path);
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-Dx=y clean install"), "{}", built.log);
    assert!(built.log.contains(" !     system.properties asks for Java 21; the machine's is 17"), "{}", built.log);
    assert_eq!(built.result.test_command.as_deref(), Some("mvn --batch-mode test"));
    let path = pretend(&place, &[JAVAC, ("mvn", "exit 1")]);
    let built = place.build_with("", &[], &path);
    assert!(built.status == 1 && built.log.contains(" !     Maven ended with status 1."), "{}", built.log);

    let place = Place::new(&[
        ("build.gradle", "plugins { id 'org.springframework.boot' }\n"),
        ("gradlew", "echo \"gradle: $*\"\n"),
        ("Procfile", "web: java -jar build/libs/app.jar\n"),
    ]);
    let path = pretend(&place, &[JAVAC]);
    let built = place.build_with("", &[], &path);
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("gradle: --no-daemon --console=plain build -x check"), "{}", built.log);
    assert_eq!(built.result.buildpacks, ["java"]);
}

#[test]
fn rust_is_built_with_its_tests_and_the_cache_is_no_part_of_the_slug() {
    let place = Place::new(&[
        ("Cargo.toml", "[package]\nname = \"hello\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"),
        ("Cargo.lock", "version = 3\n\n[[package]]\nname = \"hello\"\nversion = \"1.0.0\"\n"),
        ("src/main.rs", "fn main() { println!(\"hello from rust\"); }\n#[test]\nfn greets() {}\n"),
    ]);
    // The sandbox's PATH has no rustup; here the one that builds this test does.
    let cargo = Path::new(env!("CARGO"));
    let path = format!("{}:/usr/bin:/bin", cargo.parent().unwrap().display());
    let built = place.build_with("", &[("RUSTUP_TOOLCHAIN", "")], &path);
    assert_eq!(built.status, 0, "{}", built.log);
    assert_eq!(built.result.process_types, super::super::texts(&[("web", "target/release/hello")]));
    assert_eq!(place.output("target/release/hello", &[]), "hello from rust\n");
    let tests = place.output(&built.result.test_command.unwrap(), &[]);
    assert!(tests.contains("test greets ... ok"), "{tests}");
    assert!(!place.app().join("target/release/deps").exists());
    fs::write(place.app().join("src/main.rs"), "fn main() {").unwrap();
    let built = place.build_with("", &[], &path);
    assert!(built.status == 1 && built.log.contains(" !     cargo build ended with status 101."), "{}", built.log);
}

#[test]
fn a_missing_toolchain_is_named() {
    for (file, buildpack, expected) in [
        ("Gemfile", "ruby", "This machine has no ruby."),
        ("go.mod", "go", "This machine has no go."),
        ("Cargo.toml", "rust", "This machine has no cargo."),
        ("pom.xml", "java", "This machine has no JDK."),
        ("index.php", "php", "This machine has no php."),
    ] {
        let place = Place::new(&[(file, "")]);
        let built = place.build_with("", &[], &place.machine(&[]));
        assert_eq!(built.status, 1, "{buildpack}: {}", built.log);
        assert!(built.log.contains(&format!(" !     {expected}")), "{buildpack}: {}", built.log);
    }
}

#[test]
fn a_dockerfile_alone_is_refused_with_what_it_would_take() {
    let place = Place::new(&[("Dockerfile", "FROM scratch\n")]);
    let built = place.build("");
    assert_eq!(built.status, NOTHING_DETECTED);
    let looked_for = built.result.refused.unwrap();
    assert_eq!(
        looked_for.last().unwrap(),
        "a container engine for its Dockerfile: the operator can name one as build.engine in landfall.toml"
    );
    assert_eq!(looked_for.len(), BUILT_IN.len() + 1);
}

#[test]
fn what_takes_several_languages_is_taken_in_the_documented_order() {
    let documented = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/buildpacks.md")).unwrap();
    let rows: Vec<&str> = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows[..BUILT_IN.len()], BUILT_IN);
    let driver = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("buildpacks/build.sh")).unwrap();
    assert!(
        driver.contains(&format!("for name in {}; do", BUILT_IN.join(" "))),
        "the order is the same in both places"
    );
    // A script in the root makes no Python app of a Go module.
    let place = Place::new(&[("go.mod", ""), ("tool.py", "")]);
    let built = place.build_with("", &[], &place.machine(&[]));
    assert!(built.log.contains("Go app detected"), "{}", built.log);
}

#[test]
fn development_dependencies_are_pruned_where_the_repository_asks_for_it() {
    let lock = |dev: &str| {
        format!(
            r#"{{"name": "a", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {{
                "": {{"name": "a", "version": "1.0.0", "dependencies": {{"b": "file:b"}}, "devDependencies": {{"c": "file:c"}}}},
                "b": {{"version": "1.0.0"}}, "node_modules/b": {{"resolved": "b", "link": true}},
                "c": {{"version": "1.0.0"{dev}}}, "node_modules/c": {{"resolved": "c", "link": true{dev}}}}}}}"#
        )
    };
    let lock = lock(", \"dev\": true");
    let place = Place::new(&[
        (
            "package.json",
            r#"{"name": "a", "version": "1.0.0", "dependencies": {"b": "file:b"}, "devDependencies": {"c": "file:c"}}"#,
        ),
        ("b/package.json", r#"{"name": "b", "version": "1.0.0"}"#),
        ("c/package.json", r#"{"name": "c", "version": "1.0.0"}"#),
        ("package-lock.json", &lock),
    ]);
    assert_eq!(place.build("").status, 0);
    assert!(place.app().join("node_modules/c").exists(), "what was tested is what runs");
    let built = place.build_pruned("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-----> Pruning development dependencies"), "{}", built.log);
    assert!(place.app().join("node_modules/b").exists() && !place.app().join("node_modules/c").exists());
}
