//! Which buildpacks a repository asks for, and where they come from.
//!
//! A buildpack is one of ours by its name, a git repository (fetched by the control plane's git, pinned to a commit), a
//! tarball (fetched by the build itself, inside its sandbox), or a folder of the repository that is built. The text of
//! a request comes from a stranger: it never reaches a shell, and holds nothing that the build's list of words could be
//! broken with.

use crate::domain::Sha;
use std::fmt;

/// The built-in buildpacks, in the order in which they are asked whether they take a repository.
pub const BUILT_IN: [&str; 10] = ["bin", "ruby", "nodejs", "python", "java", "php", "go", "rust", "static", "procfile"];

/// A buildpack as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pack {
    BuiltIn(&'static str),
    Git {
        url: String,
        reference: Option<String>,
    },
    /// `sha256` where the address ends in `#sha256=…`: another content fails the build.
    Tarball {
        url: String,
        sha256: Option<String>,
    },
    /// Below the repository's root.
    Folder(String),
}

/// A buildpack that can't be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("the buildpack {} is not available; built in are: {}", .asked.escape_debug(), BUILT_IN.join(", "))]
    Unknown { asked: String },
    #[error("the buildpack {} {why}", .asked.escape_debug())]
    Refused { asked: String, why: &'static str },
    #[error("more than {MOST_PACKS} buildpacks are asked for")]
    TooMany,
}

pub const MOST_PACKS: usize = 16;
const LONGEST: usize = 500;

/// Reads what `app.json` or `.github/landfall.toml` lists.
pub fn read_packs(asked: &[String]) -> Result<Vec<Pack>, PackError> {
    if asked.len() > MOST_PACKS {
        return Err(PackError::TooMany);
    }
    asked.iter().map(|asked| read_pack(asked)).collect()
}

fn read_pack(asked: &str) -> Result<Pack, PackError> {
    let text = asked.trim();
    let shown = || text.chars().take(200).collect::<String>();
    let refuse = |why| Err(PackError::Refused { asked: shown(), why });
    let unknown = || PackError::Unknown { asked: shown() };
    if text.len() > LONGEST || text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '|') {
        return refuse("is too long, or holds blanks");
    }
    if let Some(name) = built_in(text) {
        return Ok(Pack::BuiltIn(name));
    }
    if text.starts_with('.') {
        let path = text.trim_start_matches("./").trim_end_matches('/');
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        return if plain { Ok(Pack::Folder(path.to_owned())) } else { refuse("is no folder of this repository") };
    }
    let (address, fragment) = match text.split_once('#') {
        Some((address, fragment)) => (address, Some(fragment).filter(|fragment| !fragment.is_empty())),
        None => (text, None),
    };
    let address = match (address.strip_prefix("git@"), address.strip_prefix("git://")) {
        (Some(rest), _) => format!("https://{}", rest.replacen(':', "/", 1)),
        (_, Some(rest)) => format!("https://{rest}"),
        (None, None) => address.to_owned(),
    };
    if address.starts_with("https://") || address.starts_with("http://") {
        let host = host_of(&address);
        if host.is_empty() || host.contains('@') {
            return refuse("has no host in its address, or a user");
        }
        let path = address.split('?').next().unwrap_or_default().to_ascii_lowercase();
        if [".tgz", ".tar.gz", ".tar", ".tar.xz", ".tar.bz2"].iter().any(|end| path.ends_with(end)) {
            let sha256 = fragment.and_then(|fragment| fragment.strip_prefix("sha256=")).map(str::to_ascii_lowercase);
            let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if fragment.is_some() && !sha256.as_ref().is_some_and(is_digest) {
                return refuse("is a tarball, after which only #sha256= and 64 digits may stand");
            }
            return Ok(Pack::Tarball { url: address, sha256 });
        }
        if fragment.is_some_and(|fragment| !is_reference(fragment)) {
            return refuse("names no branch, tag or commit after its #");
        }
        return Ok(Pack::Git { url: address, reference: fragment.map(str::to_owned) });
    }
    // What Heroku's registry of buildpacks calls by two words.
    let text = text.strip_prefix("urn:buildpack:").unwrap_or(text);
    match text.split_once('/') {
        Some((owner, name)) if owner != "landfall" && is_word(owner) && is_word(name) => {
            Ok(Pack::Tarball { url: format!("{REGISTRY}{owner}/{name}.tgz"), sha256: None })
        }
        _ => Err(unknown()),
    }
}

const REGISTRY: &str = "https://buildpack-registry.s3.amazonaws.com/buildpacks/";

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// A branch, tag or commit that git takes without a second thought.
fn is_reference(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    text.len() <= 200
        && text.bytes().all(known)
        && !text.starts_with(['-', '/', '.'])
        && !text.ends_with(['/', '.'])
        && !text.contains("..")
        && !text.contains("//")
}

fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or("", |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or_default()
}

/// The built-in buildpack for `nodejs`, `heroku/nodejs`, `landfall/nodejs`, `urn:buildpack:heroku/nodejs`, or the
/// address of Heroku's own repository for it.
fn built_in(asked: &str) -> Option<&'static str> {
    let text = asked.to_ascii_lowercase();
    let text = text.split_once('#').map_or(text.as_str(), |(text, _)| text);
    let text = text.trim_end_matches('/').trim_end_matches(".git").trim_end_matches(".tgz");
    let hosts = ["https://github.com/", "http://github.com/", "git://github.com/", "git@github.com:", "urn:buildpack:"];
    let text = hosts.iter().find_map(|host| text.strip_prefix(host)).unwrap_or(text);
    let text = text.strip_prefix(REGISTRY).unwrap_or(text);
    let (owner, name) = text.split_once('/').unwrap_or(("landfall", text));
    let name = name.strip_prefix("heroku-buildpack-").unwrap_or(name);
    let known = matches!(owner, "landfall" | "heroku" | "heroku-community" | "heroku-buildpacks")
        // The community's own for a language that Heroku never had one for.
        || (owner == "emk" && name == "rust");
    let name = match name {
        "node" | "node.js" => "nodejs",
        "gradle" | "maven" | "jvm" => "java",
        // Heroku's buildpack for "nothing to do here".
        "null" | "inline" if owner != "landfall" => "procfile",
        name => name,
    };
    BUILT_IN.into_iter().find(|built_in| known && *built_in == name)
}

impl Pack {
    /// The host, and port where one is given, that a fetch of it would ask.
    pub fn host(&self) -> Option<&str> {
        match self {
            Pack::Git { url, .. } | Pack::Tarball { url, .. } => Some(host_of(url)),
            Pack::BuiltIn(_) | Pack::Folder(_) => None,
        }
    }

    /// The same one for ever: a branch becomes the commit that it leads to now.
    pub fn pinned(self, commit: Option<Sha>) -> Pack {
        match (self, commit) {
            (Pack::Git { url, .. }, Some(commit)) => Pack::Git { url, reference: Some(commit.to_string()) },
            (other, _) => other,
        }
    }

    /// As a word of the build's list: what people see of it, a bar, and where `build.sh` finds it. `number` is its
    /// place in the list.
    pub fn word(&self, number: usize) -> String {
        match self {
            Pack::BuiltIn(name) => (*name).to_owned(),
            Pack::Git { .. } => format!("{self}|{}/{number}", super::BUILD_PACKS),
            Pack::Tarball { .. } => format!("{self}|{self}"),
            Pack::Folder(path) => format!("{self}|{}/{path}", super::BUILD_APP),
        }
    }
}

impl fmt::Display for Pack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pack::BuiltIn(name) => formatter.write_str(name),
            Pack::Git { url, reference: Some(reference) } => write!(formatter, "{url}#{reference}"),
            Pack::Git { url, reference: None } => formatter.write_str(url),
            Pack::Tarball { url, sha256: Some(sha256) } => write!(formatter, "{url}#sha256={sha256}"),
            Pack::Tarball { url, sha256: None } => formatter.write_str(url),
            Pack::Folder(path) => write!(formatter, "./{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_paths_of_buildpacks_are_understood() {
        let git = |url: &str, reference: Option<&str>| Pack::Git {
            url: url.to_owned(),
            reference: reference.map(str::to_owned),
        };
        let tarball = |url: &str| Pack::Tarball { url: url.to_owned(), sha256: None };
        for (asked, expected) in [
            ("heroku/nodejs", Pack::BuiltIn("nodejs")),
            ("heroku/python", Pack::BuiltIn("python")),
            ("heroku/ruby", Pack::BuiltIn("ruby")),
            ("heroku/gradle", Pack::BuiltIn("java")),
            ("emk/rust", Pack::BuiltIn("rust")),
            ("heroku-community/static", Pack::BuiltIn("static")),
            ("nodejs", Pack::BuiltIn("nodejs")),
            ("landfall/bin", Pack::BuiltIn("bin")),
            ("urn:buildpack:heroku/nodejs", Pack::BuiltIn("nodejs")),
            ("https://github.com/heroku/heroku-buildpack-nodejs", Pack::BuiltIn("nodejs")),
            ("https://github.com/heroku/heroku-buildpack-nodejs.git#v200", Pack::BuiltIn("nodejs")),
            ("https://github.com/Heroku/heroku-buildpack-python/", Pack::BuiltIn("python")),
            ("git@github.com:heroku/heroku-buildpack-static.git", Pack::BuiltIn("static")),
            ("https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku/nodejs.tgz", Pack::BuiltIn("nodejs")),
            (
                "https://github.com/evil/heroku-buildpack-nodejs",
                git("https://github.com/evil/heroku-buildpack-nodejs", None),
            ),
            ("git@example.com:a/b.git#v1.2/x", git("https://example.com/a/b.git", Some("v1.2/x"))),
            ("https://example.com/b.tgz", tarball("https://example.com/b.tgz")),
            (
                "heroku-community/apt",
                tarball("https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku-community/apt.tgz"),
            ),
            ("./packs/own/", Pack::Folder("packs/own".to_owned())),
        ] {
            assert_eq!(read_pack(asked), Ok(expected.clone()), "{asked}");
            assert_eq!(read_pack(&expected.to_string()), Ok(expected), "{asked} reads back");
        }
        for asked in [
            "",
            "/etc",
            "../nodejs",
            "./a/../../b",
            "cobol",
            "landfall/cobol",
            "a b",
            "https://u:p@example.com/x",
            "https:///x",
            "file:///etc",
            "https://example.com/x#--upload-pack=x",
            "https://example.com/x#a..b",
            "https://example.com/x|/etc",
            "https://example.com/x.tgz#main",
            "https://example.com/x\n",
            "ssh://example.com/x",
        ] {
            let read = read_pack(asked);
            assert!(read.is_err() || asked.ends_with('\n'), "{asked:?}: {read:?}");
        }
        assert_eq!(read_packs(&vec!["nodejs".to_owned(); 17]), Err(PackError::TooMany));
        let error = read_pack("cobol").unwrap_err().to_string();
        assert!(error.starts_with("the buildpack cobol is not available; built in are: bin, ruby, nodejs"), "{error}");
    }
}
