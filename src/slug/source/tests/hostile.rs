//! Repositories that try to get out. Each is tried twice: fetched as from GitHub, where git's own checks stand first,
//! and put into the mirror behind their back, so that the walls of the check-out stand alone.

use super::super::*;
use super::ID;
use super::fixture::{self, GIT, Repository, remote, source};
use crate::slug::{CheckOut, CheckOutWarning};
use std::os::unix::fs::symlink;

struct World {
    folder: tempfile::TempDir,
    origin: Repository,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let origin = Repository::new(folder.path());
        std::fs::create_dir(folder.path().join("outside")).unwrap();
        std::fs::write(folder.path().join("outside/canary"), "alive").unwrap();
        World { folder, origin }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("work/out")
    }

    /// Fetches and checks out; whatever comes of it, nothing outside may have changed.
    async fn fetched(&self, sha: &Sha) -> Result<CheckOut, SourceError> {
        let source = source(self.folder.path());
        let outcome = match source.fetch(&remote(&self.origin), sha).await {
            Ok(_) => source.check_out(ID, sha, &self.out()).await,
            Err(error) => Err(error),
        };
        self.nothing_escaped(&outcome);
        outcome
    }

    /// As [`fetched`](World::fetched), with a mirror that took everything.
    async fn planted(&self, sha: &Sha) -> Result<CheckOut, SourceError> {
        self.planted_with(sha, SourceLimits::default()).await
    }

    async fn planted_with(&self, sha: &Sha, limits: SourceLimits) -> Result<CheckOut, SourceError> {
        let mirrors = self.folder.path().join("planted");
        std::fs::create_dir_all(&mirrors).unwrap();
        if !mirrors.join("7.git").exists() {
            symlink(&self.origin.path, mirrors.join("7.git")).unwrap();
        }
        self.origin.git(&["update-ref", &format!("refs/landfall/commits/{sha}"), sha.as_str()], b"");
        let source = Source::new(mirrors, GIT.into()).with_limits(limits);
        let outcome = source.check_out(ID, sha, &self.out()).await;
        self.nothing_escaped(&outcome);
        outcome
    }

    fn nothing_escaped(&self, outcome: &Result<CheckOut, SourceError>) {
        assert_eq!(fixture::listing(&self.folder.path().join("outside")), ["canary 644 alive"]);
        let mut names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !matches!(name.as_str(), "mirrors" | "planted" | "work"))
            .collect();
        names.sort();
        assert_eq!(names, ["origin.git", "outside"]);
        if outcome.is_err() {
            assert!(!self.out().exists(), "a refused tree leaves nothing behind");
        }
    }

    async fn refused(&self, tree: &str) -> String {
        let sha = self.origin.commit(tree);
        let error = self.fetched(&sha).await.expect_err("the fetched tree was not refused");
        assert_eq!(error.who(), Blame::User, "{error:?}");
        let error = self.planted(&sha).await.expect_err("the planted tree was not refused");
        assert_eq!(error.who(), Blame::User, "{error:?}");
        error.to_string()
    }

    async fn written(&self, tree: &str) -> (Vec<String>, Vec<CheckOutWarning>) {
        let sha = self.origin.commit(tree);
        let check_out = self.fetched(&sha).await.unwrap();
        (fixture::listing(&self.out()), check_out.warnings)
    }
}

#[tokio::test]
async fn links_that_lead_out_are_refused_and_named() {
    for (target, expected) in [
        ("/etc/passwd", "l is a link to an absolute path"),
        ("/app/inside", "l is a link to an absolute path"),
        ("..", "l is a link that leads out of the repository"),
        ("../outside/canary", "l is a link that leads out of the repository"),
        ("d/../../outside", "l is a link that leads out of the repository"),
        // Word by word inside; followed through `d/up`, outside.
        ("d/up/..", "l is a link that leads out of the repository"),
        ("a\0b", "l is a link without a usable target"),
    ] {
        let world = World::new();
        let blob = world.origin.blob(b"x");
        let (up, link) = (world.origin.blob(b".."), world.origin.blob(target.as_bytes()));
        let inner = world.origin.tree(&[("100644", b"f", &blob), ("120000", b"up", &up)]);
        let tree = world.origin.tree(&[("40000", b"d", &inner), ("120000", b"l", &link)]);
        assert_eq!(world.refused(&tree).await, expected, "{target:?}");
    }
    for target in [String::new(), "x".repeat(4096)] {
        let world = World::new();
        let link = world.origin.blob(target.as_bytes());
        let tree = world.origin.tree(&[("120000", b"l", &link)]);
        assert_eq!(world.refused(&tree).await, "l is a link without a usable target");
    }
}

#[tokio::test]
async fn links_that_stay_inside_are_kept() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let targets = ["../f", "missing", "loop", "../d/./a"].map(|target| world.origin.blob(target.as_bytes()));
    let inner = world.origin.tree(&[
        ("120000", b"a", &targets[0]),
        ("120000", b"b", &targets[1]),
        ("120000", b"c", &targets[3]),
        ("120000", b"loop", &targets[2]),
    ]);
    let tree = world.origin.tree(&[("40000", b"d", &inner), ("100644", b"f", &blob)]);
    let (listing, warnings) = world.written(&tree).await;
    assert_eq!(listing, ["d 755", "d/a -> ../f", "d/b -> missing", "d/c -> ../d/./a", "d/loop -> loop", "f 644 x"]);
    assert!(warnings.is_empty());
}

#[tokio::test]
async fn a_name_that_is_there_twice_is_refused() {
    let world = World::new();
    let blob = world.origin.blob(b"stolen");
    let out = world.origin.blob(b"../outside");
    let inside = world.origin.blob(b"d");
    let inner = world.origin.tree(&[("100644", b"canary", &blob)]);
    let deep = world.origin.tree(&[("40000", b"e", &inner)]);
    for entries in [
        // A file written through a link that stands in its folder's place.
        vec![("120000", &b"a"[..], out.as_str()), ("40000", b"a", &inner)],
        vec![("40000", b"a", &inner), ("120000", b"a", &out)],
        vec![("120000", b"a", &inside), ("40000", b"a", &deep), ("40000", b"d", &inner)],
        vec![("100644", b"a", &blob), ("100644", b"a", &blob)],
        vec![("100644", b"a", &blob), ("40000", b"a", &inner)],
        vec![("120000", b"a", &inside), ("120000", b"a", &inside)],
        vec![("100644", b"a", &blob), ("120000", b"a", &inside)],
    ] {
        let world_entries: Vec<(&str, &[u8], &str)> = entries.iter().map(|(m, n, o)| (*m, *n, *o)).collect();
        let tree = world.origin.tree(&world_entries);
        let said = world.refused(&tree).await;
        assert!(
            said.ends_with("is in the tree twice") || said == "a is a link that leads out of the repository",
            "{entries:?}: {said}"
        );
    }
}

#[tokio::test]
async fn names_that_no_file_can_have_are_refused() {
    let world = World::new();
    let blob = world.origin.blob(b"#!/bin/sh\ntouch ../../outside/hooked\n");
    let hooks = world.origin.tree(&[("100755", b"post-checkout", &blob)]);
    let git = world.origin.tree(&[("40000", b"hooks", &hooks)]);
    let long = vec![b'n'; 256];
    for name in
        [&b".."[..], b".", b".git", b".GIT", b".Git", b"a/../../outside/x", b"../outside/x", b"/etc/x", b"a//b", &long]
    {
        for entry in [("100644", name, blob.as_str()), ("40000", name, git.as_str())] {
            let tree = world.origin.tree(&[entry]);
            let sha = world.origin.commit(&tree);
            let error = world.planted(&sha).await.unwrap_err();
            assert!(
                matches!(error, SourceError::Hostile { why: Refusal::Name, .. } | SourceError::Damaged { .. }),
                "{name:?}: {error:?}"
            );
            assert!(world.fetched(&sha).await.is_err(), "{name:?}");
        }
    }
    let tree = world.origin.tree(&[("100644", b"", &blob)]);
    let sha = world.origin.commit(&tree);
    assert!(matches!(world.planted(&sha).await.unwrap_err(), SourceError::Damaged { .. }));
}

#[tokio::test]
async fn git_s_own_checks_stand_before_ours() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let url = |url: &str| world.origin.blob(format!("[submodule \"s\"]\n\tpath = s\n\turl = {url}\n").as_bytes());
    let dash = url("-u./payload");
    let update =
        world.origin.blob(b"[submodule \"s\"]\n\tpath = s\n\turl = https://h/r\n\tupdate = !touch ../outside/x\n");
    let link = world.origin.blob(b"../outside");
    let inner = world.origin.tree(&[("100644", b"config", &blob)]);
    for (name, tree) in [
        ("CVE-2018-17456: a submodule's address as an option", world.origin.tree(&[("100644", b".gitmodules", &dash)])),
        ("CVE-2019-19604: a submodule's update command", world.origin.tree(&[("100644", b".gitmodules", &update)])),
        ("a link as .gitmodules", world.origin.tree(&[("120000", b".gitmodules", &link)])),
        ("CVE-2014-9390: .git in HFS's eyes", world.origin.tree(&[("40000", ".g\u{200c}it".as_bytes(), &inner)])),
        ("CVE-2019-1352: .git in NTFS's eyes", world.origin.tree(&[("40000", b"git~1", &inner)])),
        ("an unsorted tree", world.origin.tree(&[("100644", b"b", &blob), ("100644", b"a", &blob)])),
    ] {
        let sha = world.origin.commit(&tree);
        let error = world.fetched(&sha).await.unwrap_err();
        assert!(matches!(error, SourceError::Damaged { .. } | SourceError::Hostile { .. }), "{name}: {error:?}");
        // Where git's checks are passed by, the tree is either refused or plain files.
        let _ = world.planted(&sha).await;
        let _ = std::fs::remove_dir_all(world.out());
    }
}

#[tokio::test]
async fn submodules_are_named_and_never_fetched() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let modules = format!(
        "[submodule \"a\"]\n\tpath = sub\n\turl = file://{}\n[submodule \"b\"]\n\tpath = \"sub\\r\"\n\turl = ../origin.git\n",
        world.origin.path.display()
    );
    let modules = world.origin.blob(modules.as_bytes());
    let other = world.origin.commit(&world.origin.tree(&[("100644", b"f", &blob)]));
    // CVE-2025-48384: a path that ends in CR is read back as another one, behind a link.
    let hooks = world.origin.blob(b"d");
    let tree = world.origin.tree(&[
        ("100644", b".gitmodules", &modules),
        ("160000", b"sub", other.as_str()),
        ("160000", b"sub\r", other.as_str()),
        ("120000", b"z", &hooks),
    ]);
    let (listing, warnings) = world.written(&tree).await;
    assert_eq!(listing.len(), 2);
    assert_eq!(listing[1], "z -> d");
    let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["sub is a submodule, which is not fetched", "sub\\r is a submodule, which is not fetched"]);
}

#[tokio::test]
async fn attributes_filters_and_embedded_repositories_are_plain_files() {
    let world = World::new();
    // In this mirror a filter is even configured, as a careless operator might do for all repositories.
    world.origin.git(&["config", "filter.evil.smudge", "touch ../../outside/smudged; cat"], b"");
    world.origin.git(&["config", "filter.evil.required", "true"], b"");
    world.origin.git(&["config", "core.fsmonitor", "touch ../../outside/monitored"], b"");
    world.origin.git(&["config", "core.autocrlf", "true"], b"");
    let attributes =
        b"*.txt filter=evil\n*.crlf text eol=crlf\n*.id ident\n*.sub export-subst\n*.u working-tree-encoding=UTF-16\nx export-ignore\n";
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n";
    let config = "[core]\n\tbare = true\n\tfsmonitor = touch ../outside/bare\n\thooksPath = hooks\n";
    let files: Vec<(&[u8], &[u8])> = vec![
        (b".gitattributes", attributes),
        (b"HEAD", b"ref: refs/heads/main\n"),
        (b"a.crlf", b"1\n2\n"),
        (b"a.id", b"$Id$"),
        (b"a.sub", b"$Format:%H$"),
        (b"a.txt", b"text\n"),
        (b"a.u", b"text"),
        (b"big.bin", pointer.as_bytes()),
        (b"config", config.as_bytes()),
        (b"x", b"x"),
    ];
    let blobs: Vec<String> = files.iter().map(|(_, content)| world.origin.blob(content)).collect();
    let empty = world.origin.blob(b"");
    let objects = world.origin.tree(&[("100644", b".keep", &empty)]);
    let mut entries: Vec<(&str, &[u8], &str)> =
        files.iter().zip(&blobs).map(|((name, _), blob)| ("100644", *name, blob.as_str())).collect();
    entries.insert(9, ("40000", b"objects", &objects));
    entries.insert(10, ("40000", b"refs", &objects));
    let tree = world.origin.tree(&entries);
    let sha = world.origin.commit(&tree);
    for outcome in [world.planted(&sha).await, {
        std::fs::remove_dir_all(world.out()).unwrap();
        world.fetched(&sha).await
    }] {
        let check_out = outcome.unwrap();
        assert_eq!(check_out.warnings, [CheckOutWarning::Lfs { path: "big.bin".to_owned() }]);
        for (name, content) in &files {
            let path = world.out().join(std::str::from_utf8(name).unwrap());
            assert_eq!(std::fs::read(path).unwrap(), *content, "{}", String::from_utf8_lossy(name));
        }
    }
}

#[tokio::test]
async fn strange_names_are_written_as_they_are() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let mut names: Vec<&[u8]> = vec![
        b"$(touch ..%outside%x)",
        b"'; rm -rf ~ #",
        b"\"quoted\"",
        b"--upload-pack=id",
        b"-rf",
        b"a\tb",
        b"back\\slash",
        b"bell\x07",
        b"cr\r",
        b"latin\xe4",
        b"new\nline",
        b"tree 0000",
        b"~",
        b"\xe2\x80\xaeltr",
    ];
    names.sort_unstable();
    let entries: Vec<(&str, &[u8], &str)> = names.iter().map(|name| ("100644", *name, blob.as_str())).collect();
    let tree = world.origin.tree(&entries);
    let (listing, _) = world.written(&tree).await;
    assert_eq!(listing.len(), names.len());
    let mut found: Vec<Vec<u8>> = std::fs::read_dir(world.out())
        .unwrap()
        .map(|entry| std::os::unix::ffi::OsStringExt::into_vec(entry.unwrap().file_name()))
        .collect();
    found.sort_unstable();
    assert_eq!(found, names);
}

#[tokio::test]
async fn trees_that_are_too_large_are_given_up_before_they_are_written() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    // Twelve trees of ten entries name a million million files.
    let names: Vec<Vec<u8>> = (0..10).map(|digit| vec![b'0' + digit]).collect();
    let mut tree = {
        let entries: Vec<(&str, &[u8], &str)> =
            names.iter().map(|name| ("100644", name.as_slice(), blob.as_str())).collect();
        world.origin.tree(&entries)
    };
    for _ in 0..11 {
        let entries: Vec<(&str, &[u8], &str)> =
            names.iter().map(|name| ("40000", name.as_slice(), tree.as_str())).collect();
        tree = world.origin.tree(&entries);
    }
    assert_eq!(world.refused(&tree).await, "the number of files in the tree is larger than 100000");

    let limits = SourceLimits { files: 10, bytes: 100, ..Default::default() };
    let files = |count: usize, length: usize| {
        let blob = world.origin.blob(&vec![b'x'; length]);
        let entries: Vec<(&str, &[u8], &str)> =
            names[..count].iter().map(|name| ("100644", name.as_slice(), blob.as_str())).collect();
        world.origin.commit(&world.origin.tree(&entries))
    };
    let fits = files(10, 10);
    assert_eq!(world.planted_with(&fits, limits).await.unwrap().bytes, 100);
    std::fs::remove_dir_all(world.out()).unwrap();
    let error = world.planted_with(&files(10, 11), limits).await.unwrap_err();
    assert_eq!(error.to_string(), "the tree is larger than 100");
    let limits = SourceLimits { files: 9, ..limits };
    let error = world.planted_with(&fits, limits).await.unwrap_err();
    assert_eq!(error.to_string(), "the number of files in the tree is larger than 9");

    // A path that is longer than any system takes.
    let mut deep = world.origin.tree(&[("100644", b"f", &blob)]);
    let name = vec![b'd'; 200];
    for _ in 0..21 {
        deep = world.origin.tree(&[("40000", &name, &deep)]);
    }
    assert!(world.refused(&deep).await.ends_with("is not a name that a file can have"));
}

#[tokio::test]
async fn odd_modes_are_normalised_or_refused() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let tree = world.origin.tree(&[("100664", b"a", &blob), ("100755", b"b", &blob)]);
    let (listing, _) = world.written(&tree).await;
    assert_eq!(listing, ["a 644 x", "b 755 x"]);
    std::fs::remove_dir_all(world.out()).unwrap();
    for mode in ["130000", "060644", "777777"] {
        let tree = world.origin.tree(&[(mode, b"a", &blob)]);
        let sha = world.origin.commit(&tree);
        match world.planted(&sha).await {
            Err(error) => assert_eq!(error.who(), Blame::User, "{mode}: {error:?}"),
            // Some versions of git read every odd mode as a submodule.
            Ok(check_out) => {
                assert_eq!(check_out.files, 0, "{mode}");
                std::fs::remove_dir_all(world.out()).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_commit_is_refused() {
    let world = World::new();
    let blob = world.origin.blob(b"x");
    let tree = world.origin.tree(&[("100644", b"a", &blob)]);
    let commit = world.origin.commit(&tree);
    let tag = format!("object {commit}\ntype commit\ntag v1\ntagger A <a@b> 1 +0000\n\nx\n");
    let tag = world.origin.object("tag", tag.as_bytes());
    for (name, object) in [("a", &blob), ("b", &tree), ("c", &tag)] {
        // Reachable from the server's side, as all that GitHub gives out is.
        world.origin.git(&["update-ref", &format!("refs/x/{name}"), object], b"");
        let error = world.fetched(&object.parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, SourceError::Damaged { .. }), "{object}: {error:?}");
    }
}
