//! Builds: what they are made from, what they may not do, and what is kept of them.

use crate::support::machine::{Machine, hello};
use crate::support::town::{CUTS, ENDLESS, ENDLESS_MIGRATION, OWNER, Town};
use landfall::domain::{BuildState, PreparationState, SlugDigest, Verdict};
use landfall::reconcile;
use reqwest::Method;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::SystemTime;

fn entries(folder: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[actix_web::test]
async fn what_has_to_be_ended_says_so_in_the_pull_request_and_leaves_nothing() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let expected = [
        "The build took longer than it may and was ended.",
        "The build wrote more to the disk than it may and was ended.",
        "The build wrote more output than it may and was ended.",
    ];
    let ended = "The release phase took longer than it may and was ended, so nothing of what serves was touched.";
    let pages = CUTS.iter().map(|(page, _)| *page).zip(expected).chain([(ENDLESS_MIGRATION, ended)]);
    for (page, expected) in pages {
        town.push(&repository, "change", page).await;
        town.settle().await;
        let comment = town.comment(&pull).await;
        assert!(comment.contains(expected), "{page}: {comment}");
        assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"), "after {page}");
        let world = town.world();
        assert_eq!(entries(&world.folder("builds")), Vec::<String>::new(), "after {page}");
    }
    let id = town.world().store.repositories().unwrap()[0].id;
    assert_eq!(entries(&town.world().folder("cache").join(id.to_string())).len(), 2, "a cache for each branch");
    town.leave().await;
}

#[actix_web::test]
async fn a_build_that_nobody_waits_for_is_ended_and_made_anew_when_it_is_wanted_again() {
    let mut town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", ENDLESS).await;
    let pull = town.open_pull(&repository, "change", "Say nothing").await;
    town.settle().await;
    let building = |town: &Town| -> Vec<String> {
        let running = town.memory.running().into_iter().map(|process| process.to_string());
        running.filter(|process| process.starts_with("build.")).collect()
    };
    let first = building(&town);
    assert_eq!(first.len(), 1, "somebody waits for it");

    town.close(&pull).await;
    town.settle().await;
    let id = town.world().store.repositories().unwrap()[0].id;
    let caches = |town: &Town| entries(&town.world().folder("cache").join(id.to_string())).len();
    assert_eq!(building(&town), Vec::<String>::new());
    assert_eq!(entries(&town.world().folder("builds")), Vec::<String>::new());
    assert_eq!(caches(&town), 2, "what it had written into its branch's cache is kept");
    let overtaken = |town: &Town| {
        let builds = town.world().store.builds().unwrap();
        builds.iter().filter(|build| matches!(build.state, BuildState::Overtaken { .. })).count()
    };
    assert_eq!(overtaken(&town), 1);

    town.reopen(&pull).await;
    town.settle().await;
    let again = building(&town);
    assert_eq!((again.len(), overtaken(&town)), (1, 0));
    assert_ne!(again, first);
    // It is overtaken while the control plane is away.
    town.kill().await;
    town.push(&repository, "change", "two").await;
    town.boot(None).await;
    reconcile::resync(town.world()).await.expect("GitHub can be asked");
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    assert_eq!((building(&town), overtaken(&town)), (Vec::new(), 1));
    assert_eq!(entries(&town.world().folder("builds")), Vec::<String>::new());
    assert_eq!(caches(&town), 2);
    town.leave().await;
}

#[actix_web::test]
async fn a_mirror_is_packed_anew_while_a_build_goes_on_and_keeps_its_commit() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", ENDLESS).await;
    let pull = town.open_pull(&repository, "change", "Say nothing").await;
    town.settle().await;
    let world = town.world().clone();
    let id = world.store.repositories().unwrap()[0].id;
    let build = world.store.builds().unwrap().into_iter().find(|build| build.state == BuildState::Running);
    let commit = build.expect("a build goes on").commit;
    // Nothing but the build itself names its commit.
    for mut app in world.store.apps_of(id).unwrap() {
        app.deploys.retain(|deploy| deploy.commit != commit);
        world.commit(move |tx| tx.put_app(&app)).await.unwrap();
    }
    for mut known in world.store.pulls(id).unwrap() {
        known.open = false;
        world.commit(move |tx| tx.put_pull(&known)).await.unwrap();
    }
    for mut run in world.store.runs_of(id).unwrap() {
        run.verdict.get_or_insert(Verdict::Cancelled);
        world.commit(move |tx| tx.put_run(&run)).await.unwrap();
    }
    let head = std::fs::File::options().write(true).open(world.folder("mirrors").join(format!("{id}.git/HEAD")));
    head.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    reconcile::tidy(&world).await.expect("it tidies up");
    assert!(world.source.tidied_at(id).is_some_and(|at| at > SystemTime::UNIX_EPOCH), "it was not packed");
    assert!(world.source.commit(id, &commit).await.unwrap().is_some(), "the build's commit is gone");
    town.close(&pull).await;
    town.settle().await;
    town.leave().await;
}

#[actix_web::test]
async fn a_tree_is_built_again_after_another_interpreter_came_and_a_promotion_builds_nothing() {
    let toolchain = tempfile::tempdir().expect("a temporary folder");
    let bin = toolchain.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("python3"), "3.11").unwrap();
    let path = toolchain.path().to_owned();
    let town = Town::start_with(None, move |config| config.sandbox.toolchains = vec![path.clone()]).await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    let builds = || town.world().store.builds().unwrap().len();
    assert_eq!(builds(), 1);
    std::fs::write(bin.join("python3"), "the newer 3.13").unwrap();
    // The same files on another branch are the same tree.
    town.push(&repository, "again", "one").await;
    let pull = town.open_pull(&repository, "again", "Again").await;
    town.settle().await;
    assert_eq!(builds(), 2);
    town.say(&pull, "/promote", OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-production").as_deref(), Some("one"));
    assert_eq!(builds(), 2);
    town.leave().await;
}

#[actix_web::test]
async fn a_repository_without_a_procfile_is_told_to_add_one() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push_files(&repository, "change", json!({ "Procfile": null, "page.txt": "two" })).await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let comment = town.comment(&pull).await;
    let expected = "The slug declares no process that could run: add a `web:` line to the Procfile.";
    assert!(comment.contains(expected), "{comment}");
    assert_eq!(town.served("hello-pr-1"), None);
    assert_eq!(town.served("hello-staging").as_deref(), Some("one"));

    town.push_files(&repository, "change", json!({ "Procfile": "web: serve\n" })).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"));
    town.leave().await;
}

#[actix_web::test]
async fn files_that_break_their_rules_are_named_with_their_line() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let packs = |url: &str| format!("{{\"buildpacks\": [{{\"url\": \"{url}\"}}]}}");
    let missing = format!("{}/{repository}.git#none", town.sim.url());
    for (file, text, expected) in [
        ("app.json", "{\n  \"name\": ,\n}".to_owned(), vec!["The file app.json breaks its rules.", "line 2"]),
        (
            "app.json",
            packs("cobol"),
            vec!["A buildpack that this repository asks for cannot be had.", "cobol", "nodejs"],
        ),
        ("app.json", packs("http://169.254.169.254/x"), vec!["169.254.169.254 is not among build.buildpack_hosts"]),
        ("app.json", packs(&missing), vec!["there is no such branch, tag or commit"]),
        (
            ".github/landfall.toml",
            "[build]\nbuildpack = 1\n".to_owned(),
            vec!["The file .github/landfall.toml", "line 2"],
        ),
    ] {
        town.push_files(&repository, "change", json!({ file: text, "page.txt": text })).await;
        town.settle().await;
        let comment = town.comment(&pull).await;
        for expected in expected {
            assert!(comment.contains(expected), "{expected}: {comment}");
        }
        town.push_files(&repository, "change", json!({ file: "{}", "page.txt": file })).await;
        town.push_files(&repository, "change", json!({ ".github/landfall.toml": "" })).await;
        town.settle().await;
    }
    town.leave().await;
}

#[actix_web::test]
async fn a_buildpack_from_git_is_pinned_and_one_that_moved_is_built_anew() {
    let town = Town::start().await;
    let pack = town.make_repository("pack", "first").await;
    let repository = town.make_repository("hello", "one").await;
    let url = format!("{}/{pack}.git", town.sim.url());
    let files = json!({ "app.json": format!("{{\"buildpacks\": [{{\"url\": \"{url}#main\"}}]}}"), "page.txt": "two" });
    town.push_files(&repository, "main", files.clone()).await;
    town.settle().await;
    let head = town.head(&pack, "main").await;
    let pinned = |town: &Town| -> Vec<String> {
        let builds = town.world().store.builds().unwrap();
        builds.into_iter().flat_map(|build| build.buildpacks).collect()
    };
    assert_eq!(pinned(&town), [format!("{url}#{head}")]);
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));
    let spec = town.memory.history().into_iter().find(|spec| spec.environment.contains_key("BUILDPACKS"));
    assert!(spec.is_some());

    town.push(&pack, "main", "second").await;
    town.settle().await;
    // The same files again, on another branch, are the same tree.
    town.push_files(&repository, "again", files).await;
    town.open_pull(&repository, "again", "Again").await;
    town.settle().await;
    let moved = town.head(&pack, "main").await;
    let mut both = vec![format!("{url}#{head}"), format!("{url}#{moved}")];
    let mut found = pinned(&town);
    both.sort();
    found.sort();
    assert_eq!(found, both, "one build for each commit of the buildpack");
    town.leave().await;
}

#[actix_web::test]
async fn an_environment_with_buildpacks_of_its_own_has_a_slug_of_its_own() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    let manifest = json!({
        "buildpacks": [{ "url": "python" }],
        "environments": { "test": { "buildpacks": [{ "url": "python" }, { "url": "procfile" }] } },
    });
    town.push_files(&repository, "main", json!({ "app.json": manifest.to_string(), "page.txt": "two" })).await;
    town.settle().await;
    let all = || -> Vec<Vec<String>> {
        let mut all: Vec<_> = town.world().store.builds().unwrap().into_iter().map(|build| build.buildpacks).collect();
        all.sort();
        all
    };
    let both = [vec!["python".to_owned()], vec!["python".to_owned(), "procfile".to_owned()]];
    assert_eq!(all()[all().len() - 2..], both, "one for staging, one for its tests");
    assert_eq!(town.served("hello-staging").as_deref(), Some("two"));

    // A review app with the same ones as the tests has their slug; one with none of its own has staging's.
    let builds = all().len();
    let own = json!({
        "buildpacks": [{ "url": "python" }],
        "environments": {
            "test": { "buildpacks": [{ "url": "procfile" }] },
            "review": { "buildpacks": [{ "url": "procfile" }] },
        },
    });
    town.push_files(&repository, "change", json!({ "app.json": own.to_string(), "page.txt": "three" })).await;
    let pull = town.open_pull(&repository, "change", "Say three").await;
    town.settle().await;
    assert_eq!(all().len(), builds + 1, "{:?}", all());
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("three"));
    town.close(&pull).await;
    town.settle().await;
    town.leave().await;
}

/// A Node app that says whether it sees its development dependency, and whose tests need it.
fn with_development_dependency() -> BTreeMap<String, String> {
    let package = json!({
        "name": "shop", "version": "1.0.0", "devDependencies": { "ruler": "file:ruler" },
        "scripts": { "start": "node server.js", "test": "node -e \"require('ruler'); console.log('measured')\"" },
    });
    let lock = json!({
        "name": "shop", "version": "1.0.0", "lockfileVersion": 3, "requires": true,
        "packages": {
            "": { "name": "shop", "version": "1.0.0", "devDependencies": { "ruler": "file:ruler" } },
            "ruler": { "version": "1.0.0", "dev": true },
            "node_modules/ruler": { "resolved": "ruler", "link": true },
        },
    });
    let server = "let has = 'without'\ntry { require('ruler'); has = 'with' } catch {}\n\
                  require('http').createServer((q, s) => s.end(has + ' a ruler')).listen(process.env.PORT)\n";
    [
        ("package.json", package.to_string()),
        ("package-lock.json", lock.to_string()),
        ("server.js", server.to_owned()),
        ("ruler/package.json", json!({ "name": "ruler", "version": "1.0.0" }).to_string()),
        ("ruler/index.js", "module.exports = 1\n".to_owned()),
    ]
    .map(|(path, text)| (path.to_owned(), text))
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn tests_see_development_dependencies_that_production_does_not_have() {
    let machine = Machine::start().await;
    machine.make_repository("shop", &with_development_dependency()).await;
    // Staging waits for green tests, and those need what staging does not have.
    machine.serves("shop-staging", "without a ruler").await;
    let shown = machine.says(&["ci", "show", "1"]).await;
    assert!(shown.contains("passed"), "{shown}");
    let mut archives = entries(&machine.path("data/archives"));
    archives.retain(|name| name.ends_with(".tar.zst"));
    assert_eq!(archives.len(), 2, "a slug and its tests' layer: {archives:?}");
    machine.leave().await;
}

#[actix_web::test]
async fn slugs_that_nothing_needs_are_removed_and_built_again_when_they_are_wanted() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.settle().await;
    town.push(&repository, "change", "two").await;
    let pull = town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    town.close(&pull).await;
    town.settle().await;
    let world = town.world().clone();
    let archives = || {
        let mut names = entries(&world.folder("archives"));
        names.retain(|name| name.ends_with(".tar.zst"));
        names
    };
    // Both slugs, and what their nodes started from: in this town that is the same for all.
    assert_eq!(archives().len(), 3);
    reconcile::tidy(&world).await.expect("it tidies up");
    assert_eq!(archives().len(), 3, "what was just built is kept");
    for mut build in world.store.builds().unwrap() {
        if let BuildState::Succeeded { at, .. } = &mut build.state {
            at.0 = 0;
        }
        world.commit(move |tx| tx.put_build(&build)).await.unwrap();
    }
    for mut prepared in world.store.preparations().unwrap() {
        let PreparationState::Kept { at, .. } = &mut prepared.state else { panic!("{prepared:?}") };
        at.0 = 0;
        world.commit(move |tx| tx.put_preparation(&prepared)).await.unwrap();
    }
    reconcile::tidy(&world).await.expect("it tidies up");
    assert_eq!(archives().len(), 3, "what was just written is kept");
    assert_eq!(world.store.preparations().unwrap(), [], "what nobody starts from any more is forgotten");
    let age = || {
        for name in archives() {
            let file = std::fs::File::options().write(true).open(world.folder("archives").join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
    };
    age();
    reconcile::tidy(&world).await.expect("it tidies up");
    let staging = world.store.releases(&"hello-staging".parse().unwrap()).unwrap().remove(0).slug;
    assert_eq!(archives(), [format!("{staging}.tar.zst")]);
    let published: Vec<SlugDigest> =
        landfall::platform::Platform::Memory(town.memory.clone()).published().await.unwrap();
    assert_eq!(published, [staging]);

    town.reopen(&pull).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-1").as_deref(), Some("two"), "it was built again");
    assert_eq!(archives().len(), 2);
    town.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buildpack_from_git_builds_in_the_sandbox_and_its_excesses_are_named() {
    let machine = Machine::with("[build]\ndisk_mb = 64\nslug_mb = 1\n").await;
    machine.make_repository("pack", &[("README.md".to_owned(), "A buildpack.\n".to_owned())].into()).await;
    let program = |text: &str| {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.encode(format!("#!/bin/bash\n{text}\n"));
        json!({ "base64": bytes, "executable": true })
    };
    let compile = "echo 'web: python3 server.py' >\"$1/Procfile\"; cat \"$3/TONE\"; touch \"$2/kept\"\n\
                   case $(cat \"$1/mode\" 2>/dev/null) in\n\
                   large) head -c 3000000 /dev/urandom >\"$1/large\" ;;\n\
                   fill) for i in $(seq 200); do head -c 1M /dev/zero >\"$1/$i\"; done; sleep 1000 ;;\n\
                   link) ln -s ../../etc/hostname \"$1/link\" ;;\n\
                   esac";
    let files = json!({ "bin/compile": program(compile), "bin/test": program("echo 1..1; echo ok 1 of a buildpack") });
    let push =
        json!({ "repo": "olivia/pack", "branch": "main", "files": files, "message": "Write it", "user": "olivia" });
    let pack = machine.github(Method::POST, "/_/push", Some(push)).await;
    let commit = pack["sha"].as_str().expect("a commit").to_owned();

    let mut app = hello();
    app.remove("Procfile");
    let url = format!("http://{}/olivia/pack.git#{commit}", machine.github);
    let manifest = json!({ "buildpacks": [{ "url": url }], "env": { "TONE": "warm" } });
    app.insert("app.json".to_owned(), manifest.to_string());
    let repository = machine.make_repository("hello", &app).await;
    // Its own `app.json` says no name, so the greeting has none.
    machine.serves("hello-staging", "Hello, nobody!").await;

    for (number, (mode, expected)) in [
        ("large", "The built code is larger than a slug may be"),
        ("link", "A link in the built code leads out of it"),
        ("fill", "The build wrote more to the disk than it may and was ended."),
    ]
    .into_iter()
    .enumerate()
    {
        let files = [("mode".to_owned(), mode.to_owned())].into();
        machine.push(&repository, "change", &files, "Be excessive").await;
        if number == 0 {
            machine.open_pull(&repository, "change", "Be excessive").await;
        }
        machine.comment_says(&repository, 1, expected).await;
    }
    let nothing_left = async || {
        let left = entries(&machine.path("data/builds"));
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    };
    machine.expect("the builds' folders to go", nothing_left).await;
    machine.leave().await;
}

#[actix_web::test]
async fn a_fork_s_build_begins_with_the_default_branch_s_cache_and_writes_none() {
    let town = Town::start().await;
    let repository = town.make_repository("hello", "one").await;
    town.push(&repository, "change", "two").await;
    town.open_pull(&repository, "change", "Say two").await;
    town.settle().await;
    let id = town.world().store.repositories().unwrap()[0].id;
    let folder = town.world().folder("cache").join(id.to_string());
    let caches = || {
        let mut caches: Vec<(String, String)> = entries(&folder)
            .into_iter()
            .map(|name| (std::fs::read_to_string(folder.join(&name).join("page.txt")).unwrap_or_default(), name))
            .collect();
        caches.sort();
        caches
    };
    let before = caches();
    let pages: Vec<&str> = before.iter().map(|(page, _)| page.trim()).collect();
    assert_eq!(pages, ["one", "two"], "each branch wrote its own");
    // A branch of the fork has the name of one of ours.
    let (pull, head) = town.open_fork_with(&repository, "mallory", json!({ "page.txt": "poison" })).await;
    town.settle().await;
    town.say(&pull, &format!("/approve {head}"), OWNER).await;
    town.settle().await;
    assert_eq!(town.served("hello-pr-2").as_deref(), Some("poison"));
    assert_eq!(caches(), before, "nothing that others read was written");
    let build = town.world().store.builds().unwrap().into_iter().find(|build| build.commit.as_str() == head);
    assert_eq!(build.expect("it was built").cache_of, None);
    town.leave().await;
}
