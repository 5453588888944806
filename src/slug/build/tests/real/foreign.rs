//! Buildpacks that are not ours, with the classic interface.

use super::*;
use crate::slug::Pack;
use crate::workflow::SETUP_FAILED;

/// A buildpack with these programs in its `bin`, at `<folder>/<name>`.
fn pack(folder: &Path, name: &str, programs: &[(&str, &str)]) -> PathBuf {
    let pack = folder.join(name);
    fs::create_dir_all(pack.join("bin")).unwrap();
    for (name, text) in programs {
        let path = pack.join("bin").join(name);
        fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    pack
}

#[test]
fn a_foreign_buildpack_with_the_classic_interface_runs() {
    let place = Place::new(&[("x.foreign", "")]);
    let first = pack(
        place.folder.path(),
        "first",
        &[
            ("detect", "[ -f \"$1/x.foreign\" ] && echo Foreign"),
            (
                "compile",
                "echo \"$STACK $SOURCE_VERSION $(cat \"$3/A\")\" >\"$1/compiled\"; echo x >>\"$2/runs\"\n\
                 mkdir -p \"$1/.profile.d\"; echo 'export FROM_PROFILE=yes' >\"$1/.profile.d/first.sh\"\n\
                 echo 'export TOOL=/tools/first' >export; echo '-----> done'",
            ),
            ("release", "printf -- '---\\ndefault_process_types:\\n  web: ./foreign\\nconfig_vars:\\n  X: y\\n'"),
        ],
    );
    // Who is listed need not detect, and sees what those before it export.
    let second = pack(place.folder.path(), "second", &[("compile", "echo \"$TOOL\" >\"$1/second\"")]);
    let words = format!("https://example.com/first#abc|{} {}", first.display(), second.display());
    let built = place.build_with(&words, &[("A", "a")], "/usr/bin:/bin");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-----> Foreign app detected"), "{}", built.log);
    assert_eq!(built.result.process_types, super::super::texts(&[("web", "./foreign")]));
    assert_eq!(built.result.config_vars, super::super::texts(&[("X", "y")]));
    assert_eq!(built.result.buildpacks[0], "https://example.com/first#abc");
    assert_eq!(fs::read_to_string(place.app().join("compiled")).unwrap(), "heroku-24  a\n");
    assert_eq!(fs::read_to_string(place.app().join("second")).unwrap(), "/tools/first\n");
    assert_eq!(place.output("echo $FROM_PROFILE", &[]), "yes\n");
    assert_eq!(built.result.test_command, None);
    place.build_with(&words, &[("A", "a")], "/usr/bin:/bin");
    assert_eq!(fs::read_to_string(place.folder.path().join("cache/runs")).unwrap(), "x\nx\n");
    assert!(!first.join("export").exists(), "a buildpack writes into a copy of itself");
}

#[test]
fn a_foreign_buildpack_s_tests_run_from_the_slug() {
    let place = Place::new(&[("x", "")]);
    let name = pack(
        place.folder.path(),
        "pack",
        &[
            ("compile", "exit 0"),
            (
                "test-compile",
                "[ -z \"${BROKEN:-}\" ] || exit 5; echo \"$(cat \"$3/NAME\")\" >\"$1/prepared\"; touch \"$2/x\"",
            ),
            ("test", "echo \"1..1\"; echo \"ok 1 $(cat \"$1/prepared\") $(cat \"$2/CI\")\""),
        ],
    );
    let built = place.build(&name.display().to_string());
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(!place.app().join("prepared").exists(), "what only tests need is no part of the slug");
    let command = built.result.test_command.unwrap();
    fs::remove_dir_all(&name).unwrap();
    assert_eq!(place.output(&command, &[("CI", "true"), ("NAME", "two words")]), "1..1\nok 1 two words true\n");
    let broken = place.start(&command, &[("BROKEN", "1")]).output().unwrap();
    assert_eq!(broken.status.code(), Some(SETUP_FAILED), "a failed preparation is no failed test");
}

#[test]
fn a_buildpack_of_the_repository_itself_runs() {
    let place = Place::new(&[("x", "")]);
    pack(&place.app(), "packs/own", &[("compile", "echo 'web: ./own' >\"$1/Procfile\"")]);
    let word = Pack::Folder("packs/own".to_owned()).word(0).replace("|/app/", &format!("|{}/", place.app().display()));
    let built = place.build(&word);
    assert_eq!(built.status, 0, "{}", built.log);
    assert_eq!(built.result.buildpacks, ["./packs/own"]);
    assert_eq!(built.result.process_types, super::super::texts(&[("web", "./own")]));
    let built = place.build(&format!("./packs/none|{}/packs/none", place.app().display()));
    assert_eq!(built.status, NOTHING_DETECTED);
    assert_eq!(built.result.refused.unwrap(), ["a buildpack named ./packs/none"]);
}

/// Answers each request with the same bytes, until it is dropped.
struct Server {
    address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<usize>>,
}

impl Server {
    fn start(body: Vec<u8>) -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut served = 0;
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut head).unwrap_or(0) > 2 {}
                if head.is_empty() {
                    return served;
                }
                served += 1;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(&body));
            }
            served
        });
        Server { address, thread: Some(thread) }
    }

    /// Ends it and says how many requests it answered.
    fn end(mut self) -> usize {
        drop(TcpStream::connect(self.address).unwrap());
        self.thread.take().unwrap().join().unwrap()
    }
}

#[test]
fn a_tarball_is_fetched_checked_and_kept() {
    let place = Place::new(&[("x", "")]);
    pack(place.folder.path(), "made/heroku-pack-main", &[("compile", "echo compiled by a tarball")]);
    let tarball = place.folder.path().join("pack.tgz");
    let made = Command::new("/usr/bin/tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&tarball)
        .arg("--directory")
        .arg(place.folder.path().join("made"))
        .arg("heroku-pack-main")
        .status();
    assert!(made.unwrap().success());
    let bytes = fs::read(&tarball).unwrap();
    let digest = hex::encode(Sha256::digest(&bytes));
    let server = Server::start(bytes);
    let url = format!("http://{}/pack.tgz", server.address);
    let build = |url: &str| {
        let built = place.build_with(&format!("{url}|{url}"), &[], "/usr/bin:/bin");
        (built.status, built.log)
    };
    let (status, log) = build(&url);
    assert!(status == 0 && log.contains("compiled by a tarball"), "{log}");
    let (status, log) = build(&format!("{url}#sha256={digest}"));
    assert!(status == 0 && !log.contains("Fetching"), "what is pinned and there is not fetched again: {log}");
    let (status, log) = build(&format!("{url}#sha256={}", "0".repeat(64)));
    assert!(status == 1 && log.contains("is not the one that its sha256 names"), "{log}");
    assert_eq!(server.end(), 2);
    let (status, log) = build(&url);
    assert!(status == 1 && log.contains("could not be fetched"), "{log}");
}
