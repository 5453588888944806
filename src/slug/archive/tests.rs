//! The same files give the same digest; what may not be packed is refused.

use super::*;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What an archive holds: kind, mode, and content or target, by name in the archive's order.
fn entries(path: &Path) -> Vec<(Vec<u8>, String)> {
    let mut archive = tar::Archive::new(zstd::Decoder::new(File::open(path).unwrap()).unwrap());
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, TIME));
        let (kind, mode) = (header.entry_type(), header.mode().unwrap());
        let name = entry.path_bytes().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let content = String::from_utf8_lossy(&content).into_owned();
        let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
        found.push((name, format!("{kind:?} {mode:o} {}", target.unwrap_or(content))));
    }
    found
}

fn write(folder: &Path, name: &str, content: &str, mode: u32) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["b", "a", "bin/run", "d/z", "d/a", "d-e", "d.txt", "ä", "Z"];
    let noise: String = (0..400_000u32)
        .map(|number| char::from(b' ' + (number.wrapping_mul(2_654_435_761) >> 25) as u8 % 90))
        .collect();
    let make = |name: &str, reverse: bool, umask: u32, days: u64| {
        let root = folder.path().join(name);
        fs::create_dir(&root).unwrap();
        let mut order = names.to_vec();
        if reverse {
            order.reverse();
        }
        for name in order {
            let executable = if name.starts_with("bin/") { 0o777 } else { 0o666 };
            write(&root, name, &format!("{name}{noise}"), executable & !umask);
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
            File::options().write(true).open(root.join(name)).unwrap().set_modified(time).unwrap();
        }
        fs::create_dir(root.join("empty")).unwrap();
        fs::set_permissions(root.join("empty"), Permissions::from_mode(0o777 & !umask)).unwrap();
        symlink("a", root.join("link")).unwrap();
        root
    };
    let first = make("first", false, 0o022, 1);
    let second = make("second", true, 0o077, 20_000);
    // Things that are no part of what a tree is.
    write(&second, ".git/config", "[core]", 0o644);
    fs::hard_link(second.join("a"), folder.path().join("elsewhere")).unwrap();

    let slugs = folder.path().join("slugs");
    let packed = pack(&first, &slugs).unwrap();
    assert_eq!(pack(&second, &slugs).unwrap(), packed);
    for threads in [0, 1, 2, 5] {
        let other = folder.path().join(format!("slugs-{threads}"));
        let again = pack_within(&second, &other, &[], ArchiveLimits::default(), threads).unwrap();
        assert_eq!(again.digest, packed.digest, "{threads} threads");
        assert_eq!(fs::read(&again.path).unwrap(), fs::read(&packed.path).unwrap());
    }
    assert_eq!(fs::read_dir(&slugs).unwrap().count(), 1);
    assert_eq!(packed.path, slugs.join(format!("{}.tar.zst", packed.digest)));
    assert_eq!(packed.bytes, fs::metadata(&packed.path).unwrap().len());
    assert_eq!(packed.files, 10);
    let order: Vec<String> =
        entries(&packed.path).into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect();
    // Folder by folder, as bytes sort; links last.
    let expected = ["Z", "a", "b", "bin/", "bin/run", "d/", "d/a", "d/z", "d-e", "d.txt", "empty/", "ä", "link"];
    assert_eq!(order, expected);

    // One byte, one name, one mode, one target: each gives another slug.
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(second.join("a"), "other").unwrap(),
        &|| fs::rename(second.join("b"), second.join("c")).unwrap(),
        &|| fs::set_permissions(second.join("c"), Permissions::from_mode(0o755)).unwrap(),
        &|| {
            fs::remove_file(second.join("link")).unwrap();
            symlink("c", second.join("link")).unwrap();
        },
    ];
    let mut seen = vec![packed.digest];
    for change in changes {
        change();
        let digest = pack(&second, &slugs).unwrap().digest;
        assert!(!seen.contains(&digest));
        seen.push(digest);
    }
}

#[test]
fn an_archive_of_today_is_an_archive_of_tomorrow() {
    // A change of this digest means that every slug is packed under another name: a new level, a new library.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    write(&root, "Procfile", "web: node index.js\n", 0o644);
    write(&root, "bin/run", "#!/bin/sh\n", 0o755);
    let packed = pack(&root, folder.path()).unwrap();
    assert_eq!(packed.digest.as_str(), "da33536ea8cc73199fc2debee266e5c3ffee9bf49941dfd290d08e93f7fa61f4");
}

#[test]
fn modes_owners_links_and_long_names_are_kept_as_they_should() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    write(&root, "plain", "p", 0o640);
    write(&root, "program", "x", 0o6755);
    write(&root, "odd", "o", 0o611);
    fs::hard_link(root.join("plain"), root.join("twin")).unwrap();
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    write(&root, &long, "l", 0o644);
    let strange = OsStr::from_bytes(b"new\nline\xff");
    fs::write(root.join(strange), "s").unwrap();
    symlink("plain", root.join("to-plain")).unwrap();
    symlink(&long, root.join("to-long")).unwrap();
    symlink("/usr/bin/python3", root.join("python")).unwrap();
    symlink("/app/plain", root.join("to-app")).unwrap();
    symlink("missing", root.join("dangling")).unwrap();
    let found: BTreeMap<Vec<u8>, String> = entries(&pack(&root, folder.path()).unwrap().path).into_iter().collect();
    let expected: BTreeMap<Vec<u8>, String> = [
        (b"plain".to_vec(), "Regular 644 p".to_owned()),
        (b"program".to_vec(), "Regular 755 x".to_owned()),
        (b"odd".to_vec(), "Regular 644 o".to_owned()),
        (b"twin".to_vec(), "Regular 644 p".to_owned()),
        (format!("{}/", "d".repeat(150)).into_bytes(), "Directory 755 ".to_owned()),
        (long.clone().into_bytes(), "Regular 644 l".to_owned()),
        (b"new\nline\xff".to_vec(), "Regular 644 s".to_owned()),
        (b"to-plain".to_vec(), "Symlink 777 plain".to_owned()),
        (b"to-long".to_vec(), format!("Symlink 777 {long}")),
        (b"python".to_vec(), "Symlink 777 /usr/bin/python3".to_owned()),
        (b"to-app".to_vec(), "Symlink 777 /app/plain".to_owned()),
        (b"dangling".to_vec(), "Symlink 777 missing".to_owned()),
    ]
    .into_iter()
    .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_was_packed_can_be_unpacked_by_tar() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    for number in 0..50 {
        write(&root, &format!("d{}/{}", number % 5, "n".repeat(number * 4 + 1)), &"x".repeat(number * 1000), 0o644);
    }
    symlink("../d1", root.join("d0/link")).unwrap();
    let packed = pack(&root, folder.path()).unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let plain = folder.path().join("plain.tar");
    zstd::stream::copy_decode(File::open(&packed.path).unwrap(), File::create(&plain).unwrap()).unwrap();
    assert!(Command::new("/bin/tar").args(["-xf"]).arg(&plain).arg("-C").arg(&out).status().unwrap().success());
    assert!(Command::new("/usr/bin/diff").arg("-r").arg(&root).arg(&out).status().unwrap().success());
}

#[test]
fn links_that_lead_out_are_refused() {
    for (target, inside) in [
        ("a", true),
        ("../app/a", false),
        ("../../etc/passwd", false),
        ("d/../../x", false),
        ("/etc/ssl/certs", true),
        ("/usr", true),
        ("/usr/../root", false),
        ("/usrlocal", false),
        ("/root/.ssh", false),
        ("/proc/self/environ", false),
        ("/", false),
        ("abs/python3", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("app");
        write(&root, "d/f", "x", 0o644);
        symlink("/usr/bin", root.join("abs")).unwrap();
        symlink(target, root.join("link")).unwrap();
        match pack(&root, &folder.path().join("slugs")) {
            Ok(_) => assert!(inside, "{target}"),
            Err(error) => {
                assert!(!inside, "{target}: {error}");
                assert_eq!(error.to_string(), format!("link is a link to {target}, outside of the app"));
                assert_eq!(error.who(), Blame::User);
                assert_eq!(fs::read_dir(folder.path().join("slugs")).unwrap().count(), 0, "nothing is left behind");
            }
        }
    }
}

#[test]
fn links_into_the_machine_s_toolchains_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    fs::create_dir(&root).unwrap();
    symlink("/toolchains/python/bin/python3", root.join("python")).unwrap();
    let toolchains = [PathBuf::from("/toolchains/python")];
    assert_eq!(pack_with_toolchains(&root, folder.path(), &toolchains, ArchiveLimits::default()).unwrap().files, 1);
    assert!(pack(&root, folder.path()).is_err());
    symlink("/toolchains/pythonic", root.join("other")).unwrap();
    assert!(pack_with_toolchains(&root, folder.path(), &toolchains, ArchiveLimits::default()).is_err());
}

#[test]
fn what_is_neither_file_nor_folder_nor_link_is_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    write(&root, "a", "a", 0o644);
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), Mode::from_bits_truncate(0o644)).unwrap();
    let packed = pack(&root, folder.path()).unwrap();
    assert_eq!(packed.left_out, ["pipe", "socket"]);
    assert_eq!(entries(&packed.path), [(b"a".to_vec(), "Regular 644 a".to_owned())]);
}

#[test]
fn a_folder_that_is_a_link_is_not_packed() {
    let folder = tempfile::tempdir().unwrap();
    symlink("/etc", folder.path().join("app")).unwrap();
    assert!(matches!(pack(&folder.path().join("app"), folder.path()), Err(ArchiveError::Io { .. })));
    // Nor is what a link inside leads to.
    let root = folder.path().join("real");
    write(&root, "a", "a", 0o644);
    symlink("/etc", root.join("etc")).unwrap();
    let names: Vec<Vec<u8>> =
        entries(&pack(&root, folder.path()).unwrap().path).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"a".to_vec(), b"etc".to_vec()]);
}

#[test]
fn every_limit_is_told_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    let slugs = folder.path().join("slugs");
    let noise: Vec<u8> =
        (0..300_000u64).map(|number| (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect();
    fs::create_dir(&root).unwrap();
    fs::write(root.join("noise"), &noise).unwrap();
    fs::write(root.join("more"), "x").unwrap();
    // Two heads, and contents of 586 blocks and of one.
    let all = (1 + 586 + 1 + 1) * 512;
    let exact = ArchiveLimits { folder_bytes: all, entries: 2, ..ArchiveLimits::default() };
    let bytes = pack_within(&root, &slugs, &[], exact, 1).unwrap().bytes;
    fs::remove_dir_all(&slugs).unwrap();
    let refused = |limits: ArchiveLimits| {
        let error = pack_within(&root, &slugs, &[], limits, 2).unwrap_err();
        assert_eq!(error.who(), Blame::User);
        assert_eq!(fs::read_dir(&slugs).unwrap().count(), 0);
        error.to_string()
    };
    assert_eq!(
        refused(ArchiveLimits { archive_bytes: bytes - 1, ..exact }),
        format!("the archive is larger than {} bytes", bytes - 1)
    );
    let too_large = |limit: u64| format!("the built files are larger than {limit} bytes");
    assert_eq!(refused(ArchiveLimits { folder_bytes: all - 1, ..exact }), too_large(all - 1));
    assert_eq!(refused(ArchiveLimits { entries: 1, ..exact }), "the build left more than 1 files");

    // A file of a petabyte that takes no room is told by its size, not by reading it.
    File::create(root.join("sparse")).unwrap().set_len(1 << 42).unwrap();
    assert_eq!(refused(ArchiveLimits { entries: 3, ..exact }), too_large(all));
    // A bomb: many bytes from few.
    File::options().write(true).open(root.join("sparse")).unwrap().set_len(200 << 20).unwrap();
    let said = "the built files are more than 150 times as large as their archive";
    assert_eq!(refused(ArchiveLimits::default()), said);
    fs::remove_file(root.join("sparse")).unwrap();

    let mut deep = root.clone();
    for _ in 0..=DEEPEST {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    assert!(refused(ArchiveLimits::default()).ends_with(" lies more than 128 folders deep"));
}

#[test]
fn another_digest_s_bytes_are_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("app");
    write(&root, "a", "a", 0o644);
    let packed = pack(&root, folder.path()).unwrap();
    verify(&packed.path, &packed.digest).unwrap();
    let mut opened = open(&packed.path, &packed.digest).unwrap();
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, fs::read(&packed.path).unwrap());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&packed.path, &bytes).unwrap();
    assert!(matches!(verify(&packed.path, &packed.digest), Err(ArchiveError::WrongDigest { .. })));
    let link = folder.path().join("link");
    symlink(&packed.path, &link).unwrap();
    assert!(matches!(verify(&link, &packed.digest), Err(ArchiveError::Io { .. })));
}

#[test]
fn what_a_killed_pack_left_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".packing-1-1"), "").unwrap();
    fs::write(folder.path().join("kept.tar.zst"), "").unwrap();
    sweep_unfinished(folder.path());
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["kept.tar.zst"]);
    sweep_unfinished(&folder.path().join("nothing"));
}
