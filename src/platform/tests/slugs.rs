//! Slugs: shared, unchangeable from inside, and unpacked without trust.

use super::world::*;
use crate::platform::contract::*;
use std::os::unix::fs::MetadataExt;

#[tokio::test]
async fn ten_processes_share_one_slug_and_each_writes_for_itself() {
    let world = World::new();
    let content = "x".repeat(1 << 20);
    let digest = world.publish(&[("big", &content), ("own", "from the slug")]).await;
    let again = world.publish(&[("big", &content), ("own", "from the slug")]).await;
    assert_eq!(digest, again, "publishing twice is no harm");
    let slug = world.data_dir().join("slugs").join(digest.as_str());
    let inode = std::fs::metadata(slug.join("own")).expect("a file").ino();
    for number in 0..10 {
        let mut process = spec(
            &format!("share.web.{number}.a1"),
            &format!(
                "cat own; echo; echo {number} > own; rm big; mkdir new; echo {number} > new/file; echo ready; sleep 1000"
            ),
        );
        process.code = Code::Slug(digest.clone());
        world.platform.start(&process).await.expect("it starts");
    }
    for number in 0..10 {
        let id = id(&format!("share.web.{number}.a1"));
        world.says(&id, "ready").await;
        assert_eq!(world.lines(&id).await[0].text, "from the slug");
    }
    assert_eq!(std::fs::read_to_string(slug.join("own")).expect("a file"), "from the slug");
    assert_eq!(std::fs::metadata(slug.join("own")).expect("a file").ino(), inode);
    assert!(slug.join("big").exists() && !slug.join("new").exists());
    let copies = walk(&world.data_dir()).into_iter().filter(|path| path.ends_with("big")).count();
    assert_eq!(copies, 1, "the slug's files lie on the disk once");
    world.platform.unpublish(&again).await.expect("it is forgotten");
    assert_eq!(world.platform.published().await.expect("a list"), []);
    world.platform.unpublish(&again).await.expect("fine if gone");
    world.end().await;
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// A header with any name, which the library would not write.
fn header(name: &[u8], kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o6777);
    header.set_cksum();
    header
}

fn link(name: &[u8], kind: tar::EntryType, target: &[u8]) -> tar::Header {
    let mut header = header(name, kind, 0);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    header
}

fn tar_of(entries: &[(tar::Header, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (header, content) in entries {
        tar.append(header, *content).expect("an entry");
    }
    tar.into_inner().expect("an archive")
}

#[tokio::test]
async fn hostile_archives_are_refused_and_leave_nothing() {
    use tar::EntryType as Type;
    let world = World::new();
    let victim = world.folder.path().join("victim");
    std::fs::create_dir(&victim).expect("a folder");
    let victim_path = victim.to_str().expect("a path").as_bytes();
    let absolute = [victim_path, b"/file"].concat();
    let file = |name: &[u8]| (header(name, Type::Regular, 1), b"x".as_slice());
    let none = b"".as_slice();
    let pax_size = b"13 size=9999\n".as_slice();
    let long_name = vec![b'a'; 100_000];
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("an absolute path", tar_of(&[file(&absolute)])),
        ("a path that climbs", tar_of(&[file(b"../file")])),
        ("a path that climbs later", tar_of(&[file(b"a/../../file")])),
        ("a file through a link", tar_of(&[(link(b"a", Type::Symlink, victim_path), none), file(b"a/file")])),
        (
            "a folder through a link",
            tar_of(&[(link(b"a", Type::Symlink, b".."), none), (header(b"a/b", Type::Directory, 0), none)]),
        ),
        ("a file over a link", tar_of(&[(link(b"a", Type::Symlink, &absolute), none), file(b"a")])),
        (
            "a folder over a link",
            tar_of(&[(link(b"a", Type::Symlink, victim_path), none), (header(b"a", Type::Directory, 0), none)]),
        ),
        ("a hard link out", tar_of(&[(link(b"a", Type::Link, b"/etc/passwd"), none)])),
        ("a hard link that climbs", tar_of(&[(link(b"a", Type::Link, b"../../../etc/passwd"), none)])),
        (
            "a hard link to a link",
            tar_of(&[(link(b"a", Type::Symlink, b"/etc/passwd"), none), (link(b"b", Type::Link, b"a"), none)]),
        ),
        (
            "a hard link through a link",
            tar_of(&[(link(b"a", Type::Symlink, b"/etc"), none), (link(b"b", Type::Link, b"a/passwd"), none)]),
        ),
        ("a character device", tar_of(&[(header(b"a", Type::Char, 0), none)])),
        ("a block device", tar_of(&[(header(b"a", Type::Block, 0), none)])),
        ("a pipe", tar_of(&[(header(b"a", Type::Fifo, 0), none)])),
        ("a file twice", tar_of(&[file(b"a"), file(b"a")])),
        ("a sparse file", tar_of(&[(header(b"a", Type::GNUSparse, 0), none)])),
        ("a size told twice", tar_of(&[(header(b"p", Type::XHeader, 13), pax_size), file(b"a")])),
        ("an endless name", tar_of(&[(header(b"././@LongLink", Type::GNULongName, 100_000), &long_name), file(b"a")])),
        ("a cut archive", tar_of(&[file(b"a")])[..700].to_vec()),
        ("a bomb", vec![0; 0]),
        ("no archive", b"garbage".repeat(200)),
    ];
    for (name, tar) in hostile {
        let (archive, digest) = if name == "a bomb" {
            let size = 300_usize << 20;
            let mut bytes = header(b"a", Type::Regular, size as u64).as_bytes().to_vec();
            bytes.resize(512 + size, 0);
            world.archive(&bytes)
        } else {
            world.archive(&tar)
        };
        let result = world.platform.publish(&digest, &archive).await;
        assert!(matches!(result, Err(PlatformError::BadArchive(_))), "{name}: {result:?}");
        assert_eq!(world.platform.published().await.expect("a list"), []);
    }
    assert_eq!(std::fs::read_dir(&victim).expect("a folder").count(), 0, "nothing was written outside");
    assert_eq!(std::fs::read_dir(world.data_dir().join("slugs")).expect("a folder").count(), 0);
    assert!(!world.folder.path().join("file").exists());

    // Its bytes are not those of its name.
    let (archive, _) = world.archive(&tar_of(&[file(b"a")]));
    let wrong = "0".repeat(64).parse().expect("a digest");
    assert!(matches!(world.platform.publish(&wrong, &archive).await, Err(PlatformError::BadArchive(_))));
    world.end().await;
}

#[tokio::test]
async fn an_honest_archive_keeps_its_links_and_modes_but_no_setuid_bit() {
    use tar::EntryType as Type;
    let world = World::new();
    let long = "deep/".repeat(30) + &"n".repeat(150);
    let mut tar = tar::Builder::new(Vec::new());
    for (mode, name) in [(0o4755, "bin/tool"), (0o600, "private"), (0o2775, long.as_str())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(mode);
        tar.append_data(&mut header, name, b"tool".as_slice()).expect("an entry");
    }
    tar.append(&link(b"python", Type::Symlink, b"/usr/bin/python3"), b"".as_slice()).expect("an entry");
    tar.append(&link(b"hard", Type::Link, b"./bin/tool"), b"".as_slice()).expect("an entry");
    tar.append(&header(b"./", Type::Directory, 0), b"".as_slice()).expect("an entry");
    tar.append(&header(b"empty/", Type::Directory, 0), b"".as_slice()).expect("an entry");
    let (archive, digest) = world.archive(&tar.into_inner().expect("an archive"));
    world.platform.publish(&digest, &archive).await.expect("it is published");
    let mut process = spec(
        "honest.run.1.a1",
        &format!(
            "stat -c %a bin/tool private {long} empty; readlink python; cat hard; echo; echo w > empty/w; echo w >> private; cat private"
        ),
    );
    process.code = Code::Slug(digest);
    assert_eq!(world.output(&process).await, ["755", "644", "755", "755", "/usr/bin/python3", "tool", "toolw"]);
    world.end().await;
}

#[tokio::test]
async fn a_layer_below_a_slug_adds_what_the_slug_does_not_have_and_changes_nothing_of_it() {
    let world = World::new();
    let slug = world.publish(&[("modules/kept/file", "of the slug"), ("own", "of the slug")]).await;
    let layer = [("modules/kept/file", "of the layer"), ("modules/extra/file", "of the layer"), ("own/x", "hidden")];
    let below = world.publish(&layer).await;
    let code = Code::Layered { slug: slug.clone(), below: below.clone() };
    let mut process =
        spec("layered.test.0.a1", "cat own modules/*/file; echo; echo changed > modules/extra/file; ls modules");
    process.code = code.clone();
    assert_eq!(world.output(&process).await, ["of the slugof the layerof the slug", "extra", "kept"]);
    let mut production = spec("layered.web.1.a1", "ls modules");
    production.code = Code::Slug(slug.clone());
    assert_eq!(world.output(&production).await, ["kept"]);
    world.platform.unpublish(&below).await.expect("it is forgotten");
    let mut late = spec("layered.test.0.a2", "true");
    late.code = code;
    let refused = world.platform.start(&late).await;
    assert!(matches!(&refused, Err(PlatformError::NotPublished(digest)) if *digest == below), "{refused:?}");
    world.end().await;
}

/// Bytes that a folder takes on the disk.
fn disk_of(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => found.blocks() * 512 + disk_of(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[tokio::test]
async fn ten_processes_of_a_slug_take_the_disk_of_one() {
    let world = World::new();
    let large = "a large file\n".repeat(1_500_000);
    let digest = world.publish(&[("large.txt", &large)]).await;
    let published = disk_of(&world.data_dir());
    assert!(published > large.len() as u64, "it is on the disk once: {published}");
    for number in 1..=10 {
        let mut reader = spec(&format!("ten.web.{number}.a1"), "sed -n 1p large.txt; sleep 1000");
        reader.code = Code::Slug(digest.clone());
        reader.limits.disk_bytes = 64 << 20;
        world.platform.start(&reader).await.expect("it starts");
    }
    for number in 1..=10 {
        let id = format!("ten.web.{number}.a1").parse().expect("a process id");
        world.says(&id, "a large file").await;
    }
    let running = disk_of(&world.data_dir());
    assert!(running < published + large.len() as u64 / 4, "{published} bytes, with ten processes {running}");
    world.end().await;
}
