//! Commits from friendly and from hostile repositories.

mod fixture;
mod hostile;

use super::*;
use fixture::{GIT, Http, Repository, Scripted, is_alive, remote, source};
use std::time::Duration;

const ID: RepositoryId = RepositoryId(7);

#[tokio::test]
async fn a_commit_is_fetched_by_its_sha_and_checked_out_as_plain_files() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let sha = origin.commit_files(&[("app.json", "{}"), ("bin/run", "#!/bin/sh\n"), ("sub/deep/a.txt", "a")]);
    let source = source(folder.path());
    let commit = source.fetch(&remote(&origin), &sha).await.unwrap();
    assert_eq!(commit.sha, sha);
    assert_eq!(commit.tree, origin.tree_of(&sha));
    assert_eq!(commit.committed_at, Timestamp(1_700_000_000_000));
    assert_eq!(source.tree_of(ID, &sha).await.unwrap(), commit.tree);
    assert_eq!(source.repositories(), [ID]);

    let into = folder.path().join("out");
    let check_out = source.check_out(ID, &sha, &into).await.unwrap();
    assert_eq!(check_out, super::super::CheckOut { files: 3, bytes: 13, warnings: Vec::new() });
    assert_eq!(
        fixture::listing(&into),
        ["app.json 644 {}", "bin 755", "bin/run 755 #!/bin/sh\n", "sub 755", "sub/deep 755", "sub/deep/a.txt 644 a"]
    );
}

#[tokio::test]
async fn a_file_is_read_without_a_check_out() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let blob = origin.blob(b"web: x");
    let link = origin.blob(b"ops/Procfile");
    let big = origin.blob(&vec![b'x'; (1 << 20) + 1]);
    let limit = origin.blob(&vec![b'x'; 1 << 20]);
    let inner = origin.tree(&[("100644", b"landfall.toml", &blob)]);
    let tree = origin.tree(&[
        ("40000", b".github", &inner),
        ("120000", b"Procfile", &link),
        ("100644", b"app.json", &blob),
        ("100644", b"big", &big),
        ("100644", b"limit", &limit),
    ]);
    let sha = origin.commit(&tree);
    let source = source(folder.path());
    source.fetch(&remote(&origin), &sha).await.unwrap();
    let file = |path: &'static str| {
        let (source, sha) = (&source, &sha);
        async move { source.file(ID, sha, path).await }
    };
    assert_eq!(file("app.json").await.unwrap().as_deref(), Some(&b"web: x"[..]));
    assert_eq!(file(".github/landfall.toml").await.unwrap().as_deref(), Some(&b"web: x"[..]));
    assert_eq!(file("limit").await.unwrap().map(|bytes| bytes.len()), Some(1 << 20));
    for absent in ["nothing", "app.json/below", "*", ":(glob)*", "app.jso?", "--help"] {
        assert_eq!(file(absent).await.unwrap(), None, "{absent}");
    }
    let refused = |error: Result<_, SourceError>| error.unwrap_err().to_string();
    assert_eq!(refused(file("Procfile").await), "Procfile is a link, where a plain file is needed");
    assert_eq!(refused(file(".github").await), ".github is a folder, where a plain file is needed");
    assert_eq!(refused(file("big").await), "big is larger than 1048576");
}

#[tokio::test]
async fn a_later_fetch_transfers_only_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let files: Vec<(String, String)> =
        (0..300).map(|number| (format!("d{}/f{number}", number % 10), fixture::noise(number, 2000))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let first = origin.commit_files(&files);
    let mut changed = files.clone();
    changed[5] = (changed[5].0, "changed");
    let second = origin.commit_on(&changed, &first);
    changed.push(("new", "new"));
    let third = origin.commit_on(&changed, &first);

    let http = Http::serve(folder.path(), None);
    let source = source(folder.path());
    let remote = Remote { repository: ID, url: http.url(&origin), authorization: None };
    source.fetch(&remote, &first).await.unwrap();
    let mirror = source.mirror(ID);
    assert_eq!(fixture::objects(&mirror), 300 + 10 + 1 + 1, "one tree without history");
    let first_bytes = http.sent();
    source.fetch(&remote, &second).await.unwrap();
    assert_eq!(fixture::objects(&mirror), 312 + 4, "a commit, two trees and a file");
    source.fetch(&remote, &third).await.unwrap();
    assert_eq!(fixture::objects(&mirror), 316 + 3, "a commit, its root and a file: the rest came with its sibling");
    let later_bytes = http.sent() - first_bytes;
    assert!(later_bytes * 20 < first_bytes, "{later_bytes} of {first_bytes} bytes");

    let requests = http.requests();
    source.fetch(&remote, &second).await.unwrap();
    assert_eq!(http.requests(), requests, "nothing is asked for what is there");
    for (sha, expected) in [(&first, 300), (&second, 300), (&third, 301)] {
        let into = folder.path().join(sha.as_str());
        assert_eq!(source.check_out(ID, sha, &into).await.unwrap().files, expected);
    }

    source.tidy(ID, std::slice::from_ref(&third)).await.unwrap();
    assert_eq!(source.commit(ID, &first).await.unwrap(), None);
    assert!(source.commit(ID, &third).await.unwrap().is_some());
    assert_eq!(fixture::objects(&mirror), 301 + 10 + 1 + 1);
    source.fetch(&remote, &second).await.unwrap();
    source.forget(ID).await.unwrap();
    assert_eq!(std::fs::read_dir(source.folder()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_credential_goes_to_the_server_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let sha = origin.commit_files(&[("a", "a")]);
    let secret = "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5";
    let http = Http::serve(folder.path(), Some(secret));
    // Between Landfall and git stands a program that writes down what others on the machine could see.
    let seen = folder.path().join("arguments");
    let script =
        Scripted::new(folder.path(), &format!("printf '%s\\n' \"$@\" >>{}; exec {GIT} \"$@\"", seen.display()));
    let mirrors = folder.path().join("mirrors");
    let source = Source::new(mirrors.clone(), script.path());
    let good = Remote { repository: ID, url: http.url(&origin), authorization: Some(secret.to_owned()) };
    let bad = Remote { authorization: Some("Basic d3Jvbmc=".to_owned()), ..good.clone() };
    let none = Remote { authorization: None, ..good.clone() };
    for refused in [&bad, &none] {
        let error = source.fetch(refused, &sha).await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error:?}");
    }
    source.fetch(&good, &sha).await.unwrap();
    assert!(std::fs::read_to_string(&seen).unwrap().contains("fetch"));
    for text in [std::fs::read_to_string(&seen).unwrap(), format!("{good:?} {source:?}")] {
        assert!(!text.contains("eC1hY2Nlc3M"), "{text}");
    }
    assert!(!fixture::any_file_contains(&mirrors, b"eC1hY2Nlc3M"));
}

#[tokio::test]
async fn what_a_server_refuses_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    origin.commit_files(&[("a", "a")]);
    let absent: Sha = "0123456789012345678901234567890123456789".parse().unwrap();
    let http = Http::serve(folder.path(), None);
    let source = source(folder.path());
    let fetch = |url: String| {
        let (source, absent) = (&source, &absent);
        async move {
            let error = source.fetch(&Remote { repository: ID, url, authorization: None }, absent).await.unwrap_err();
            (format!("{error:?}").split([' ', '(']).next().unwrap().to_owned(), error.who())
        }
    };
    let expected = |name: &str, who| (name.to_owned(), who);
    assert_eq!(fetch(http.url(&origin)).await, expected("NotYetThere", Blame::Retry));
    assert_eq!(fetch(format!("{}/nobody/nothing.git", http.base())).await, expected("NotYetThere", Blame::Retry));
    assert_eq!(fetch(format!("{}/status/503", http.base())).await, expected("Unreachable", Blame::Retry));
    assert_eq!(fetch(format!("{}/status/429", http.base())).await, expected("Unreachable", Blame::Retry));
    assert_eq!(fetch(format!("{}/status/403", http.base())).await, expected("Unauthorized", Blame::Retry));
    assert_eq!(fetch(format!("{}/status/301", http.base())).await, expected("NotYetThere", Blame::Retry));
    assert_eq!(fetch(format!("{}/garbage", http.base())).await, expected("Unreachable", Blame::Retry));
    assert_eq!(fetch("http://127.0.0.1:1/x.git".to_owned()).await, expected("Unreachable", Blame::Retry));
    for url in [
        "ext::sh -c touch% /tmp/x",
        "git@github.com:o/r.git",
        "ssh://git@host/o/r",
        "/etc",
        "file:///etc x",
        "https://user:token@host/o/r",
        "https:///o/r",
        "https://host/o\n/r",
        "--upload-pack=id",
    ] {
        assert_eq!(fetch(url.to_owned()).await, expected("BadRemote", Blame::Bug), "{url}");
    }
    let strict = Source::new(folder.path().join("mirrors"), GIT.into());
    let local = strict.fetch(&remote(&origin), &absent).await.unwrap_err();
    assert!(matches!(local, SourceError::BadRemote(_)), "files of the server's own disk are no remotes");
}

#[tokio::test]
async fn a_git_that_hangs_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let script = Scripted::new(
        folder.path(),
        &format!(
            "case \"$*\" in *--batch*) exec {GIT} \"$@\";; esac; sleep 1000 & echo $! $$ >>{}; wait",
            pids.display()
        ),
    );
    let short =
        SourceLimits { fetch: Duration::from_millis(800), local: Duration::from_millis(400), ..Default::default() };
    let source = Source::new(folder.path().join("mirrors"), script.path()).with_limits(short);
    let remote = Remote { repository: ID, url: "https://localhost/o/r".to_owned(), authorization: None };
    let sha: Sha = "0123456789012345678901234567890123456789".parse().unwrap();
    let error = source.fetch(&remote, &sha).await.unwrap_err();
    assert!(matches!(error, SourceError::TimedOut { .. }), "{error:?}");
    fixture::all_end(&pids).await;

    // A caller that goes away leaves nothing behind either.
    std::fs::remove_file(&pids).unwrap();
    let patient = source.with_limits(SourceLimits::default());
    let abandoned = tokio::spawn({
        let (source, remote, sha) = (patient.clone(), remote.clone(), sha.clone());
        async move { source.fetch(&remote, &sha).await }
    });
    fixture::until("git runs", || pids.exists() && std::fs::read(&pids).unwrap().ends_with(b"\n")).await;
    assert!(fixture::pids(&pids).into_iter().all(is_alive));
    abandoned.abort();
    fixture::all_end(&pids).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/o/r.git", silent.local_addr().unwrap());
    let limits = SourceLimits { fetch: Duration::from_millis(700), ..Default::default() };
    let source = source(folder.path()).with_limits(limits);
    let sha: Sha = "0123456789012345678901234567890123456789".parse().unwrap();
    let error = source.fetch(&Remote { repository: ID, url, authorization: None }, &sha).await.unwrap_err();
    assert!(matches!(error, SourceError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn a_repository_that_outgrows_its_limit_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let sha = origin.commit_files(&[("a", &fixture::noise(1, 3_000_000))]);
    let http = Http::serve(folder.path(), None);
    http.slow_down();
    let limits = SourceLimits { pack_bytes: 100_000, ..Default::default() };
    let source = source(folder.path()).with_limits(limits);
    let remote = Remote { repository: ID, url: http.url(&origin), authorization: None };
    let error = source.fetch(&remote, &sha).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error:?}");
    assert_eq!(error.who(), Blame::User);
}

#[tokio::test]
async fn fetches_of_one_repository_take_turns() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let shas: Vec<Sha> = (0..6).map(|number| origin.commit_files(&[("a", &number.to_string())])).collect();
    let source = source(folder.path());
    let remote = remote(&origin);
    let fetches = shas.iter().chain(&shas).map(|sha| source.fetch(&remote, sha));
    for fetched in futures_util::future::join_all(fetches).await {
        fetched.unwrap();
    }
    // Another process holds the mirror, as a git does that outlived a killed Landfall.
    let holder = File::options().write(true).open(source.lock_path(ID)).unwrap();
    holder.lock().unwrap();
    let limits = SourceLimits { fetch: Duration::from_millis(300), ..Default::default() };
    let other = origin.commit_files(&[("a", "other")]);
    let error = source.clone().with_limits(limits).fetch(&remote, &other).await.unwrap_err();
    assert!(matches!(error, SourceError::TimedOut { .. }), "{error:?}");
    holder.unlock().unwrap();
    source.fetch(&remote, &other).await.unwrap();
}

#[tokio::test]
async fn what_an_interrupted_git_left_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let (first, second) = (origin.commit_files(&[("a", "1")]), origin.commit_files(&[("a", "2")]));
    let source = source(folder.path());
    source.fetch(&remote(&origin), &first).await.unwrap();
    let mirror = source.mirror(ID);
    std::fs::create_dir_all(source.folder().join("7.making")).unwrap();
    let left = ["shallow.lock", "packed-refs.lock", "config.lock", "objects/pack/tmp_pack_x1"];
    let reference = format!("refs/landfall/commits/{second}.lock");
    for name in left.into_iter().chain([reference.as_str()]) {
        std::fs::write(mirror.join(name), "").unwrap();
    }
    source.fetch(&remote(&origin), &second).await.unwrap();
    assert!(!mirror.join("objects/pack/tmp_pack_x1").exists());
}

#[tokio::test]
async fn a_damaged_mirror_is_fetched_anew() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let (first, second) = (origin.commit_files(&[("a", "1")]), origin.commit_files(&[("a", "2")]));
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("config", |mirror| std::fs::write(mirror.join("config"), "\0\0").unwrap()),
        ("packs", |mirror| {
            for entry in std::fs::read_dir(mirror.join("objects/pack")).unwrap() {
                let path = entry.unwrap().path();
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, b"").unwrap();
            }
        }),
        ("objects", |mirror| std::fs::remove_dir_all(mirror.join("objects")).unwrap()),
        ("HEAD", |mirror| std::fs::write(mirror.join("HEAD"), "").unwrap()),
    ];
    for (name, damage) in damages {
        let source = Source::new(folder.path().join(name), GIT.into()).allowing_local_remotes();
        source.fetch(&remote(&origin), &first).await.unwrap();
        damage(&source.mirror(ID));
        for sha in [&first, &second] {
            let fetched = source.fetch(&remote(&origin), sha).await;
            assert!(fetched.is_ok(), "{name}: {fetched:?}");
            let into = folder.path().join(format!("{name}-{sha}"));
            source.check_out(ID, sha, &into).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_was_not_fetched_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let sha = origin.commit_files(&[("a", "1")]);
    let source = source(folder.path());
    assert_eq!(source.commit(ID, &sha).await.unwrap(), None);
    let into = folder.path().join("out");
    for error in [
        source.tree_of(ID, &sha).await.map(drop).unwrap_err(),
        source.file(ID, &sha, "a").await.map(drop).unwrap_err(),
        source.check_out(ID, &sha, &into).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, SourceError::NotYetThere { .. }));
    }
    assert!(!into.exists());
    source.forget(ID).await.unwrap();
    source.tidy(ID, &[]).await.unwrap();
    assert!(source.version().await.unwrap().starts_with("git version 2."));
}

#[tokio::test]
async fn a_folder_that_is_not_empty_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Repository::new(folder.path());
    let sha = origin.commit_files(&[("a", "1")]);
    let source = source(folder.path());
    source.fetch(&remote(&origin), &sha).await.unwrap();
    let into = folder.path().join("out");
    std::fs::create_dir(&into).unwrap();
    std::fs::write(into.join("theirs"), "x").unwrap();
    assert!(matches!(source.check_out(ID, &sha, &into).await.unwrap_err(), SourceError::Io { .. }));
    assert_eq!(fixture::listing(&into), ["theirs 644 x"]);
}
