//! The walls, as data: what bubblewrap is told for one process, and which system calls are refused.
//!
//! An allow list: the sandbox begins empty, and what is not named here does not exist inside. Pure, so that the
//! policy can be read and compared as a whole. Options as of bubblewrap 0.8 (Debian 12).

use super::contract::{Bind, Network, Spec, Walls};
use nix::libc;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Whom a process is inside the sandbox. No such user exists on the machine.
pub const INSIDE_ID: u32 = 10_001;

pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Files of the machine that programs need, seen read-only where they exist. Nothing here tells of people or secrets.
const ETC: [&str; 18] = [
    "/etc/ssl",
    "/etc/pki",
    "/etc/ca-certificates",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/protocols",
    "/etc/services",
    "/etc/mime.types",
    "/etc/magic",
    "/etc/fonts",
    "/etc/terminfo",
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/gai.conf",
];

/// Settings whose folder bears a version, likewise; `*` stands for any name. PHP finds its extensions by them. What its
/// servers read (`fpm`, `apache2`) may hold passwords and is left out.
pub const VERSIONED_ETC: [&str; 5] =
    ["/etc/java-*", "/etc/ImageMagick-*", "/etc/php/*/cli", "/etc/php/*/cgi", "/etc/php/*/mods-available"];

/// Where the launcher has put what the sandbox is made of. All of these lie in its private mount namespace.
pub struct Staged {
    pub app: PathBuf,
    pub temporary: PathBuf,
    /// passwd, group, hosts and nsswitch.conf as the sandbox sees them.
    pub etc: PathBuf,
    /// In the order of `Spec::binds`.
    pub binds: Vec<PathBuf>,
    /// Staged folder and the path that it has inside.
    pub toolchains: Vec<(PathBuf, PathBuf)>,
    pub has_bash: bool,
    /// What stands at /bin, /lib and so on: a link's target, or `None` for a folder of its own.
    pub roots: Vec<(&'static str, Option<PathBuf>)>,
    /// What there is of [`VERSIONED_ETC`].
    pub settings: Vec<PathBuf>,
}

/// The folders beside /usr that hold programs: links into /usr on most systems.
pub const ROOTS: [&str; 6] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// Options for bubblewrap, given on a descriptor so that no variable stands in a command line.
pub fn options(spec: &Spec, staged: &Staged, status_fd: i32, seccomp_fd: i32) -> Vec<String> {
    let mut list = Options(Vec::new());
    list.add(["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    if spec.network == Network::Isolated {
        list.add(["--unshare-net"]);
    }
    list.add(["--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
    let (user, group) = match &spec.walls {
        Walls::Image(root) => (root.user, root.group),
        Walls::Sandbox | Walls::None => (INSIDE_ID, INSIDE_ID),
    };
    list.add(["--uid", &user.to_string(), "--gid", &group.to_string(), "--hostname", &host_name(spec)]);
    list.add(["--json-status-fd", &status_fd.to_string(), "--seccomp", &seccomp_fd.to_string()]);
    match &spec.walls {
        Walls::Image(root) => {
            list.add(["--bind", &text(&staged.app.join(&root.folder)), "/"]);
            // The shell that starts the command; an image need not have one.
            list.add(["--ro-bind", "/usr", MACHINE_USR]);
        }
        Walls::Sandbox | Walls::None => see_programs(&mut list, staged),
    }
    match spec.network {
        Network::Isolated => list.add(["--ro-bind", &text(&staged.etc.join("hosts")), "/etc/hosts"]),
        Network::Host => {
            list.add(["--ro-bind-try", "/etc/hosts", "/etc/hosts"]);
            list.add(["--ro-bind-try", "/etc/resolv.conf", "/etc/resolv.conf"]);
        }
    }
    for (staged, inside) in &staged.toolchains {
        if matches!(spec.walls, Walls::Sandbox) {
            list.add(["--ro-bind", &text(staged), &text(inside)]);
        }
    }
    list.add(["--proc", "/proc", "--dev", "/dev"]);
    list.add(["--size", &(64 << 20).to_string(), "--perms", "1777", "--tmpfs", "/dev/shm"]);
    list.add(["--remount-ro", "/dev", "--bind", &text(&staged.temporary), "/tmp"]);
    if !matches!(spec.walls, Walls::Image(_)) {
        list.add(["--dir", "/var", "--symlink", "../tmp", "/var/tmp", "--bind", &text(&staged.app), "/app"]);
    }
    for (Bind { inside, writable, .. }, staged) in spec.binds.iter().zip(&staged.binds) {
        list.add([if *writable { "--bind" } else { "--ro-bind" }, &text(staged), &text(inside)]);
    }
    match &spec.walls {
        Walls::Image(root) => list.add(["--chdir", &root.directory, "--clearenv"]),
        Walls::Sandbox | Walls::None => list.add(["--remount-ro", "/", "--chdir", "/app", "--clearenv"]),
    }
    let late = matches!(spec.walls, Walls::Image(_));
    for (name, value) in environment(spec, &staged.toolchains) {
        // What the loader obeys is for the image's own programs, not for the machine's shell; see `command`.
        if !late || !name.starts_with("LD_") {
            list.add(["--setenv", &name, &value]);
        }
    }
    list.0
}

/// Where the machine's `/usr` stands inside an image.
const MACHINE_USR: &str = "/.landfall/usr";

fn see_programs(list: &mut Options, staged: &Staged) {
    list.add(["--ro-bind", "/usr", "/usr"]);
    for (root, target) in &staged.roots {
        match target {
            Some(target) => list.add(["--symlink", &text(target), root]),
            None => list.add(["--ro-bind", root, root]),
        }
    }
    for file in ETC.map(Path::new).into_iter().chain(staged.settings.iter().map(PathBuf::as_path)) {
        list.add(["--ro-bind-try", &text(file), &text(file)]);
    }
    for file in ["passwd", "group", "nsswitch.conf"] {
        list.add(["--ro-bind", &text(&staged.etc.join(file)), &format!("/etc/{file}")]);
    }
}

/// As `command`, for the root of an image: the machine's own shell, by the machine's own loader, starts a line of the
/// image's programs. `shell` and `loader` are real paths below `/usr`.
pub fn command_in_image(spec: &Spec, shell: &Path, loader: &Path) -> Vec<String> {
    let inside = |path: &Path| text(&Path::new(MACHINE_USR).join(path.strip_prefix("/usr").unwrap_or(path)));
    let libraries = loader.parent().map(&inside).unwrap_or_default();
    let gate = if waits_for_services(spec) { format!("read -r _ <&{GATE}; exec {GATE}<&-; ") } else { String::new() };
    let script = format!(
        "printf '\\006' >&2; exec 2>&3 3>&-; {gate}command=$1; shift; for pair; do export \"$pair\"; done; \
         set --; eval \"$command\""
    );
    let mut words = vec![inside(loader), "--library-path".to_owned(), libraries, inside(shell)];
    words.extend(["-c".to_owned(), script, "landfall".to_owned(), spec.command.clone()]);
    let late = spec.environment.iter().filter(|(name, _)| name.starts_with("LD_"));
    words.extend(late.map(|(name, value)| format!("{name}={value}")));
    words
}

/// What runs without walls: the same marks that bubblewrap would give, so that the supervisor sees no difference.
pub fn command_without_walls(spec: &Spec) -> [String; 5] {
    let script = format!(
        "bash -c 'printf \"\\006\" >&2; exec 2>&3 3>&- {STATUS_OUT}>&-; exec bash -c \"$1\"' landfall \"$1\" & \
         printf '{{\"child-pid\": %d}}\\n' $! >&{STATUS_OUT}; exec 3>&-; \
         wait $!; code=$?; printf '{{\"exit-code\": %d}}\\n' $code >&{STATUS_OUT}; exit $code"
    );
    ["/bin/bash".to_owned(), "-c".to_owned(), script, "landfall".to_owned(), spec.command.clone()]
}

/// The descriptor that bubblewrap's reports are written to.
pub const STATUS_OUT: i32 = 5;

/// The program and its arguments, run inside. The first byte on the standard error says that all walls stand; what
/// bubblewrap itself has to say came before it. Then the app's own standard error takes its place.
pub fn command(spec: &Spec, has_bash: bool) -> [String; 5] {
    let shell = if has_bash { "/bin/bash" } else { "/bin/sh" };
    // Held back until what it shall find on its loopback is there.
    let gate = if waits_for_services(spec) { format!("read -r _ <&{GATE}; exec {GATE}<&-; ") } else { String::new() };
    let script = format!(
        "printf '\\006' >&2; exec 2>&3 3>&-; {gate}\
         for profile in /app/.profile.d/*.sh; do if [ -r \"$profile\" ]; then . \"$profile\"; fi; done; unset profile; \
         exec {shell} -c \"$1\""
    );
    [shell.to_owned(), "-c".to_owned(), script, "landfall".to_owned(), spec.command.clone()]
}

/// The descriptor that a process with services waits on.
pub const GATE: i32 = 7;

pub fn waits_for_services(spec: &Spec) -> bool {
    spec.network == Network::Isolated && !spec.services.is_empty()
}

/// All that a process finds in its environment, besides what its shell adds (`PWD`, `SHLVL`, `_`).
pub fn environment(spec: &Spec, toolchains: &[(PathBuf, PathBuf)]) -> BTreeMap<String, String> {
    let mut environment = spec.environment.clone();
    let mut path: Vec<String> = toolchains.iter().map(|(_, inside)| text(&inside.join("bin"))).collect();
    path.push(DEFAULT_PATH.to_owned());
    environment.entry("PATH".to_owned()).or_insert_with(|| path.join(":"));
    environment.entry("HOME".to_owned()).or_insert_with(|| "/app".to_owned());
    environment.entry("LANG".to_owned()).or_insert_with(|| "C.UTF-8".to_owned());
    environment
}

/// The app's name (else the process's), made a host name.
pub fn host_name(spec: &Spec) -> String {
    let name = spec.labels.get("app").unwrap_or(&spec.name);
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "app".to_owned() } else { name.to_owned() }
}

/// Contents of the staged /etc.
pub fn etc_files(spec: &Spec) -> [(&'static str, String); 4] {
    let host = host_name(spec);
    [
        (
            "passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 app:x:{INSIDE_ID}:{INSIDE_ID}:app:/app:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("group", format!("root:x:0:\napp:x:{INSIDE_ID}:\nnogroup:x:65534:\n")),
        ("hosts", format!("127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {host}\n{}", service_names(spec))),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ]
}

/// Lines for the names that lead to services on the loopback; what is no host name is left out.
fn service_names(spec: &Spec) -> String {
    let is_name = |name: &&String| {
        name.len() < 254 && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
    };
    let names = spec.services.iter().filter_map(|service| service.name.as_ref()).filter(is_name);
    names.map(|name| format!("127.0.0.1 {name}\n")).collect()
}

/// A filter that refuses system calls which a web application has no use for and which have been ways out of
/// sandboxes, in the kernel's classic BPF encoding (seccomp(2)): four numbers of 2, 1, 1 and 4 bytes an instruction.
/// `None` on processors whose numbering is not known here.
pub fn seccomp() -> Option<Vec<u8>> {
    // AUDIT_ARCH_* of linux/audit.h.
    let architecture: u32 = match std::env::consts::ARCH {
        "x86_64" => 0xc000_003e,
        "aarch64" => 0xc000_00b7,
        _ => return None,
    };
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_AT_LEAST: u16 = 0x35;
    const JUMP_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const REFUSE: u32 = 0x0005_0000;
    let not_permitted = REFUSE | libc::EPERM as u32;
    let not_known = REFUSE | libc::ENOSYS as u32;
    // Offsets in struct seccomp_data: number 0, architecture 4, arguments from 16 on, eight bytes each.
    let mut program: Vec<(u16, u8, u8, u32)> =
        vec![(LOAD, 0, 0, 4), (JUMP_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)];
    if cfg!(target_arch = "x86_64") {
        // The x32 numbers would be a second door to everything.
        program.extend([(JUMP_AT_LEAST, 0, 1, 0x4000_0000), (RETURN, 0, 0, not_permitted)]);
    }
    for number in REFUSED {
        program.extend([(JUMP_EQUAL, 0, 1, number as u32), (RETURN, 0, 0, not_permitted)]);
    }
    // Its arguments lie in memory, where a filter can't look; C libraries fall back to clone.
    program.extend([(JUMP_EQUAL, 0, 1, libc::SYS_clone3 as u32), (RETURN, 0, 0, not_known)]);
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    program.extend([
        (JUMP_EQUAL, 0, 3, libc::SYS_clone as u32),
        (LOAD, 0, 0, 16),
        (JUMP_ANY_BIT, 0, 5, namespaces as u32),
        (RETURN, 0, 0, not_permitted),
        // Pushing characters into a terminal.
        (JUMP_EQUAL, 0, 3, libc::SYS_ioctl as u32),
        (LOAD, 0, 0, 24),
        (JUMP_EQUAL, 0, 1, libc::TIOCSTI as u32),
        (RETURN, 0, 0, not_permitted),
        (RETURN, 0, 0, ALLOW),
    ]);
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for (code, when, otherwise, value) in program {
        bytes.extend(code.to_ne_bytes());
        bytes.extend([when, otherwise]);
        bytes.extend(value.to_ne_bytes());
    }
    Some(bytes)
}

const REFUSED: [libc::c_long; 48] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

struct Options(Vec<String>);

impl Options {
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(str::to_owned));
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
