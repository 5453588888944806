//! Every field of `app.json`, and what is said about the mistakes in it.

use super::*;

fn parse(text: &str) -> (Manifest, Vec<String>) {
    let (manifest, warnings) = Manifest::parse(text.as_bytes()).unwrap();
    (manifest, warnings.iter().map(ToString::to_string).collect())
}

fn refused(text: &str) -> String {
    Manifest::parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn every_field_of_the_contract_is_read() {
    let text = r#"{
  "name": "Hello", "description": "Says hello", "keywords": ["a", "b"], "website": "https://example.com",
  "repository": "https://github.com/o/r", "logo": "https://example.com/l.png", "success_url": "/welcome",
  "scripts": {"postdeploy": "rake db:seed", "pr-predestroy": {"command": "bin/cleanup", "size": "eco"}},
  "env": {
    "PLAIN": "text",
    "EMPTY": "",
    "ASKED": {"description": "your key"},
    "OPTIONAL": {"description": "maybe", "required": false},
    "GIVEN": {"value": "v"},
    "SECRET_KEY_BASE": {"generator": "secret"}
  },
  "formation": {"web": {"quantity": 2, "size": "Standard-1X"}, "worker": {"quantity": 0}, "clock": {}},
  "addons": ["heroku-redis", {"plan": "heroku-postgresql:mini", "as": "MAIN", "options": {"version": "16"}}],
  "buildpacks": [{"url": "heroku/python"}, {"url": "https://github.com/x/y#v1"}],
  "stack": "heroku-24",
  "environments": {
    "review": {"env": {"ONLY": "review"}, "scripts": {"postdeploy": "true"}, "formation": {"web": {}},
      "addons": ["heroku-postgresql"], "buildpacks": [], "stack": "heroku-22"},
    "test": {"scripts": {"test-setup": "bin/setup", "test": "bin/test"}, "formation": {"test": {"quantity": 8}},
      "addons": ["heroku-postgresql:in-dyno"], "env": {"RAILS_ENV": "test"}, "buildpacks": [{"url": "heroku/nodejs"}]}
  }
}"#;
    let (manifest, warnings) = parse(text);
    assert_eq!(warnings, ["line 4: scripts.pr-predestroy.size is not known and is ignored"]);
    let Manifest { name, description, keywords, website, repository, logo, success_url, .. } = &manifest;
    assert_eq!(name.as_deref(), Some("Hello"));
    assert_eq!(description.as_deref(), Some("Says hello"));
    assert_eq!(*keywords, ["a", "b"]);
    assert_eq!(website.as_deref(), Some("https://example.com"));
    assert_eq!(repository.as_deref(), Some("https://github.com/o/r"));
    assert_eq!(logo.as_deref(), Some("https://example.com/l.png"));
    assert_eq!(success_url.as_deref(), Some("/welcome"));

    let plain = manifest.for_environment(Environment::Plain);
    assert_eq!(plain.scripts.postdeploy.as_deref(), Some("rake db:seed"));
    assert_eq!(plain.scripts.pr_predestroy.as_deref(), Some("bin/cleanup"));
    let env = |name: &str| plain.env[name].clone();
    assert_eq!(env("PLAIN").value.as_deref(), Some("text"));
    assert!(env("PLAIN").required);
    assert_eq!(env("EMPTY").value.as_deref(), Some(""));
    assert_eq!((env("ASKED").value, env("ASKED").required), (None, true));
    assert_eq!(env("ASKED").description.as_deref(), Some("your key"));
    assert!(!env("OPTIONAL").required);
    assert_eq!(env("GIVEN").value.as_deref(), Some("v"));
    assert_eq!(env("SECRET_KEY_BASE").generator, Some(Generator::Secret));
    assert_eq!(plain.formation["web"], FormationEntry { quantity: 2, size: Some("standard-1x".to_owned()) });
    assert_eq!(plain.formation["worker"].quantity, 0);
    assert_eq!(plain.formation["clock"].quantity, 1);
    assert_eq!(plain.addons[0].plan, "heroku-redis");
    assert_eq!(plain.addons[1].plan, "heroku-postgresql:mini");
    assert_eq!(plain.addons[1].name.as_deref(), Some("MAIN"));
    assert_eq!(plain.addons[1].options["version"], "16");
    assert_eq!(plain.buildpacks, ["heroku/python", "https://github.com/x/y#v1"]);
    assert_eq!(plain.stack.as_deref(), Some("heroku-24"));

    let review = manifest.for_environment(Environment::Review);
    assert_eq!(review.env.keys().collect::<Vec<_>>(), ["ONLY"]);
    assert_eq!(review.scripts.postdeploy.as_deref(), Some("true"));
    assert_eq!(review.scripts.pr_predestroy, None, "a key is replaced whole");
    assert_eq!(review.formation["web"].quantity, 1);
    assert_eq!(review.addons.len(), 1);
    assert!(review.buildpacks.is_empty());
    assert_eq!(review.stack.as_deref(), Some("heroku-22"));

    let test = manifest.for_environment(Environment::Test);
    assert_eq!(test.scripts.test_setup.as_deref(), Some("bin/setup"));
    assert_eq!(test.scripts.test.as_deref(), Some("bin/test"));
    assert_eq!(test.test_nodes(), 8);
    assert_eq!(test.addons[0].plan, "heroku-postgresql:in-dyno");
    assert_eq!(test.stack.as_deref(), Some("heroku-24"), "a key that the environment lacks comes from the top");

    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
}

#[test]
fn an_empty_manifest_asks_for_nothing() {
    let (manifest, warnings) = parse("\u{feff}{}");
    assert_eq!((manifest.clone(), warnings), (Manifest::default(), Vec::new()));
    assert_eq!(manifest.for_environment(Environment::Test), Effective::default());
    assert_eq!(manifest.for_environment(Environment::Test).test_nodes(), 1);
}

#[test]
fn what_is_not_understood_is_a_warning_at_its_line() {
    let text = "{\n \"$schema\": \"x\",\n \"colour\":\n   1,\n \"env\": {\n  \"PORT\": \"80\",\n  \"HEROKU_APP_NAME\": {\"required\": true},\n  \"LD_PRELOAD\": \"x\", \"PATH\": \"y\",\n  \"A\": {\"valeu\": \"x\"}\n },\n \"environments\": {\"staging\": {}, \"test\": {\"name\": \"x\"}},\n \"stack\": \"container\",\n \"image\": \"heroku/ruby\",\n \"name\": \"a\",\n \"name\": \"b\"\n}";
    let (manifest, warnings) = parse(text);
    assert_eq!(
        warnings,
        [
            "line 15: name stands there twice; the later one holds",
            "line 3: colour is not known and is ignored",
            "line 6: env.PORT is set by the platform and is ignored",
            "line 7: env.HEROKU_APP_NAME is set by the platform and is ignored",
            "line 8: env.LD_PRELOAD is set by the platform and is ignored",
            "line 8: env.PATH is set by the platform and is ignored",
            "line 9: env.A.valeu is not known and is ignored",
            "line 11: environments.staging is not known and is ignored",
            "line 11: environments.test.name is not known and is ignored",
            "line 12: stack names a stack that is not available; the machine's own is used",
            "line 13: image is not supported; buildpacks are used",
        ]
    );
    assert_eq!(manifest.name.as_deref(), Some("b"));
    assert_eq!(manifest.base.env.unwrap().keys().collect::<Vec<_>>(), ["A"]);

    let (manifest, warnings) = parse(r#"{"env": {"A": {"value": "x", "generator": "secret"}}}"#);
    assert_eq!(warnings, ["line 1: env.A has both a value and a generator; the value holds"]);
    assert_eq!(manifest.base.env.unwrap()["A"].generator, None);
}

#[test]
fn a_wrong_shape_is_refused_at_its_line() {
    for (text, expected) in [
        ("{\n \"name\": \"a\",\n}", "line 3, column 1: trailing comma"),
        ("{\n \"name\" \"a\"\n}", "line 2, column 9: expected `:`"),
        ("", "line 1, column 0: EOF while parsing a value"),
        ("{} x", "line 1, column 4: trailing characters"),
        ("[]", "line 1, column 1: must be an object, not a list"),
        ("{\n \"name\": 1\n}", "line 2, column 10: name must be a string, not a number"),
        ("{\"keywords\": \"a\"}", "line 1, column 14: keywords must be a list, not a string"),
        ("{\"keywords\": [\"a\", null]}", "line 1, column 20: keywords[1] must be a string, not null"),
        (
            "{\n \"env\": {\n  \"SECRET\": {\n   \"value\": 5000\n}}}",
            "line 4, column 13: env.SECRET.value must be a string, not a number",
        ),
        ("{\"env\": {\"A\": true}}", "line 1, column 15: env.A must be an object, not true or false"),
        (
            "{\"env\": {\"A\": {\"required\": \"yes\"}}}",
            "line 1, column 28: env.A.required must be true or false, not a string",
        ),
        ("{\"env\": {\"A\": {\"generator\": \"uuid\"}}}", "line 1, column 29: env.A.generator must be \"secret\""),
        (
            "{\"env\": {\"a-b\": \"x\"}}",
            "line 1, column 17: env.a-b is not a name of a variable (A-Z, a-z, 0-9 and _, no digit first)",
        ),
        (
            "{\"env\": {\"A\": \"x\\u0000\"}}",
            "line 1, column 15: env.A is empty, too long or holds characters it must not",
        ),
        (
            "{\"scripts\": {\"postdeploy\": [\"a\"]}}",
            "line 1, column 28: scripts.postdeploy must be an object, not a list",
        ),
        ("{\"scripts\": {\"postdeploy\": {}}}", "line 1, column 28: scripts.postdeploy lacks the key \"command\""),
        (
            "{\"formation\": {\"web\": {\"quantity\": 1.5}}}",
            "line 1, column 36: formation.web.quantity must be a whole number from 0 to 100",
        ),
        (
            "{\"formation\": {\"web\": {\"quantity\": -1}}}",
            "line 1, column 36: formation.web.quantity must be a whole number from 0 to 100",
        ),
        (
            "{\"environments\": {\"test\": {\"formation\": {\"test\": {\"quantity\": 65}}}}}",
            "line 1, column 63: environments.test.formation.test.quantity must be a whole number from 1 to 64",
        ),
        (
            "{\"environments\": {\"test\": {\"formation\": {\"test\": {\"quantity\": 0}}}}}",
            "line 1, column 63: environments.test.formation.test.quantity must be a whole number from 1 to 64",
        ),
        (
            "{\"formation\": {\"we b\": {}}}",
            "line 1, column 24: formation.we b is not a process type (1 to 32 of A-Z, a-z, 0-9, _ and -)",
        ),
        (
            "{\"formation\": {\"web\": {\"size\": \"$(id)\"}}}",
            "line 1, column 32: formation.web.size is not a name of a size",
        ),
        ("{\"addons\": [{\"as\": \"DB\"}]}", "line 1, column 13: addons[0] lacks the key \"plan\""),
        (
            "{\"addons\": [{\"plan\": \"x\", \"as\": \"D B\"}]}",
            "line 1, column 33: addons[0].as is not a name of a variable (A-Z, a-z, 0-9 and _, no digit first)",
        ),
        ("{\"buildpacks\": [{}]}", "line 1, column 17: buildpacks[0] lacks the key \"url\""),
        (
            "{\"buildpacks\": [{\"url\": \"a\\nb\"}]}",
            "line 1, column 25: buildpacks[0].url is empty, too long or holds characters it must not",
        ),
        ("{\"environments\": []}", "line 1, column 18: environments must be an object, not a list"),
    ] {
        assert_eq!(refused(text), expected, "{text}");
    }
    assert_eq!(Manifest::parse(b"\xff").unwrap_err().to_string(), "the file is not UTF-8 text");
}

#[test]
fn size_number_and_depth_have_limits() {
    let mut full = b"{}".to_vec();
    full.resize(MANIFEST_CAP, b' ');
    assert!(Manifest::parse(&full).is_ok());
    full.push(b' ');
    assert_eq!(Manifest::parse(&full).unwrap_err().to_string(), "the file is larger than 65536 bytes");

    let many = (0..501).map(|number| format!("\"A{number}\": \"\"")).collect::<Vec<_>>().join(",");
    assert_eq!(refused(&format!("{{\"env\": {{{many}}}}}")), "line 1, column 9: env holds more than 500 entries");

    let deep = format!("{{\"x\": {}{}}}", "[".repeat(30_000), "]".repeat(30_000));
    assert_eq!(refused(&deep), "line 1, column 133: recursion limit exceeded");

    let noisy = (0..200).map(|number| format!("\"x{number}\": 1")).collect::<Vec<_>>().join(",");
    assert_eq!(parse(&format!("{{{noisy}}}")).1.len(), MOST_WARNINGS);
}

#[test]
fn names_of_variables_are_checked() {
    for name in ["A", "_", "a1", "A_B", "a"] {
        assert!(is_variable_name(name), "{name}");
    }
    for name in ["", "1A", "A-B", "A B", "A=B", "Ä", "A\n", &"A".repeat(129)] {
        assert!(!is_variable_name(name), "{name}");
    }
    for name in ["PORT", "PATH", "HOME", "DYNO", "LD_PRELOAD", "LANDFALL_URL", "HEROKU_APP_ID"] {
        assert!(is_reserved_variable(name), "{name}");
    }
    for name in ["PORTS", "DATABASE_URL", "NODE_ENV", "LDAP"] {
        assert!(!is_reserved_variable(name), "{name}");
    }
}
