//! The sample repository, and the commits that a person (or `--once`) pushes to it.

use serde_json::{Value, json};

/// The first commit's files.
pub const FILES: &[(&str, &str)] = &[
    ("Procfile", include_str!("../../demo/hello/Procfile")),
    ("README.md", include_str!("../../demo/hello/README.md")),
    ("app.json", include_str!("../../demo/hello/app.json")),
    ("page.py", include_str!("../../demo/hello/page.py")),
    ("release.py", include_str!("../../demo/hello/release.py")),
    ("server.py", include_str!("../../demo/hello/server.py")),
    ("tests/run.py", include_str!("../../demo/hello/tests/run.py")),
];

pub const OWNER: &str = "acme";
pub const NAME: &str = "hello";
pub const REPOSITORY: &str = "acme/hello";

/// A change that is ready to be pushed.
pub struct Prepared {
    pub id: &'static str,
    pub branch: &'static str,
    pub title: &'static str,
    pub greeting: &'static str,
    pub colour: &'static str,
    /// The title and text of the pull request that it opens.
    pub opens: Option<(&'static str, &'static str)>,
}

pub const GREEN: &str = "#2b7a4b";
pub const BLUE: &str = "#1f4e8c";
pub const ORANGE: &str = "#a8501e";

pub const WARMER: Prepared = Prepared {
    id: "warmer",
    branch: "warmer-greeting",
    title: "Greet more warmly",
    greeting: "Welcome",
    colour: ORANGE,
    opens: Some(("Greet more warmly", "“Hello” is a little cold for a front page.")),
};
pub const WARMEST: Prepared = Prepared {
    id: "warmest",
    branch: "warmer-greeting",
    title: "Greet more warmly still",
    greeting: "A warm welcome",
    colour: ORANGE,
    opens: None,
};
pub const BROKEN: Prepared = Prepared {
    id: "broken",
    branch: "warmer-greeting",
    title: "Forget the greeting (this breaks a test)",
    greeting: " ",
    colour: ORANGE,
    opens: None,
};
pub const MENDED: Prepared = Prepared {
    id: "mended",
    branch: "warmer-greeting",
    title: "Put the greeting back",
    greeting: "A warm welcome",
    colour: ORANGE,
    opens: None,
};
pub const BLUER: Prepared = Prepared {
    id: "bluer",
    branch: "blue-page",
    title: "Paint the page blue",
    greeting: "Hello",
    colour: BLUE,
    opens: Some(("Paint the page blue", "Only to see how it looks. Close this one without merging.")),
};

pub const ALL: [&Prepared; 5] = [&WARMER, &WARMEST, &BROKEN, &MENDED, &BLUER];

impl Prepared {
    pub fn files(&self) -> Value {
        let page = include_str!("../../demo/hello/page.py")
            .replace("GREETING = \"Hello\"", &format!("GREETING = \"{}\"", self.greeting))
            .replace(GREEN, self.colour);
        json!({ "page.py": page })
    }
}

/// The first commit, as the simulated GitHub takes it.
pub fn first_files() -> Value {
    FILES.iter().map(|(path, text)| ((*path).to_owned(), Value::from(*text))).collect::<serde_json::Map<_, _>>().into()
}

/// What the pages of the simulated GitHub offer as buttons.
pub fn prepared() -> Value {
    ALL.iter()
        .map(|commit| {
            json!({
                "id": commit.id,
                "repo": REPOSITORY,
                "branch": commit.branch,
                "title": commit.title,
                "description": commit.title,
                "files": commit.files(),
                "opens_pull": commit.opens.map(|(title, body)| json!({ "title": title, "body": body })),
            })
        })
        .collect()
}
