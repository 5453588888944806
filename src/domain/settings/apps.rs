//! Which apps a repository has: `[pipeline.apps]` for folders, `[pipeline.staging.apps]` and `[pipeline.production.apps]`
//! for further apps of a stage.
//!
//! A folder is an app of its own in every stage: its review apps, its staging, its production. A further app of a stage
//! runs the same folder's code under another name, from another branch or by other rules.

use super::pipeline::{Access, PipelineSettings};
use crate::domain::{AppKey, AppName, Part, Repository, SETTINGS_FILE, Stage};
use serde::{Deserialize, Serialize};

/// Pages that a comment links to.
const MOST_PAGES: usize = 10;
/// Custom domains of one repository: each asks a certificate authority for something.
const MOST_DOMAINS: usize = 50;

/// `[pipeline.apps.NAME]`: a folder that is built and deployed as an app of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FolderSettings {
    /// From the repository's root; `.` is the repository itself.
    pub root: String,
    /// Patterns of what concerns it; what lies under `root` unless named. One with a leading `!` takes away.
    pub paths: Vec<String>,
}

/// `[pipeline.staging.apps.NAME]` and `[pipeline.production.apps.NAME]`. What is left out is the stage's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StageApp {
    /// Which folder's code it runs, by the folder's name.
    pub app: Option<Part>,
    /// Its name, which is its host.
    pub name: Option<AppName>,
    /// As `/scale` has them: `web=2:standard-1x`.
    pub formation: Vec<String>,
    /// The branch that it follows. Staging only.
    pub branch: Option<String>,
    /// Which app of staging it is promoted from, by its name there. Production only.
    pub from: Option<Part>,
    pub right: Option<Access>,
    pub teams: Option<Vec<String>>,
    /// Production only.
    pub approvals: Option<u8>,
    /// Hosts of the world outside that lead to it, as far as the operator allows them.
    pub domains: Vec<String>,
}

impl PipelineSettings {
    /// The folders that are apps, by name: the repository itself where none is named.
    pub fn folders(&self) -> Vec<Part> {
        if self.apps.is_empty() { vec![Part::OWN] } else { self.apps.keys().copied().collect() }
    }

    /// The folder whose code an app runs.
    pub fn folder_of(&self, key: AppKey) -> Part {
        let named = match key.stage {
            Stage::Review(_) => None,
            Stage::Staging => self.staging.apps.get(&key.part).and_then(|app| app.app),
            Stage::Production => self.production.apps.get(&key.part).and_then(|app| app.app),
        };
        let folders = self.folders();
        match named {
            Some(folder) => folder,
            None if folders.contains(&key.part) => key.part,
            None => folders.first().copied().unwrap_or(Part::OWN),
        }
    }

    /// Where a folder lies: empty for the repository itself.
    pub fn root_of(&self, folder: Part) -> &str {
        let root = self.apps.get(&folder).map_or(self.root.as_str(), |settings| settings.root.as_str());
        let root = root.trim_end_matches('/');
        if root == "." { "" } else { root }
    }

    /// Whether anything says which files concern which app.
    pub fn filters_paths(&self) -> bool {
        self.folders().into_iter().any(|folder| !self.patterns_of(folder).is_empty())
    }

    fn patterns_of(&self, folder: Part) -> Vec<String> {
        let paths = self.apps.get(&folder).map_or(&self.paths, |settings| &settings.paths);
        match (paths.is_empty(), self.root_of(folder)) {
            (false, _) => paths.clone(),
            (true, "") => Vec::new(),
            (true, root) => vec![format!("{}/**", globset::escape(root))],
        }
    }

    /// The folders that none of these files concerns.
    pub fn untouched_by(&self, files: &[String]) -> Vec<Part> {
        // The rules of how everything is built and run lie there.
        if files.iter().any(|file| file == SETTINGS_FILE) {
            return Vec::new();
        }
        let touches = |folder: &Part| {
            let patterns = self.patterns_of(*folder);
            let (except, of): (Vec<&String>, Vec<&String>) = patterns.iter().partition(|text| text.starts_with('!'));
            let matches = |patterns: &[&String], file: &str| {
                patterns
                    .iter()
                    .any(|pattern| glob(pattern.trim_start_matches('!')).is_ok_and(|glob| glob.is_match(file)))
            };
            patterns.is_empty()
                || files.iter().any(|file| (of.is_empty() || matches(&of, file)) && !matches(&except, file))
        };
        self.folders().into_iter().filter(|folder| !touches(folder)).collect()
    }

    /// All apps that staging should have.
    pub fn staging_keys(&self) -> Vec<AppKey> {
        self.keys(Stage::Staging, self.staging.apps.keys())
    }

    pub fn production_keys(&self) -> Vec<AppKey> {
        self.keys(Stage::Production, self.production.apps.keys())
    }

    fn keys<'a>(&self, stage: Stage, further: impl Iterator<Item = &'a Part>) -> Vec<AppKey> {
        let mut parts = self.folders();
        parts.extend(further);
        parts.sort();
        parts.dedup();
        parts.into_iter().map(|part| AppKey::new(stage, part)).collect()
    }

    fn stage_app(&self, key: AppKey) -> Option<&StageApp> {
        match key.stage {
            Stage::Review(_) => None,
            Stage::Staging => self.staging.apps.get(&key.part),
            Stage::Production => self.production.apps.get(&key.part),
        }
    }

    /// The branch that an app of staging follows, unless that is the default branch.
    pub fn branch_of(&self, key: AppKey) -> Option<&str> {
        let own = self.stage_app(key).and_then(|app| app.branch.as_deref());
        own.or(self.staging.branch.as_deref())
    }

    /// What an app of production is promoted from.
    pub fn source_of(&self, production: AppKey) -> AppKey {
        let named = self.stage_app(production).and_then(|app| app.from);
        let same = AppKey::new(Stage::Staging, production.part);
        match named {
            Some(part) => AppKey::new(Stage::Staging, part),
            None if self.staging_keys().contains(&same) => same,
            None => AppKey::new(Stage::Staging, self.folder_of(production)),
        }
    }

    /// What somebody needs who wants to act on an app: a right, and a place in one of these teams, if there are any.
    pub fn access_to(&self, key: AppKey) -> (Access, &[String]) {
        let (right, teams) = match key.stage {
            Stage::Review(_) => (self.review.right, &self.review.teams),
            Stage::Staging => (self.staging.right, &self.staging.teams),
            Stage::Production => (self.production.right, &self.production.teams),
        };
        let own = self.stage_app(key);
        (own.and_then(|app| app.right).unwrap_or(right), own.and_then(|app| app.teams.as_ref()).unwrap_or(teams))
    }

    /// How many further people must want a promotion to an app.
    pub fn approvals_of(&self, key: AppKey) -> u8 {
        self.stage_app(key).and_then(|app| app.approvals).unwrap_or(self.production.approvals)
    }

    /// The formation that the file wants of an app, as `/scale` has it; empty where it says nothing.
    pub fn formation_of(&self, key: AppKey) -> &[String] {
        let of_stage: &[String] = match key.stage {
            Stage::Review(_) => &self.review.formation,
            Stage::Staging => &self.staging.formation,
            Stage::Production => &self.production.formation,
        };
        let own = self.stage_app(key).map(|app| app.formation.as_slice()).filter(|formation| !formation.is_empty());
        own.unwrap_or(of_stage)
    }

    /// The name that an app gets when it is made.
    pub fn name_of(&self, repository: &Repository, key: AppKey) -> AppName {
        let of_stage = match key.stage {
            Stage::Review(_) => None,
            Stage::Staging => self.staging.name.as_ref(),
            Stage::Production => self.production.name.as_ref(),
        };
        let own = self.stage_app(key).and_then(|app| app.name.as_ref());
        let of_stage = of_stage.filter(|_| key.part.is_own());
        own.or(of_stage).cloned().unwrap_or_else(|| repository.app_name(key))
    }

    /// All names that the file gives.
    pub fn given_names(&self) -> impl Iterator<Item = &AppName> {
        let further = self.staging.apps.values().chain(self.production.apps.values());
        let of_stages = [&self.staging.name, &self.production.name].into_iter().flatten();
        further.filter_map(|app| app.name.as_ref()).chain(of_stages)
    }

    /// The custom domains that the file gives an app. A stage's own are those of the app that is all of the repository.
    pub fn domains_of(&self, key: AppKey) -> impl Iterator<Item = &String> {
        let of_stage: &[String] = match key.stage {
            Stage::Staging if key.part.is_own() => &self.staging.domains,
            Stage::Production if key.part.is_own() => &self.production.domains,
            Stage::Review(_) | Stage::Staging | Stage::Production => &[],
        };
        of_stage.iter().chain(self.stage_app(key).into_iter().flat_map(|app| &app.domains))
    }

    /// All custom domains that the file names.
    pub fn domains(&self) -> impl Iterator<Item = &String> {
        let further = self.staging.apps.values().chain(self.production.apps.values());
        let of_stages = [&self.staging.domains, &self.production.domains].into_iter().flatten();
        of_stages.chain(further.flat_map(|app| &app.domains))
    }

    /// # Errors
    /// The key and what is wrong with it.
    pub(super) fn check_domains(&self) -> Result<(), String> {
        for (stage, domains) in [("staging", &self.staging.domains), ("production", &self.production.domains)] {
            if !domains.is_empty() && !self.folders().contains(&Part::OWN) {
                return Err(format!(
                    "pipeline.{stage}.domains: there are several apps; give each its own in pipeline.{stage}.apps.NAME"
                ));
            }
        }
        let mut domains: Vec<&String> = self.domains().collect();
        if let Some(odd) = domains.iter().find(|domain| !is_domain(domain)) {
            return Err(format!("domains: {odd:?} is no host name in lower case such as www.example.com"));
        }
        if domains.len() > MOST_DOMAINS {
            return Err(format!("domains: more than {MOST_DOMAINS} are named"));
        }
        domains.sort();
        if let Some(pair) = domains.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("domains: {} is named twice", pair[0]));
        }
        Ok(())
    }

    /// The pages that these files are of, each once, in the files' order.
    pub fn pages_of(&self, files: &[String]) -> Vec<String> {
        let mut pages = Vec::new();
        for file in files {
            let found = self.routes.iter().find_map(|(pattern, path)| page_of(pattern, path, file));
            if let Some(page) = found.filter(|page| !pages.contains(page)) {
                pages.push(page);
            }
        }
        pages.truncate(MOST_PAGES);
        pages
    }

    /// # Errors
    /// The key and what is wrong with it.
    pub(super) fn check_routes(&self) -> Result<(), String> {
        for (pattern, path) in &self.routes {
            let wildcards = pattern.replace("**", "*").matches('*').count();
            if wildcards > 1 || pattern.is_empty() || pattern.starts_with('/') {
                return Err(format!("pipeline.routes: {pattern:?} is a pattern with at most one * or **"));
            }
            let plain =
                |character: char| character.is_ascii_alphanumeric() || "/-._~*%?=&+:@!$',;#".contains(character);
            if !path.starts_with('/') || path.starts_with("//") || !path.chars().all(plain) {
                return Err(format!("pipeline.routes: {path:?} is no path such as /about"));
            }
        }
        Ok(())
    }

    /// # Errors
    /// The key and what is wrong with it.
    pub(super) fn check_apps(&self) -> Result<(), String> {
        let folders = self.folders();
        check_folder("pipeline", &self.root, &self.paths)?;
        if !self.apps.is_empty() && (!self.root.is_empty() || !self.paths.is_empty()) {
            return Err(
                "pipeline.root and pipeline.paths are those of the one app: give each of pipeline.apps its own"
                    .to_owned(),
            );
        }
        for (name, folder) in &self.apps {
            check_folder(&format!("pipeline.apps.{name}"), &folder.root, &folder.paths)?;
            if name.is_own() {
                return Err("pipeline.apps has an app without a name".to_owned());
            }
            if folder.root.is_empty() {
                return Err(format!("pipeline.apps.{name}.root is missing: the folder, or `.`"));
            }
        }
        for (stage, apps) in [("staging", &self.staging.apps), ("production", &self.production.apps)] {
            for (name, app) in apps {
                let key = format!("pipeline.{stage}.apps.{name}");
                match app.app {
                    Some(folder) if !folders.contains(&folder) => {
                        return Err(format!("{key}.app: there is no pipeline.apps.{folder}"));
                    }
                    None if folders.len() > 1 && !folders.contains(name) => {
                        return Err(format!("{key}.app is missing: which of pipeline.apps it runs"));
                    }
                    _ => {}
                }
                if name.is_own() {
                    return Err(format!("{key} has no name"));
                }
                if stage == "staging" && (app.from.is_some() || app.approvals.is_some()) {
                    return Err(format!("{key}: `from` and `approvals` are production's"));
                }
                if stage == "production" && app.branch.is_some() {
                    return Err(format!("{key}: `branch` is staging's; production has what is promoted"));
                }
                if app.approvals.is_some_and(|approvals| approvals > 1) {
                    return Err(format!("{key}.approvals is 0 or 1"));
                }
                if app.right.is_some_and(|right| right < Access::Triage) {
                    return Err(format!("{key}.right is triage, write, maintain or admin"));
                }
            }
        }
        let staging = self.staging_keys();
        for key in self.production_keys() {
            let source = self.source_of(key);
            if !staging.contains(&source) {
                return Err(format!("pipeline.production.apps.{}.from: staging has no app {}", key.part, source.part));
            }
            if self.folder_of(source) != self.folder_of(key) {
                return Err(format!("pipeline.production.apps.{}.from runs another folder's code", key.part));
            }
        }
        let mut names: Vec<&AppName> = self.given_names().collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two apps are called {}", pair[0]));
        }
        // Names of that form are given by Landfall, perhaps to another repository's apps.
        if let Some(name) = names.into_iter().find(|name| looks_given(name)) {
            return Err(format!("{name}: a name that ends like -staging, -production or -pr-7 is Landfall's to give"));
        }
        Ok(())
    }
}

/// A name that the world knows: labels of letters, digits and hyphens, in lower case (RFC 1123, 2.1), the last one with a
/// letter, so that it is no address.
pub fn is_domain(host: &str) -> bool {
    let is_label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = host.rsplit_once('.').map(|(_, last)| last);
    host.len() <= 253
        && host.split('.').all(is_label)
        && last.is_some_and(|last| last.bytes().any(|byte| byte.is_ascii_lowercase()))
}

/// The path of a file's page, if the pattern is the file's. What stands in the path is percent-encoded.
fn page_of(pattern: &str, path: &str, file: &str) -> Option<String> {
    let Some((before, after)) = pattern.split_once('*') else {
        return (pattern == file).then(|| path.to_owned());
    };
    let deep = after.starts_with('*');
    let after = if deep { &after[1..] } else { after };
    let middle = file.strip_prefix(before)?.strip_suffix(after)?;
    if !deep && middle.contains('/') {
        return None;
    }
    let mut encoded = String::new();
    for byte in middle.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    Some(path.replacen('*', &encoded, 1))
}

fn looks_given(name: &AppName) -> bool {
    let name = name.as_str();
    let of_pull = name.rsplit_once("-pr-").is_some_and(|(_, end)| end.bytes().all(|byte| byte.is_ascii_digit()));
    name.ends_with("-staging") || name.ends_with("-production") || of_pull
}

fn check_folder(key: &str, root: &str, paths: &[String]) -> Result<(), String> {
    let leaves = |path: &str| path.starts_with('/') || path.split('/').any(|part| part == "..");
    if leaves(root) || root.contains('\0') || root.contains("//") {
        return Err(format!("{key}.root is a folder of the repository, such as services/api"));
    }
    for pattern in paths {
        let plain = pattern.trim_start_matches('!');
        if plain.is_empty() || leaves(plain) {
            return Err(format!("{key}.paths: {pattern:?} is no pattern below the repository's root"));
        }
        glob(plain).map_err(|error| format!("{key}.paths: {error}"))?;
    }
    Ok(())
}

fn glob(pattern: &str) -> Result<globset::GlobMatcher, globset::Error> {
    Ok(globset::GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{PullNumber, RepositorySettings};

    fn policy(text: &str) -> PipelineSettings {
        RepositorySettings::parse(text.as_bytes()).unwrap().pipeline
    }

    const SHOP: &str = r#"
[pipeline.apps.api]
root = "services/api"
paths = ["services/api/**", "libs/**", "!**/*.md"]

[pipeline.apps.web]
root = "services/web"

[pipeline.staging.apps.next]
app = "web"
branch = "next"

[pipeline.production.apps.eu]
app = "web"
from = "next"
name = "shop-eu"
approvals = 1
formation = ["web=2:standard-1x"]
"#;

    #[test]
    fn folders_and_further_apps_of_a_stage_are_found_by_name() {
        let shop = policy(SHOP);
        let part = |text: &str| text.parse::<Part>().unwrap();
        let names = |keys: Vec<AppKey>| keys.iter().map(|key| key.part.to_string()).collect::<Vec<_>>();
        assert_eq!(names(shop.staging_keys()), ["api", "next", "web"]);
        assert_eq!(names(shop.production_keys()), ["api", "eu", "web"]);
        let eu = AppKey::new(Stage::Production, part("eu"));
        assert_eq!((shop.folder_of(eu), shop.source_of(eu).part), (part("web"), part("next")));
        assert_eq!(shop.source_of(AppKey::new(Stage::Production, part("api"))).part, part("api"));
        assert_eq!(shop.branch_of(AppKey::new(Stage::Staging, part("next"))), Some("next"));
        assert_eq!((shop.approvals_of(eu), shop.formation_of(eu)), (1, &["web=2:standard-1x".to_owned()][..]));
        let repository = crate::domain::repository_tests::repository("shop");
        assert_eq!(shop.name_of(&repository, eu).as_str(), "shop-eu");
        let review = AppKey::new(Stage::Review(PullNumber(3)), part("api"));
        assert_eq!(shop.name_of(&repository, review).as_str(), "shop-api-pr-3");
        assert_eq!(policy("").production_keys(), [AppKey::from(Stage::Production)]);
    }

    #[test]
    fn files_concern_the_apps_whose_patterns_they_match() {
        let untouched = |policy: &PipelineSettings, files: &[&str]| -> Vec<String> {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            policy.untouched_by(&files).iter().map(Part::to_string).collect()
        };
        let shop = policy(SHOP);
        for (files, expected) in [
            (&["services/api/main.rs"][..], &["web"][..]),
            (&["libs/money.rs"], &["web"]),
            (&["services/api/README.md"], &["api", "web"]),
            (&["services/web/a/b.css", "libs/x"], &[]),
            (&["README.md"], &["api", "web"]),
            (&["README.md", SETTINGS_FILE], &[]),
        ] {
            assert_eq!(untouched(&shop, files), expected, "{files:?}");
        }
        assert!(untouched(&policy(""), &["README.md"]).is_empty(), "without a filter everything concerns the one app");
        let docs = policy("[pipeline]\npaths = [\"!docs/**\"]\n");
        assert_eq!(untouched(&docs, &["docs/a/b.md"]), [""]);
        assert!(untouched(&docs, &["docs/a.md", "src/main.rs"]).is_empty());
        assert!(docs.filters_paths() && !policy("").filters_paths());
    }

    #[test]
    fn changed_files_lead_to_their_pages() {
        let text =
            "[pipeline.routes]\n\"src/pages/*.tsx\" = \"/*\"\n\"docs/**.md\" = \"/help/*\"\n\"src/home.css\" = \"/\"\n";
        let policy = policy(text);
        let files = ["src/pages/about.tsx", "src/pages/a/b.tsx", "docs/a/b c.md", "src/home.css", "x", "src/home.css"];
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        assert_eq!(policy.pages_of(&files), ["/about", "/help/a/b%20c", "/"]);
        for (text, expected) in
            [("\"*/*\" = \"/\"", "at most one"), ("\"a\" = \"b c\"", "no path"), ("\"a\" = \"//x\"", "no path")]
        {
            let text = format!("[pipeline.routes]\n{text}\n");
            let error = RepositorySettings::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn slips_are_named() {
        for (text, expected) in [
            ("[pipeline]\nroot = \"../x\"\n", "pipeline.root"),
            ("[pipeline.apps.api]\n", "pipeline.apps.api.root is missing"),
            ("[pipeline.apps.staging]\nroot = \"x\"\n", "is no stage"),
            ("[pipeline]\nroot = \"x\"\n[pipeline.apps.api]\nroot = \"y\"\n", "give each"),
            (
                "[pipeline.apps.a]\nroot = \"a\"\n[pipeline.apps.b]\nroot = \"b\"\n[pipeline.staging.apps.c]\n",
                "c.app is missing",
            ),
            ("[pipeline.production.apps.eu]\napp = \"web\"\n", "no pipeline.apps.web"),
            ("[pipeline.production.apps.eu]\nfrom = \"next\"\n", "staging has no app next"),
            ("[pipeline.production.apps.eu]\nbranch = \"next\"\n", "`branch` is staging's"),
            ("[pipeline.production]\nname = \"other-production\"\n", "Landfall's to give"),
            ("[pipeline.staging]\nname = \"x\"\n[pipeline.production]\nname = \"x\"\n", "two apps are called x"),
            ("[pipeline]\npaths = [\"a[\"]\n", "pipeline.paths"),
            ("[pipeline.production]\ndomains = [\"WWW.example.com\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"*.example.com\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"localhost\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"127.0.0.1\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"www.example.com.\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"-a.example.com\"]\n", "no host name in lower case"),
            ("[pipeline.production]\ndomains = [\"a.example.com/x\"]\n", "no host name in lower case"),
            (
                "[pipeline.staging]\ndomains = [\"a.example.com\"]\n[pipeline.production]\ndomains = [\"a.example.com\"]\n",
                "a.example.com is named twice",
            ),
            (
                "[pipeline.apps.a]\nroot = \"a\"\n[pipeline.production]\ndomains = [\"a.example.com\"]\n",
                "give each its own",
            ),
        ] {
            let error = RepositorySettings::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
