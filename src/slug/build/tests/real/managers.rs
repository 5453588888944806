//! What package managers are told. The real ones run in `benches/toolchains`, which needs a network; here programs stand in
//! for them that write down how they were called.

use super::*;
use std::os::unix::fs::PermissionsExt;

/// A machine whose `name` is a stand-in of this version. It is refused whatever `refuses` names in its environment, as
/// yarn 4 refuses settings that it does not know.
fn machine_with(place: &Place, name: &str, version: &str, refuses: &str) -> String {
    let folder = place.folder.path().join("tools");
    fs::create_dir(&folder).unwrap();
    let calls = place.folder.path().join("calls");
    let script = format!(
        "#!/bin/bash\nif [ \"$1\" = --version ]; then echo {version}; exit; fi\n\
         for name in {refuses}; do [ -z \"${{!name+x}}\" ] || {{ echo \"unknown setting $name\"; exit 1; }}; done\n\
         echo \"$*\" >>{calls}\n",
        calls = calls.display()
    );
    let program = folder.join(name);
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:/usr/bin:/bin", folder.display())
}

fn calls(place: &Place) -> String {
    fs::read_to_string(place.folder.path().join("calls")).unwrap_or_default()
}

const PACKAGE: &str =
    r#"{"dependencies": {"a": "1"}, "scripts": {"heroku-prebuild": "x", "build": "never", "heroku-postbuild": "y"}}"#;

#[test]
fn node_s_package_managers_keep_to_their_lock_files() {
    for (manager, version, lock, refuses, installs) in [
        (
            "yarn",
            "1.22.22",
            "yarn.lock",
            "NOTHING",
            "install --frozen-lockfile --production=false --ignore-engines --non-interactive",
        ),
        ("yarn", "4.9.1", "yarn.lock", "YARN_PRODUCTION YARN_FROZEN_LOCKFILE", "install --immutable"),
        ("pnpm", "10.1.0", "pnpm-lock.yaml", "NOTHING", "install --frozen-lockfile --prod=false"),
    ] {
        let place = Place::new(&[("package.json", PACKAGE), (lock, "")]);
        let path = machine_with(&place, manager, version, refuses);
        let built = place.build_with("nodejs", &[], &path);
        assert_eq!(built.status, 0, "{manager} {version}: {}", built.log);
        let expected = format!("run heroku-prebuild\n{installs}\nrun heroku-postbuild\n");
        assert_eq!(calls(&place), expected, "{manager} {version}");
    }
}

/// A manager whose pruning runs this, below `node_modules`.
fn pruned_by(act: &str) -> (Place, Built) {
    let package = r#"{"dependencies": {"a": "1"}, "devDependencies": {"d": "1"}}"#;
    let place = Place::new(&[
        ("package.json", package),
        ("pnpm-lock.yaml", ""),
        ("node_modules/a/index.js", "a"),
        ("node_modules/d/index.js", "d"),
        ("node_modules/.modules.yaml", "all"),
        ("packages/one/node_modules/d/index.js", "d"),
    ]);
    let path = machine_with(&place, "pnpm", "10.1.0", "NOTHING");
    let program = place.folder.path().join("tools/pnpm");
    let script = fs::read_to_string(&program).unwrap();
    let act = format!("if [ \"$1\" = prune ]; then cd node_modules; {act}; fi\n");
    fs::write(&program, script + &act).unwrap();
    let built = place.build_somehow("nodejs", &[], &path, "apart");
    (place, built)
}

#[test]
fn a_pruning_that_does_more_than_to_take_away_is_undone() {
    let (place, built) = pruned_by("rm -r d ../packages/one/node_modules; echo few >.new; mv .new .modules.yaml");
    assert_eq!(built.status, 0, "{}", built.log);
    let read = |path: &str| fs::read_to_string(place.app().join(path)).ok();
    assert_eq!(read("node_modules/d/index.js"), None, "{}", built.log);
    assert_eq!(read(".landfall/test-layer/node_modules/d/index.js").as_deref(), Some("d"));
    assert_eq!(read(".landfall/test-layer/packages/one/node_modules/d/index.js").as_deref(), Some("d"));
    assert_eq!(read(".landfall/test-layer/node_modules/.modules.yaml"), None, "a manager's own note");
    for (act, said) in [
        ("rm -r d; echo other >a/new; mv a/new a/index.js", "the pruning changed node_modules/a/index.js"),
        ("rm -r d; mkdir c; echo c >c/index.js", "the pruning added node_modules/c"),
        ("rm -r d; false", "left in the slug"),
    ] {
        let (place, built) = pruned_by(act);
        assert_eq!(built.status, 0, "{}", built.log);
        assert!(built.log.contains(said), "{act}: {}", built.log);
        let read = |path: &str| fs::read_to_string(place.app().join(path)).ok();
        assert_eq!(read("node_modules/a/index.js").as_deref(), Some("a"), "{act}");
        assert_eq!(read("node_modules/d/index.js").as_deref(), Some("d"), "{act}");
        assert_eq!(read("node_modules/c/index.js"), None, "{act}");
        assert!(!place.app().join(".landfall").exists(), "{act}");
    }
}

#[test]
fn python_s_package_managers_keep_to_their_lock_files() {
    for (manager, lock, installs, pruned) in [
        ("uv", "uv.lock", "sync --locked --no-editable --python", "sync --locked --no-editable --no-dev --python"),
        ("poetry", "poetry.lock", "sync --no-interaction --no-root", "sync --no-interaction --no-root --only main"),
        ("pipenv", "Pipfile.lock", "sync --dev", "sync"),
    ] {
        for (prune, installs) in [("", installs), ("1", pruned)] {
            let place = Place::new(&[("Pipfile", ""), (lock, ""), ("Procfile", "web: x")]);
            if manager != "pipenv" {
                fs::remove_file(place.app().join("Pipfile")).unwrap();
            }
            let path = machine_with(&place, manager, "1", "NOTHING");
            let built = place.build_somehow("python", &[], &path, prune);
            assert_eq!(built.status, 0, "{manager}: {}", built.log);
            let said = calls(&place);
            assert!(said.starts_with(installs) && said.lines().count() == 1, "{manager}: {said}");
        }
    }
}

#[test]
fn django_s_static_files_are_collected() {
    let manage = "import sys\nword = sys.argv[1]\nif word == 'collectstatic':\n    open('collected', 'w').write('yes')\n    \
                  print('1 static file copied')\n    sys.exit(BROKEN)\n";
    let place = Place::new(&[
        ("requirements.txt", "./django-4-py3-none-any.whl\n"),
        ("manage.py", &manage.replace("BROKEN", "0")),
        ("Procfile", "web: x\n"),
        (
            "wheel",
            "import zipfile\nz = zipfile.ZipFile('django-4-py3-none-any.whl', 'w')\ni = 'django-4.dist-info/'\n\
             z.writestr('django/__init__.py', '')\nz.writestr(i + 'METADATA', 'Metadata-Version: 2.1\\nName: django\\nVersion: 4\\n')\n\
             z.writestr(i + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
             z.writestr(i + 'RECORD', 'django/__init__.py,,\\n' + i + 'METADATA,,\\n' + i + 'WHEEL,,\\n' + i + 'RECORD,,\\n')\n",
        ),
    ]);
    let made = Command::new("/usr/bin/python3").arg("wheel").current_dir(place.app()).status().unwrap();
    assert!(made.success());
    let built = place.build("");
    assert_eq!(built.status, 0, "{}", built.log);
    assert!(built.log.contains("-----> Collecting static files\n       1 static file copied"), "{}", built.log);
    assert_eq!(fs::read_to_string(place.app().join("collected")).unwrap(), "yes");

    fs::write(place.app().join("manage.py"), manage.replace("BROKEN", "3")).unwrap();
    let built = place.build("");
    assert_eq!(built.status, 1);
    assert!(built.log.contains(" !     manage.py collectstatic ended with status 3."), "{}", built.log);
    assert!(built.log.contains("Say DISABLE_COLLECTSTATIC=1 in env of app.json"), "{}", built.log);
    let built = place.build_with("", &[("DISABLE_COLLECTSTATIC", "1")], "/usr/bin:/bin");
    assert_eq!(built.status, 0, "{}", built.log);
}
