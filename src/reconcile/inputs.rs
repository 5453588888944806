//! What a build is made from, gathered before it begins: the files by which a tree declares its needs, the buildpacks
//! that it asks for (each pinned to a commit), and the environment that it sees. Equal inputs have equal keys, and a
//! key is built once.

use super::{Trouble, World};
use crate::domain::*;
use crate::outside;
use crate::platform;
use crate::slug::{self, Blame, Pack, Remote, Source, SourceError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Programs of the machine by which built code runs: it may be good for no other version of them.
const INTERPRETERS: [&str; 5] = ["node", "python3", "ruby", "java", "php"];

/// Pinned inputs of a build.
pub(super) struct Inputs {
    pub key: BuildKey,
    /// What the build is found by: the tree, or one of its own where an environment has buildpacks of its own.
    pub tree: Sha,
    /// As they read back, see [`slug::Pack`].
    pub buildpacks: Vec<String>,
}

pub(super) async fn inputs(
    world: &World,
    repository: &Repository,
    commit: &Sha,
    mut tree: Sha,
    root: &str,
    environment: Environment,
) -> Result<Result<Inputs, Failure>, Trouble> {
    if let Err(failure) = declarations(world, repository.id, commit, root).await? {
        return Ok(Err(failure));
    }
    let settings = settings_of(world, repository.id, commit, root).await?.0.build;
    let (file, asked) = match settings.buildpacks {
        Some(asked) => (SETTINGS_FILE, asked),
        None => {
            let manifest = manifest_of(world, repository.id, commit, root).await?.0;
            let asked = manifest.for_environment(environment).buildpacks;
            if asked != manifest.for_environment(Environment::Plain).buildpacks {
                tree = tree_with_buildpacks(&tree, &asked)?;
            }
            ("app.json", asked)
        }
    };
    let packs = match slug::read_packs(&asked) {
        Ok(packs) => packs,
        Err(error) => {
            return Ok(Err(Failure::Buildpack { detail: format!("{file}: {error}") }));
        }
    };
    let mut buildpacks = Vec::new();
    for pack in packs {
        match pin(world, pack).await? {
            Ok(pack) => buildpacks.push(pack.to_string()),
            Err(failure) => return Ok(Err(failure)),
        }
    }
    let environment = build_environment(world, repository.id, commit, root).await?;
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(repository.id.0.to_string().as_bytes());
    part(tree.as_str().as_bytes());
    // The folder of the built-in buildpacks is named by their content.
    part(world.buildpacks.file_name().unwrap_or_default().as_encoded_bytes());
    for pack in &buildpacks {
        part(pack.as_bytes());
    }
    if let Some(engine) = super::image::engine(world) {
        part(b"engine");
        part(engine.program().as_bytes());
    }
    part(b"machine");
    for found in interpreters(&world.config.sandbox.toolchains) {
        part(found.as_bytes());
    }
    part(b"environment");
    for (name, value) in &environment {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    Ok(Ok(Inputs { key: BuildKey(hex::encode(&digest.finalize()[..8])), tree, buildpacks }))
}

/// Which interpreters a sandbox shows, as far as a look at their files tells.
fn interpreters(toolchains: &[PathBuf]) -> Vec<String> {
    let own = toolchains.iter().map(|toolchain| toolchain.join("bin"));
    let folders: Vec<PathBuf> = own.chain(platform::DEFAULT_PATH.split(':').map(PathBuf::from)).collect();
    let first = |name: &&str| folders.iter().find_map(|folder| identity(&folder.join(name)));
    INTERPRETERS.iter().filter_map(first).collect()
}

/// The file that a path leads to, with what changes when another takes its place.
fn identity(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let found = path.metadata().ok()?;
    let changed = found.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(format!("{} {} {}", path.display(), found.len(), changed.as_nanos()))
}

/// What the build sees as files in `ENV_DIR`: build-time config, and nothing that belongs to one app alone, since the
/// slug is every stage's.
pub(super) async fn build_environment(
    world: &World,
    repository: RepositoryId,
    commit: &Sha,
    root: &str,
) -> Result<BTreeMap<String, String>, Trouble> {
    let manifest = manifest_of(world, repository, commit, root).await?.0;
    let declared = manifest.for_environment(Environment::Plain).env;
    let plain = declared.into_iter().filter(|(_, declared)| declared.generator.is_none());
    Ok(plain.filter_map(|(name, declared)| Some((name, declared.value?))).collect())
}

/// Follows a branch or a tag to the commit that it means now.
async fn pin(world: &World, pack: Pack) -> Result<Result<Pack, Failure>, Trouble> {
    let refuse = |detail: String| Ok(Err(Failure::Buildpack { detail }));
    if let Some(host) = pack.host()
        && !may_be_asked(world, host)
    {
        return refuse(format!("{pack}: {host} is not among build.buildpack_hosts of this installation"));
    }
    let Pack::Git { url, reference } = &pack else { return Ok(Ok(pack)) };
    outside::point("git ls-remote").await;
    match pack_source(world).resolve(url, reference.as_deref()).await {
        Ok(Some(commit)) => Ok(Ok(pack.pinned(Some(commit)))),
        Ok(None) => refuse(format!("{pack}: there is no such branch, tag or commit")),
        Err(SourceError::Unreachable { detail } | SourceError::Git { detail, .. }) => Err(Trouble::retry(detail)),
        Err(error @ SourceError::TimedOut { .. }) => Err(Trouble::retry(error)),
        Err(error) => refuse(format!("{pack}: {error}")),
    }
}

fn may_be_asked(world: &World, host: &str) -> bool {
    let own =
        world.config.github.web_url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(""));
    host == own || world.config.build.buildpack_hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
}

fn pack_source(world: &World) -> Source {
    world.source.beside(world.folder("buildpacks").join("mirrors"))
}

/// Writes a pinned buildpack's files into `into`. Its mirror is kept, so that only what is new is fetched next time.
pub(super) async fn check_out_pack(
    world: &World,
    url: &str,
    commit: &Sha,
    into: &std::path::Path,
) -> Result<Result<(), Failure>, Trouble> {
    let source = pack_source(world);
    // Mirrors are named by numbers; GitHub's are far below this one's.
    let digest = Sha256::digest(url.as_bytes());
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) | 1 << 63;
    let remote = Remote { repository: RepositoryId(number), url: url.to_owned(), authorization: None };
    outside::point("git fetch").await;
    let done = match source.fetch(&remote, commit).await {
        Ok(_) => source.check_out(remote.repository, commit, into).await.map(drop),
        Err(error) => Err(error),
    };
    outside::point("git fetched").await;
    let Err(error) = done else { return Ok(Ok(())) };
    match (error.who(), &error) {
        (_, SourceError::Unreachable { .. } | SourceError::TimedOut { .. }) => Err(Trouble::retry(error)),
        (Blame::User | Blame::Retry, _) | (_, SourceError::BadRemote(_)) => {
            Ok(Err(Failure::Buildpack { detail: format!("{url}#{commit}: {error}") }))
        }
        (Blame::Bug, _) => Err(Trouble::bug(error)),
    }
}

/// Whether the files by which a tree declares what it needs can be read at all, before anything is built.
async fn declarations(
    world: &World,
    repository: RepositoryId,
    commit: &Sha,
    root: &str,
) -> Result<Result<(), Failure>, Trouble> {
    let configuration = |file: &str, detail: String| Failure::Configuration { file: file.to_owned(), detail };
    let settings = settings_file(world, repository, commit, root).await?;
    for file in [&below(root, "app.json"), &below(root, "Procfile"), &settings] {
        let bytes = match world.source.file(repository, commit, file).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) if matches!(error.who(), Blame::User) => {
                return Ok(Err(configuration(file, error.to_string())));
            }
            Err(error) => return Err(Trouble::retry(error)),
        };
        let problem = match file.rsplit('/').next().unwrap_or_default() {
            "app.json" => Manifest::parse(&bytes).err().map(|error| error.to_string()),
            _ if *file == settings => RepositorySettings::parse(&bytes).err().map(|error| error.to_string()),
            _ => Procfile::parse(&bytes).err().map(|error| error.to_string()),
        };
        if let Some(detail) = problem {
            return Ok(Err(configuration(file, detail)));
        }
    }
    Ok(Ok(()))
}

/// A file's path below the folder that is built.
pub(super) fn below(root: &str, file: &str) -> String {
    if root.is_empty() { file.to_owned() } else { format!("{root}/{file}") }
}

/// Where the settings of a folder stand: in the folder itself, or else in the repository's own file.
async fn settings_file(world: &World, repository: RepositoryId, commit: &Sha, root: &str) -> Result<String, Trouble> {
    let own = below(root, SETTINGS_FILE);
    let there = match world.source.file(repository, commit, &own).await {
        Ok(found) => found.is_some(),
        // What is wrong with it is said when it is read.
        Err(error) if matches!(error.who(), Blame::User) => true,
        Err(error) => return Err(Trouble::retry(error)),
    };
    Ok(if there { own } else { SETTINGS_FILE.to_owned() })
}

/// What a build of a folder is made from, as if it were a commit's whole tree: the folder's tree, and the settings that
/// hold for it from outside of it. `None` where the commit has no such folder.
pub(super) async fn tree_of_folder(
    world: &World,
    repository: RepositoryId,
    commit: &Sha,
    root: &str,
) -> Result<Option<Sha>, Trouble> {
    let Some(tree) = world.source.tree_of_folder(repository, commit, root).await.map_err(Trouble::retry)? else {
        return Ok(None);
    };
    if root.is_empty() {
        return Ok(Some(tree));
    }
    let file = settings_file(world, repository, commit, root).await?;
    let settings = world.source.file(repository, commit, &file).await.unwrap_or_default().unwrap_or_default();
    let mut digest = Sha256::new();
    for part in [root.as_bytes(), tree.as_str().as_bytes(), &settings] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize()).parse().map(Some).map_err(Trouble::bug)
}

/// What a tree is called where it is built with other buildpacks than staging and production have: by two environments
/// with the same ones, once.
fn tree_with_buildpacks(tree: &Sha, buildpacks: &[String]) -> Result<Sha, Trouble> {
    let mut digest = Sha256::new();
    for part in [b"buildpacks".as_slice(), tree.as_str().as_bytes()]
        .into_iter()
        .chain(buildpacks.iter().map(|pack| pack.as_bytes()))
    {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize()).parse().map_err(Trouble::bug)
}

/// `app.json` as it is read, its text, and what in it was not understood.
pub(super) async fn manifest_of(
    world: &World,
    repository: RepositoryId,
    commit: &Sha,
    root: &str,
) -> Result<(Manifest, Option<String>, Vec<String>), Trouble> {
    let bytes = world.source.file(repository, commit, &below(root, "app.json")).await.map_err(Trouble::retry)?;
    let Some(bytes) = bytes else { return Ok((Manifest::default(), None, Vec::new())) };
    let (manifest, warnings) = Manifest::parse(&bytes).map_err(Trouble::bug)?;
    let sentences = warnings.iter().map(|warning| format!("app.json: {warning}")).collect();
    Ok((manifest, String::from_utf8(bytes).ok(), sentences))
}

/// `.github/landfall.toml` as it is read, and its text.
pub(super) async fn settings_of(
    world: &World,
    repository: RepositoryId,
    commit: &Sha,
    root: &str,
) -> Result<(RepositorySettings, Option<String>), Trouble> {
    let file = settings_file(world, repository, commit, root).await?;
    let bytes = world.source.file(repository, commit, &file).await.map_err(Trouble::retry)?;
    let Some(bytes) = bytes else { return Ok((RepositorySettings::default(), None)) };
    let settings = RepositorySettings::parse(&bytes).map_err(Trouble::bug)?;
    Ok((settings, String::from_utf8(bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn another_version_of_an_interpreter_is_another_machine() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let toolchains = [folder.path().to_owned()];
        let without = interpreters(&toolchains);
        std::fs::write(bin.join("python3.11"), "an interpreter").unwrap();
        std::fs::write(bin.join("python3.13"), "an interpreter").unwrap();
        let links = |to: &str| {
            let _ = std::fs::remove_file(bin.join("python3"));
            symlink(to, bin.join("python3")).unwrap();
            interpreters(&toolchains)
        };
        let old = links("python3.11");
        assert_ne!(old, without, "a toolchain's comes before the system's");
        assert_eq!(links("python3.11"), old);
        assert_ne!(links("python3.13"), old);
        std::fs::write(bin.join("python3.11"), "another build of it").unwrap();
        assert_ne!(links("python3.11"), old);
    }
}
