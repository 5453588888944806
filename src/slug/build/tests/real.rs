//! The buildpacks as they are, run by a real bash on real folders; only the sandbox is missing.

mod foreign;
mod languages;
mod managers;
mod sites;

use super::super::*;
use crate::slug::BUILT_IN;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Place {
    folder: tempfile::TempDir,
}

struct Built {
    status: i32,
    log: String,
    result: BuildResult,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        for folder in ["app", "out"] {
            fs::create_dir(place.folder.path().join(folder)).unwrap();
        }
        for (name, text) in files {
            let path = place.app().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            if name.starts_with("bin/") {
                fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            }
        }
        place
    }

    fn app(&self) -> PathBuf {
        self.folder.path().join("app")
    }

    fn build(&self, buildpacks: &str) -> Built {
        self.build_with(buildpacks, &[], "/usr/bin:/bin")
    }

    fn build_pruned(&self, buildpacks: &str) -> Built {
        self.build_somehow(buildpacks, &[], "/usr/bin:/bin", "1")
    }

    fn build_with(&self, buildpacks: &str, config: &[(&str, &str)], path: &str) -> Built {
        self.build_somehow(buildpacks, config, path, "")
    }

    fn build_somehow(&self, buildpacks: &str, config: &[(&str, &str)], path: &str, prune: &str) -> Built {
        let at = |name: &str| self.folder.path().join(name);
        let packs = buildpacks_folder(&at("packs")).unwrap();
        // There is one from the second build on.
        let _ = fs::remove_dir_all(at("env"));
        write_env_folder(&at("env"), &super::texts(config)).unwrap();
        let output = Command::new("/bin/bash")
            .arg(packs.join("build.sh"))
            .env_clear()
            .env("PATH", path)
            .env("BUILDPACKS", buildpacks)
            .env("LANDFALL_PRUNE", prune)
            .env("BUILD_DIR", at("app"))
            .env("CACHE_DIR", at("cache"))
            .env("ENV_DIR", at("env"))
            .env("OUT_DIR", at("out"))
            .env("TMPDIR", self.folder.path())
            // No test needs a network, and none may find one.
            .env("http_proxy", "http://127.0.0.1:1")
            .env("https_proxy", "http://127.0.0.1:1")
            .env("no_proxy", "127.0.0.1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        Built {
            status: output.status.code().unwrap(),
            log: String::from_utf8(output.stdout).unwrap(),
            result: read_result(&at("out")).unwrap(),
        }
    }

    /// A folder of programs that holds these and no others: another machine.
    fn machine(&self, programs: &[&str]) -> String {
        let folder = self.folder.path().join("machine");
        fs::create_dir(&folder).unwrap();
        let always = ["bash", "mkdir", "cp", "cat", "rm", "mktemp", "chmod", "dirname", "sed", "paste", "head", "env"];
        for name in always.iter().chain(programs) {
            std::os::unix::fs::symlink(format!("/usr/bin/{name}"), folder.join(name)).unwrap();
        }
        folder.to_str().unwrap().to_owned()
    }

    /// Starts a command as a process of the app, as the platform does.
    fn start(&self, command: &str, environment: &[(&str, &str)]) -> Command {
        let script = "for profile in .profile.d/*.sh; do if [ -r \"$profile\" ]; then . \"./$profile\"; fi; done; \
                      exec /bin/bash -c \"$1\"";
        let mut started = Command::new("/bin/bash");
        started
            .args(["-c", script, "landfall", command])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(environment.iter().copied());
        started.env("HOME", self.app()).current_dir(self.app()).stdin(Stdio::null());
        started
    }

    fn output(&self, command: &str, environment: &[(&str, &str)]) -> String {
        let output = self.start(command, environment).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A web process, killed with its group at the end of the test.
struct Web {
    child: Child,
    port: u16,
}

impl Web {
    fn start(place: &Place, command: &str) -> Web {
        use std::os::unix::process::CommandExt;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = place.start(command, &[("PORT", &port.to_string())]);
        let mut child = command.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        // Whoever listens says so on its first line.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains(&port.to_string()), "{line}");
        Web { child, port }
    }

    /// Sends a request and returns the answer's status, head and body.
    fn request(&self, head: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.request(&format!("GET {path} HTTP/1.1"));
        (status, body)
    }

    fn terminate(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "SIGTERM was not heeded");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id() as i32);
        // It may have ended, and its group with it.
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

#[test]
fn a_repository_that_nobody_takes_is_refused_with_what_was_looked_for() {
    let place = Place::new(&[("README.md", "hello")]);
    let built = place.build("");
    assert_eq!(built.status, NOTHING_DETECTED);
    let looked_for = built.result.refused.unwrap();
    assert_eq!(looked_for.len(), BUILT_IN.len());
    assert_eq!(looked_for[..3], ["an executable bin/build", "Gemfile", "package.json"]);
    assert!(built.log.contains(" !     No buildpack takes this repository."), "{}", built.log);

    let built = place.build("nodejs");
    assert_eq!((built.status, built.result.refused), (NOTHING_DETECTED, Some(vec!["package.json".to_owned()])));
    let built = place.build("cobol");
    assert_eq!(built.status, NOTHING_DETECTED);
    assert_eq!(built.result.refused.unwrap(), ["a buildpack named cobol"]);
}

#[test]
fn a_node_app_without_dependencies_needs_no_network() {
    let place = Place::new(&[
        (
            "package.json",
            r#"{"engines": {"node": ">=18"}, "scripts": {"start": "node index.js", "test": "node check.js",
                "build": "node -e \"require('fs').writeFileSync('built', process.env.GREETING + process.env.NODE_ENV)\""}}"#,
        ),
        (
            "index.js",
            "require('http').createServer((q, s) => s.end('hello ' + process.env.NODE_ENV))
                .listen(process.env.PORT, () => console.log(process.env.PORT))",
        ),
        ("check.js", "console.log('1..1\\nok 1 ' + process.env.NODE_ENV)"),
    ]);
    let built = place.build_with("", &[("GREETING", "hi\n"), ("PATH", "/nowhere")], "/usr/bin:/bin");
    assert_eq!(built.status, 0, "{}", built.log);
    assert_eq!(fs::read_to_string(place.app().join("built")).unwrap(), "hi\nproduction");
    for line in ["-----> Node.js app detected", "-----> Running build", "       no dependencies to install"] {
        assert!(built.log.contains(line), "{line}: {}", built.log);
    }
    let result = built.result;
    assert_eq!(result.buildpacks, ["nodejs"]);
    assert_eq!(result.process_types, super::texts(&[("web", "npm start")]));
    assert_eq!(result.test_command.as_deref(), Some("npm test"));
    assert!(place.output("npm test", &[("CI", "true")]).contains("ok 1 test"));
    let web = Web::start(&place, "node index.js");
    assert_eq!(web.get("/"), (200, "hello production".to_owned()));
}

#[test]
fn a_node_build_that_fails_says_what_failed() {
    let place = Place::new(&[("package.json", r#"{"scripts": {"build": "exit 7"}}"#)]);
    let built = place.build("");
    assert_eq!(built.status, 1);
    assert!(built.log.contains(" !     The script build ended with status 7."), "{}", built.log);
    assert_eq!(built.result.process_types, []);
    fs::write(place.app().join("package.json"), "{,}").unwrap();
    let built = place.build("");
    assert_eq!(built.status, 1);
    assert!(built.log.contains(" !     package.json can't be read:"), "{}", built.log);

    fs::write(place.app().join("package.json"), "{}").unwrap();
    fs::write(place.app().join("yarn.lock"), "").unwrap();
    let built = place.build_with("", &[], &place.machine(&["node"]));
    assert_eq!(built.status, 1);
    let expected = " !     The lock file is for yarn, and this machine has neither yarn nor corepack.";
    assert!(built.log.contains(expected), "{}", built.log);
}

#[test]
fn a_locked_local_dependency_is_installed_without_a_network() {
    let place = Place::new(&[
        (
            "package.json",
            r#"{"name": "a", "version": "1.0.0", "dependencies": {"b": "file:b"},
                "scripts": {"start": "node -e \"require('b')\""}}"#,
        ),
        ("b/package.json", r#"{"name": "b", "version": "1.0.0"}"#),
        ("b/index.js", "console.log('b is here')"),
        (
            "package-lock.json",
            r#"{"name": "a", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
                "": {"name": "a", "version": "1.0.0", "dependencies": {"b": "file:b"}},
                "b": {"version": "1.0.0"}, "node_modules/b": {"resolved": "b", "link": true}}}"#,
        ),
    ]);
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-----> Installing dependencies with npm"));
    assert!(place.output("npm start", &[]).contains("b is here"));
}

/// An app with a dependency and a development dependency in folders of its own, so that no network is needed.
fn with_development_dependency() -> Place {
    Place::new(&[
        (
            "package.json",
            r#"{"name": "a", "version": "1.0.0", "dependencies": {"b": "file:b"}, "devDependencies": {"d": "file:d"},
                "scripts": {"start": "node -e \"require('b')\"", "test": "node -e \"require('b'); require('d')\""}}"#,
        ),
        ("b/package.json", r#"{"name": "b", "version": "1.0.0"}"#),
        ("b/index.js", "console.log('b is here')"),
        ("d/package.json", r#"{"name": "d", "version": "1.0.0"}"#),
        ("d/index.js", "console.log('d is here')"),
        (
            "package-lock.json",
            r#"{"name": "a", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
                "": {"name": "a", "version": "1.0.0", "dependencies": {"b": "file:b"}, "devDependencies": {"d": "file:d"}},
                "b": {"version": "1.0.0"}, "d": {"version": "1.0.0", "dev": true},
                "node_modules/b": {"resolved": "b", "link": true}, "node_modules/d": {"resolved": "d", "link": true}}}"#,
        ),
    ])
}

#[test]
fn development_dependencies_are_kept_apart_for_the_tests() {
    let place = with_development_dependency();
    let built = place.build_somehow("", &[], "/usr/bin:/bin", "apart");
    assert_eq!(built.status, 0, "{}", built.log);
    let there = |path: &str| fs::symlink_metadata(place.app().join(path)).is_ok();
    assert!(there("node_modules/b") && !there("node_modules/d"), "{}", built.log);
    assert!(there(".landfall/test-layer/node_modules/d") && !there(".landfall/test-layer/node_modules/b"));
    let layer = place.folder.path().join("layer");
    assert!(set_test_layer_apart(&place.app(), &layer).unwrap());
    assert!(set_test_layer_apart(&place.app(), &layer).unwrap(), "it may be repeated");
    // The link leads to the folder beside the slug's `node_modules`, which is not in the layer.
    assert!(fs::symlink_metadata(layer.join("node_modules/d")).is_ok() && !there(".landfall/test-layer"));

    for (prune, config) in
        [("", ("X", "1")), ("apart", ("NPM_CONFIG_PRODUCTION", "false")), ("apart", ("NODE_ENV", "test"))]
    {
        let place = with_development_dependency();
        let built = place.build_somehow("", &[config], "/usr/bin:/bin", prune);
        assert_eq!(built.status, 0, "{}", built.log);
        assert!(place.app().join("node_modules/d").exists(), "{config:?}: {}", built.log);
        assert!(!place.app().join(".landfall").exists());
    }
}

#[test]
fn a_layer_of_the_repository_s_own_is_none() {
    let place = Place::new(&[("Procfile", "web: x\n"), (".landfall/test-layer/own", "x")]);
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(!place.app().join(".landfall/test-layer").exists());
    fs::create_dir_all(place.app().join("elsewhere/test-layer")).unwrap();
    let _ = fs::remove_dir_all(place.app().join(".landfall"));
    std::os::unix::fs::symlink("elsewhere", place.app().join(".landfall")).unwrap();
    assert!(!set_test_layer_apart(&place.app(), &place.folder.path().join("layer")).unwrap(), "a link is not followed");
}

#[test]
fn the_version_of_python_is_read_over_comments() {
    for text in ["# Heroku's guide\n\n3.99\n", "python-3.99.1\n", "3.99\n"] {
        let place = Place::new(&[("app.py", "x"), (".python-version", text)]);
        let built = place.build("python");
        assert!(built.log.contains(".python-version asks for Python 3.99; "), "{text}: {}", built.log);
    }
}

#[test]
fn a_python_app_without_requirements_needs_no_network() {
    let place = Place::new(&[
        ("app.py", "import sys; print(sys.prefix, sys.argv[1])"),
        ("test_app.py", "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\n"),
        ("requirements.txt", "# nothing yet\n\n"),
        ("Procfile", "web: python app.py $PORT\n"),
    ]);
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    let result = built.result;
    assert_eq!(result.buildpacks, ["python"]);
    assert_eq!(result.process_types, super::texts(&[("web", "python app.py $PORT")]));
    assert_eq!(result.test_command.as_deref(), Some("python -m unittest discover"));
    assert_eq!(
        place.output("python app.py $PORT", &[("PORT", "1234")]),
        format!("{} 1234\n", place.app().join(".landfall/python").display())
    );
    place.output("python -m unittest discover", &[]);
}

#[test]
fn python_requirements_are_installed_into_the_slug() {
    let place = Place::new(&[
        ("requirements.txt", "./greeting-1-py3-none-any.whl\n"),
        ("Procfile", "web: python -c 'import greeting; print(greeting.TEXT)'\n"),
        // A wheel is a zip file; Python writes one.
        (
            "bin/wheel",
            "#!/usr/bin/env python3\nimport zipfile\nz = zipfile.ZipFile('greeting-1-py3-none-any.whl', 'w')\n\
             i = 'greeting-1.dist-info/'\nz.writestr('greeting.py', 'TEXT = \"hello from a package\"\\n')\n\
             z.writestr(i + 'METADATA', 'Metadata-Version: 2.1\\nName: greeting\\nVersion: 1\\n')\n\
             z.writestr(i + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
             z.writestr(i + 'RECORD', 'greeting.py,,\\n' + i + 'METADATA,,\\n' + i + 'WHEEL,,\\n' + i + 'RECORD,,\\n')\n",
        ),
    ]);
    let made = Command::new("/usr/bin/python3").arg("bin/wheel").current_dir(place.app()).status().unwrap();
    assert!(made.success());
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-----> Installing requirements.txt with pip"), "{}", built.log);
    assert_eq!(place.output(&built.result.process_types[0].1, &[]), "hello from a package\n");
    assert!(!place.app().join(".landfall/python/bin/pip").exists(), "pip is no part of the slug");

    // With one hash in the file, pip wants all of them to be right.
    let wrong = format!("./greeting-1-py3-none-any.whl --hash=sha256:{}\n", "0".repeat(64));
    fs::write(place.app().join("requirements.txt"), wrong).unwrap();
    let built = place.build("");
    assert!(built.status == 1 && built.log.contains("DO NOT MATCH THE HASHES"), "{}", built.log);

    fs::write(place.app().join("requirements.txt"), "./nothing-1-py3-none-any.whl\n").unwrap();
    let built = place.build("");
    assert_eq!(built.status, 1);
    assert!(built.log.contains(" !     The requirements could not be installed (status 1)."), "{}", built.log);
}

#[test]
fn a_repository_s_own_build_runs_with_its_config_vars() {
    let build = "#!/bin/sh\necho building $FLAVOUR in $PWD\necho 'web: ./serve' >Procfile\necho x >>\"$2/runs\"\n";
    let place = Place::new(&[("bin/build", build), ("bin/test", "#!/bin/sh\necho ok\n")]);
    let built = place.build_with("", &[("FLAVOUR", "vanilla")], "/usr/bin:/bin");
    assert_eq!(built.status, 0, "{}", built.log);
    let expected = format!("       building vanilla in {}\n", place.app().display());
    assert!(built.log.contains(&expected), "{}", built.log);
    assert_eq!(built.result.process_types, super::texts(&[("web", "./serve")]));
    assert_eq!(built.result.test_command.as_deref(), Some("bin/test"));
    assert_eq!(built.result.buildpacks, ["bin"]);
    place.build("");
    let runs = fs::read_to_string(place.folder.path().join("cache/bin/runs")).unwrap();
    assert_eq!(runs, "x\nx\n", "the cache is kept");

    let silent = Place::new(&[("bin/build", "#!/bin/sh\n")]).build("");
    assert_eq!(silent.status, 1);
    assert!(silent.log.contains(" !     There is no Procfile"), "{}", silent.log);
    let failing = Place::new(&[("bin/build", "#!/bin/sh\nexit 3\n"), ("Procfile", "web: x")]).build("");
    assert_eq!(failing.status, 1);
    assert!(failing.log.contains(" !     bin/build ended with status 3."), "{}", failing.log);
}

#[test]
fn a_procfile_alone_is_enough() {
    let place = Place::new(&[("Procfile", "web: sh serve.sh\nclock: date\n"), ("serve.sh", "echo served")]);
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("       Procfile declares types -> web, clock\n"), "{}", built.log);
    assert_eq!(built.result.buildpacks, ["procfile"]);
    assert_eq!(built.result.test_command, None);
    assert_eq!(place.output("sh serve.sh", &[]), "served\n");
}

#[test]
fn several_buildpacks_run_in_order_and_the_last_is_the_main_one() {
    let place = Place::new(&[
        ("package.json", r#"{"scripts": {"start": "node x", "test": "node y", "build": "node -p 1"}}"#),
        ("app.py", ""),
        ("test_x.py", ""),
        ("Procfile", "worker: python app.py\n"),
    ]);
    let built = place.build("nodejs python");
    assert_eq!(built.status, 0, "{}", built.log);
    assert_eq!(built.result.buildpacks, ["nodejs", "python"]);
    assert_eq!(built.result.process_types, super::texts(&[("worker", "python app.py"), ("web", "npm start")]));
    assert_eq!(built.result.test_command.as_deref(), Some("python -m unittest discover"));
    let path = place.output("echo $PATH", &[]);
    assert!(path.contains(".landfall/python/bin") && path.contains("node_modules/.bin"), "{path}");
}

#[test]
fn a_built_folder_is_packed_and_reads_back() {
    let place = Place::new(&[("app.py", ""), ("Procfile", "web: python app.py\n")]);
    assert_eq!(place.build("").status, 0);
    let slugs = place.folder.path().join("slugs");
    let packed = crate::slug::pack(&place.app(), &slugs).unwrap();
    assert!(packed.left_out.is_empty());
    crate::slug::verify(&packed.path, &packed.digest).unwrap();
}
