//! How the code is built: `[build]`.

use serde::Deserialize;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildSettings {
    /// Names, addresses or paths, in order; they stand in the place of those of `app.json`.
    pub buildpacks: Option<Vec<String>>,
    /// What becomes of that which only the tests need, once the build is done: `true` takes it away, for repositories
    /// whose tests do without; `false` leaves it in the slug. Where nothing is said it is kept apart, for test nodes.
    pub prune: Option<bool>,
}

#[cfg(test)]
mod build_settings_tests {
    use crate::domain::RepositorySettings;

    #[test]
    fn buildpacks_are_listed_in_order_and_a_wrong_shape_names_its_line() {
        let settings = RepositorySettings::parse(b"[build]\nbuildpacks = [\"nodejs\", \"./own\"]\nprune = true\n");
        let build = settings.unwrap().build;
        assert_eq!(build.buildpacks.unwrap(), ["nodejs", "./own"]);
        assert_eq!(build.prune, Some(true));
        let error = RepositorySettings::parse(b"[build]\nbuildpacks = 3\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
