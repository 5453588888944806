//! What the operator's container engine is told, to build the image of a `Dockerfile` and to give its root away as a
//! tarball. It is the one thing that runs outside the sandbox, because it makes sandboxes of its own; so it is told
//! nothing but paths of ours, and no name or value of a repository stands in the script.

use std::path::PathBuf;

/// The engine's program, as the operator's configuration names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Docker,
    Podman,
    Buildah,
}

impl Engine {
    pub fn program(self) -> &'static str {
        match self {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
            Engine::Buildah => "buildah",
        }
    }
}

/// One image to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    pub engine: Engine,
    /// Options before the engine's own command, such as `--storage-driver vfs`.
    pub options: Vec<String>,
    /// The checked-out code: what the image is built from.
    pub context: PathBuf,
    /// Below `context`; no link.
    pub dockerfile: String,
    /// A file per variable: each is a build argument.
    pub env: PathBuf,
    pub out: PathBuf,
    /// Where engines that have no daemon keep their layers; one folder for each repository.
    pub store: PathBuf,
    pub store_mb: u64,
    /// Sixteen hex digits: names the image and its container.
    pub key: String,
    /// Whether layers of earlier builds are used, and this one's are kept.
    pub cached: bool,
    pub network: bool,
    pub disk_bytes: u64,
}

/// The results: the image's root, and what it says of itself.
pub const ROOTFS: &str = "rootfs.tar";
pub const INSPECTED: &str = "image.json";

impl ImagePlan {
    pub fn command(&self) -> String {
        SCRIPT.replace("ENGINE", self.engine.program())
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        [
            ("HOME", text(&self.store)),
            ("XDG_RUNTIME_DIR", text(&self.store.join("run"))),
            ("BUILDAH_ISOLATION", "chroot".to_owned()),
            ("OPTIONS", self.options.join("\n")),
            ("CONTEXT", text(&self.context)),
            ("DOCKERFILE", self.dockerfile.clone()),
            ("ARGUMENTS", text(&self.env)),
            ("OUT", text(&self.out)),
            ("STORE", text(&self.store)),
            ("STORE_MB", self.store_mb.to_string()),
            ("IMAGE", format!("landfall-{}", self.key)),
            ("CACHED", if self.cached { "1" } else { "" }.to_owned()),
            ("NETWORK", if self.network { "1" } else { "" }.to_owned()),
            ("MOST_BYTES", self.disk_bytes.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

const SCRIPT: &str = r#"set -euo pipefail
umask 022
mkdir -p "$STORE" "$OUT"
mapfile -t options <<<"$OPTIONS"
[ -n "$OPTIONS" ] || options=()
case ENGINE in
  docker) own=() ;;
  *) own=(--root "$STORE/root" --runroot "$STORE/run") ;;
esac
engine() { ENGINE "${own[@]}" "${options[@]}" "$@"; }
quietly() { "$@" >/dev/null 2>&1 || true; }
command -v ENGINE >/dev/null || { echo ' !     The machine has no ENGINE.'; exit 1; }
quietly engine rm --force "$IMAGE"
trap 'quietly engine rm --force "$IMAGE"' EXIT
used=$(du -sm "$STORE" 2>/dev/null | cut -f 1 || true)
if [ "${used:-0}" -gt "$STORE_MB" ]; then quietly engine rmi --all --force; fi

arguments=(build --file "$CONTEXT/$DOCKERFILE" --tag "$IMAGE")
[ -n "$CACHED" ] || arguments+=(--no-cache)
[ -n "$NETWORK" ] || arguments+=(--network none)
if [ ENGINE = buildah ]; then arguments+=(--layers); fi
for file in "$ARGUMENTS"/*; do
  [ -f "$file" ] && arguments+=(--build-arg "${file##*/}=$(cat "$file")")
done
echo '-----> Building the image with ENGINE'
engine "${arguments[@]}" "$CONTEXT" </dev/null
echo '-----> Taking its root'
if [ ENGINE = buildah ]; then
  engine inspect --type image "$IMAGE" >"$OUT/image.json"
  engine from --pull-never --name "$IMAGE" "$IMAGE" >/dev/null
  mounted=$(engine mount "$IMAGE")
  tar --create --one-file-system --directory "$mounted" . | head --bytes="$MOST_BYTES" >"$OUT/rootfs.tar"
else
  engine image inspect "$IMAGE" >"$OUT/image.json"
  engine create --name "$IMAGE" "$IMAGE" /bin/true >/dev/null
  engine export "$IMAGE" | head --bytes="$MOST_BYTES" >"$OUT/rootfs.tar"
fi
quietly engine rm --force "$IMAGE"
if [ ENGINE = docker ]; then quietly engine rmi --no-prune "$IMAGE"; fi
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_repository_stands_in_the_script() {
        let plan = ImagePlan {
            engine: Engine::Podman,
            options: vec!["--storage-driver".to_owned(), "vfs".to_owned()],
            context: "/x/app".into(),
            dockerfile: "$(reboot)/Dockerfile".to_owned(),
            env: "/x/env".into(),
            out: "/x/out".into(),
            store: "/x/store".into(),
            store_mb: 1,
            key: "0123".to_owned(),
            cached: false,
            network: false,
            disk_bytes: 1,
        };
        assert!(plan.command().contains("podman build") || plan.command().contains("podman \"${own[@]}\""));
        assert!(!plan.command().contains("reboot") && !plan.command().contains("ENGINE"));
        let environment = plan.environment();
        assert!(environment.contains(&("OPTIONS".to_owned(), "--storage-driver\nvfs".to_owned())));
        assert!(environment.contains(&("CACHED".to_owned(), String::new())));
    }
}
