//! What a build may leave behind, and which buildpacks there are.

mod real;

use super::*;
use std::os::unix::fs::symlink;

fn texts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn every_file_of_the_buildpacks_is_embedded() {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(String, bool)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("buildpacks");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort();
    let mut embedded: Vec<(String, bool)> = FILES.iter().map(|file| (file.path.to_owned(), file.executable)).collect();
    embedded.sort();
    assert_eq!(embedded, found);
}

#[test]
fn the_buildpacks_are_written_once_and_mended_when_harmed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data/buildpacks");
    let written = buildpacks_folder(&data).unwrap();
    assert_eq!(written, data.join(buildpacks_digest()));
    let driver = written.join("build.sh");
    let made = fs::metadata(&driver).unwrap().modified().unwrap();
    assert_eq!(buildpacks_folder(&data).unwrap(), written);
    assert_eq!(fs::metadata(&driver).unwrap().modified().unwrap(), made, "what is there is left alone");
    let harms: [&dyn Fn(); 3] = [
        &|| fs::write(&driver, "#!/bin/sh\n").unwrap(),
        &|| fs::remove_file(written.join("lib/common.sh")).unwrap(),
        &|| fs::set_permissions(&driver, Permissions::from_mode(0o644)).unwrap(),
    ];
    for harm in harms {
        harm();
        assert!(!is_whole(&written));
        buildpacks_folder(&data).unwrap();
        assert!(is_whole(&written));
    }
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
}

#[test]
fn what_bin_release_prints_is_read() {
    let release = parse_release(
        "---\n# comment\naddons: []\nconfig_vars:\n  LANG: en_US.UTF-8\n  EMPTY: \"\"\n  PORT: 80\n  a-b: x\n\
         default_process_types:\n  web: bundle exec puma -p $PORT\n  worker: \"say \\\"hi\\\"\"\n  quoted: 'it''s'\n  \
         url: http://x:1/\n  b/d: x\n  none:\n",
    );
    assert_eq!(release.config_vars, texts(&[("LANG", "en_US.UTF-8"), ("EMPTY", "")]));
    assert_eq!(
        release.process_types,
        texts(&[
            ("web", "bundle exec puma -p $PORT"),
            ("worker", "say \"hi\""),
            ("quoted", "it's"),
            ("url", "http://x:1/")
        ])
    );
    for text in
        ["", "--- {}\n", "---\n- a\n- b\n", "\0\0:", "default_process_types: {web: x}\n", ":::\n :", "\"", "  '"]
    {
        assert_eq!(parse_release(text), Release::default(), "{text:?}");
    }
}

#[test]
fn results_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    assert_eq!(read_result(folder.path()).unwrap(), BuildResult::default());
    write("Procfile", "worker: w\nnonsense\n");
    write("buildpacks", "nodejs\npython\n");
    write(
        "release.0.yml",
        "---\ndefault_process_types:\n  web: npm start\n  worker: no\nconfig_vars:\n  A: 0\n  B: 0\n",
    );
    write("release.1.yml", "---\ndefault_process_types:\n  web: python app.py\nconfig_vars:\n  A: 1\n");
    write("test_command", "npm test\nmore\n");
    let result = read_result(folder.path()).unwrap();
    assert_eq!(result.process_types, texts(&[("worker", "w"), ("web", "python app.py")]));
    assert_eq!(result.config_vars, texts(&[("A", "1"), ("B", "0")]));
    assert_eq!(result.buildpacks, ["nodejs", "python"]);
    assert_eq!(result.test_command.as_deref(), Some("npm test"));
    assert_eq!(result.procfile_warnings.len(), 1);
    assert_eq!(result.refused, None);
    write("refused", "package.json\nProcfile\n");
    assert_eq!(read_result(folder.path()).unwrap().refused.unwrap(), ["package.json", "Procfile"]);
}

#[test]
fn results_of_hostile_code_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let secret = folder.path().join("secret");
    fs::write(&secret, "web: stolen\n").unwrap();
    for name in ["Procfile", "buildpacks", "refused", "test_command", "release.3.yml"] {
        for make in [
            &|path: &Path| symlink(&secret, path).unwrap() as _,
            &|path: &Path| fs::create_dir(path).unwrap(),
            &|path: &Path| nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o644)).unwrap(),
            &|path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        ] as [&dyn Fn(&Path); 4]
        {
            fs::create_dir(&out).unwrap();
            make(&out.join(name));
            let error = read_result(&out).unwrap_err();
            assert_eq!(error.to_string(), format!("the build left something other than a plain file as {name}"));
            fs::remove_dir_all(&out).unwrap();
        }
    }
    symlink(folder.path(), &out).unwrap();
    assert!(matches!(read_result(&out), Err(BuildResultError::Io { .. })));
    fs::remove_file(&out).unwrap();

    fs::create_dir(&out).unwrap();
    let write = |name: &str, text: String| fs::write(out.join(name), text).unwrap();
    write("Procfile", "x".repeat(1 << 20));
    assert_eq!(
        read_result(&out).unwrap_err().to_string(),
        "Procfile can't be used: the file is larger than 65536 bytes"
    );
    fs::remove_file(out.join("Procfile")).unwrap();
    write("buildpacks", "\x1b[31mred\n".repeat(100_000));
    write("test_command", format!("{}\n", "y".repeat(1 << 20)));
    write("release.0.yml", (0..9000).map(|number| format!("config_vars:\n  A{number}: x\n")).collect());
    let result = read_result(&out).unwrap();
    assert_eq!(result.buildpacks.len(), MOST_BUILDPACKS);
    assert_eq!(result.buildpacks[0], "[31mred");
    assert_eq!(result.config_vars.len(), MOST_CONFIG_VARS);
    assert_eq!(result.test_command.unwrap().len(), 500);
}

#[test]
fn config_vars_become_files_that_only_their_owner_reads() {
    let folder = tempfile::tempdir().unwrap();
    let env = folder.path().join("env");
    write_env_folder(&env, &texts(&[("A", "1\n"), ("../evil", "x"), ("B_2", ""), ("a/b", "x"), ("", "x")])).unwrap();
    let mut names: Vec<_> = fs::read_dir(&env).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["A", "B_2"]);
    assert_eq!(fs::read_to_string(env.join("A")).unwrap(), "1\n");
    assert_eq!(fs::metadata(env.join("A")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!folder.path().join("evil").exists());
    assert!(write_env_folder(&env, &[]).is_err(), "what an earlier build saw is not mixed in");
}
