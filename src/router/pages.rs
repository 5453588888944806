//! Error pages of the operator's own, in place of ours: templates in a folder, read when the router starts and again
//! when they change.
//!
//! A page is found by what it says (`building.html`, `gone.html`), by its code (`H80.html`), by its status
//! (`404.html`), or is `error.html` for all others. A folder that cannot be used is refused at the start; later it is
//! reported, and the pages in use stay.

use super::errors::{ALL_CODES, Refusal, STATUSES};
use super::table::Notice;
use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use minijinja::{Environment, UndefinedBehavior, context};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of one page.
const LONGEST: u64 = 256 * 1024;
/// For every refusal that has no page of its own.
const ANY: &str = "error.html";

/// What a page may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub code: Option<&'a str>,
    pub status: u16,
    pub title: &'a str,
    pub message: &'a str,
    pub request_id: &'a str,
}

impl Facts<'_> {
    pub fn value(&self) -> minijinja::Value {
        let Facts { code, status, title, message, request_id } = *self;
        context! { code, status, title, message, request_id }
    }
}

/// The pages in use; none of them is the operator's where there is no folder.
#[derive(Default)]
pub(super) struct Pages {
    folder: Option<PathBuf>,
    /// As it was when it was read.
    read: Seen,
    current: ArcSwapOption<Environment<'static>>,
}

impl Pages {
    pub fn load(folder: Option<&Path>) -> anyhow::Result<Pages> {
        let seen = folder.map(state_of).unwrap_or_default();
        let current = folder.map(read).transpose()?.map(Arc::new);
        Ok(Pages { folder: folder.map(Path::to_owned), read: seen, current: ArcSwapOption::from(current) })
    }

    /// The operator's page, if there is one for this.
    pub fn render(&self, refusal: Refusal, facts: Facts<'_>) -> Option<String> {
        let environment = self.current.load();
        let environment = environment.as_ref()?;
        let names = [
            refusal.notice.map(|notice| format!("{}.html", notice.name())),
            refusal.code.map(|code| format!("{code}.html")),
            Some(format!("{}.html", refusal.status)),
            Some(ANY.to_owned()),
        ];
        let template = names.iter().flatten().find_map(|name| environment.get_template(name).ok())?;
        match template.render(facts.value()) {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::error!(page = template.name(), %error, "the operator's page cannot be rendered");
                None
            }
        }
    }

    /// Looks at the folder every so often, for ever.
    pub async fn follow(self: Arc<Pages>, every: Duration) {
        let Some(folder) = self.folder.clone() else { return };
        let mut seen = self.read.clone();
        let mut tick = tokio::time::interval(every);
        loop {
            tick.tick().await;
            let now = state_of(&folder);
            if now == seen {
                continue;
            }
            seen = now;
            let from = folder.clone();
            match tokio::task::spawn_blocking(move || read(&from)).await {
                Ok(Ok(environment)) => {
                    self.current.store(Some(Arc::new(environment)));
                    tracing::info!(folder = %folder.display(), "took the new error pages");
                }
                Ok(Err(error)) => tracing::error!("the new error pages cannot be used, the old ones stay: {error:#}"),
                Err(error) => tracing::error!(%error, "reading the error pages failed"),
            }
        }
    }
}

type Seen = BTreeMap<PathBuf, (u64, u64, i64, i64)>;

fn state_of(folder: &Path) -> Seen {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let states = entries.filter_map(|entry| {
        let metadata = std::fs::metadata(entry.path()).ok()?;
        Some((entry.path(), (metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())))
    });
    states.collect()
}

/// Reads the folder's templates, and renders each page once.
fn read(folder: &Path) -> anyhow::Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let mut pages = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            anyhow::bail!("{} has no name of a page", path.display())
        };
        if !name.ends_with(".html") {
            continue;
        }
        anyhow::ensure!(
            name.starts_with('_') || is_page(&name),
            "{} is the page of nothing: there are {ANY}, codes such as H80.html, statuses such as 404.html, and what \
             an app is: {}",
            path.display(),
            Notice::ALL.map(Notice::name).join(", ")
        );
        let cannot = || format!("cannot use {}", path.display());
        let length = std::fs::metadata(&path).with_context(cannot)?.len();
        anyhow::ensure!(length <= LONGEST, "{} is longer than {LONGEST} bytes", path.display());
        let text = std::fs::read_to_string(&path).with_context(cannot)?;
        environment.add_template_owned(name.clone(), text).with_context(cannot)?;
        if !name.starts_with('_') {
            pages.push(name);
        }
    }
    let sample = Facts { code: Some("H80"), status: 503, title: "title", message: "message", request_id: "id" };
    let uncoded = Facts { code: None, status: 404, ..sample };
    for name in &pages {
        for facts in [sample, uncoded] {
            let page = environment.get_template(name).and_then(|template| template.render(facts.value()));
            page.with_context(|| format!("cannot use {}", folder.join(name).display()))?;
        }
    }
    Ok(environment)
}

fn is_page(name: &str) -> bool {
    let Some(of) = name.strip_suffix(".html") else { return false };
    name == ANY
        || ALL_CODES.iter().any(|code| code.to_string() == of)
        || STATUSES.iter().any(|status| status.to_string() == of)
        || Notice::ALL.iter().any(|notice| notice.name() == of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::errors::{Code, render};

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn the_page_that_says_most_is_taken_and_others_are_ours() {
        let folder = folder(&[
            ("_head.html", "<b>ACME</b>"),
            ("H10.html", "{% include '_head.html' %} ten {{ title }} {{ request_id }}"),
            ("crashed.html", "crashed {{ code }}"),
            ("404.html", "nothing {{ message }}"),
            ("readme.txt", "is no page"),
        ]);
        let pages = Pages::load(Some(folder.path())).unwrap();
        let body = |refusal, accept| render(refusal, "<id>", accept, &pages).body;
        let crashed = Refusal::without_target(Some(Notice::Crashed));
        assert_eq!(body(crashed, None), "crashed H10");
        let ten = body(Refusal::coded(503, Code::H10), None);
        assert!(ten.starts_with("<b>ACME</b> ten This app has crashed &lt;id&gt;"), "{ten}");
        assert!(body(Refusal::bare(404), None).starts_with("nothing No app has this address."));
        assert!(body(Refusal::coded(503, Code::H12), None).contains("This app took too long"), "ours");
        assert!(body(crashed, Some("application/json")).starts_with('{'), "whoever wants JSON gets it");
        std::fs::write(folder.path().join("error.html"), "any {{ status }}").unwrap();
        let pages = Pages::load(Some(folder.path())).unwrap();
        assert_eq!(render(Refusal::coded(503, Code::H12), "id", None, &pages).body, "any 503");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_refused_and_named() {
        for (name, text, why) in [
            ("H81.html", "x", "is the page of nothing"),
            ("505.html", "x", "is the page of nothing"),
            ("error.html", "{{ nothing }}", "error.html"),
            ("H80.html", "{% if %}", "H80.html"),
            ("H80.html", "{% include 'other.html' %}", "H80.html"),
        ] {
            let folder = folder(&[(name, text)]);
            let error = Pages::load(Some(folder.path())).err().unwrap();
            assert!(format!("{error:#}").contains(why), "{name}: {error:#}");
        }
        let long = folder(&[("error.html", &"x".repeat(300_000))]);
        assert!(Pages::load(Some(long.path())).is_err());
        assert!(Pages::load(Some(Path::new("/nowhere"))).is_err());
    }

    #[tokio::test]
    async fn pages_that_change_are_taken_and_broken_ones_are_not() {
        let folder = folder(&[("H80.html", "first")]);
        let pages = Arc::new(Pages::load(Some(folder.path())).unwrap());
        let follower = tokio::spawn(pages.clone().follow(Duration::from_millis(5)));
        let becomes = async |wanted: &str| {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            while render(Refusal::coded(503, Code::H80), "id", None, &pages).body != wanted {
                assert!(tokio::time::Instant::now() < deadline, "waited in vain for {wanted}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        std::fs::write(folder.path().join("H80.html"), "the second").unwrap();
        becomes("the second").await;
        std::fs::write(folder.path().join("H80.html"), "{{ broken").unwrap();
        std::fs::write(folder.path().join("404.html"), "a sign that it was looked at").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        becomes("the second").await;
        std::fs::write(folder.path().join("H80.html"), "the third one").unwrap();
        becomes("the third one").await;
        follower.abort();
    }
}
