//! What a process can see, reach and do that it should not.

use super::world::*;
use crate::platform::contract::*;

#[tokio::test]
async fn the_environment_is_what_was_declared() {
    let world = World::new();
    let mut process = spec("env.run.1.a1", "cat /proc/self/environ /proc/1/environ | tr '\\0' '\\n' | sort");
    process.environment.insert("SECRET".to_owned(), "a=b c\"d'e$f\\g".to_owned());
    process.environment.insert("LD_PRELOAD".to_owned(), String::new());
    let mut lines = world.output(&process).await;
    // The shell's own three.
    lines.retain(|line| !line.starts_with("_=") && !line.starts_with("SHLVL=") && !line.starts_with("PWD="));
    assert_eq!(
        lines,
        ["HOME=/app", "LANG=C.UTF-8", "LD_PRELOAD=", "PATH=/usr/local/bin:/usr/bin:/bin", "SECRET=a=b c\"d'e$f\\g"]
    );
    let running = spec("env.run.2.a1", "sleep 1000");
    world.platform.start(&running).await.expect("it starts");
    world.running(&running.id).await;
    let folder = world.data_dir().join("processes").join(running.id.as_str());
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read(&path).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains("sleep 1000"), "{} keeps the specification", path.display());
    }
    world.end().await;
}

#[tokio::test]
async fn no_secret_stands_in_a_command_line_of_the_machine() {
    let world = World::new();
    let canary = format!("canary-{}", std::process::id());
    let mut process = spec("canary.web.1.a1", "echo ready; sleep 1000");
    process.environment.insert("TOKEN".to_owned(), canary.clone());
    world.platform.start(&process).await.expect("it starts");
    world.says(&process.id, "ready").await;
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(&canary), "{:?}", entry.path());
    }
    world.end().await;
}

#[tokio::test]
async fn nothing_of_the_machine_is_seen_or_changed() {
    let world = World::new();
    let secret = world.folder.path().join("secret");
    std::fs::write(&secret, "secret").expect("a file");
    let other = spec("other.web.1.a1", "echo ready; sleep 4242424");
    world.platform.start(&other).await.expect("it starts");
    world.says(&other.id, "ready").await;
    let attempts = [
        ("the data folder", format!("cat {} || ls {}", secret.display(), world.data_dir().display())),
        ("the home of root", "ls /root".to_owned()),
        ("homes", "ls /home".to_owned()),
        ("this repository", format!("ls {}", env!("CARGO_MANIFEST_DIR"))),
        ("shadow", "cat /etc/shadow".to_owned()),
        ("docker", "ls /run/docker.sock || ls /var/run/docker.sock".to_owned()),
        ("/var", "ls /var/lib || ls /var/log".to_owned()),
        ("/sys", "ls /sys/kernel || ls /sys/fs".to_owned()),
        ("other processes", "ps ax 2>/dev/null | grep -q 424242[4]".to_owned()),
        ("the supervisor", "grep -lz 'dyn[o]' /proc/[0-9]*/cmdline".to_owned()),
        ("writing /usr", "touch /usr/x || touch /usr/bin/bash".to_owned()),
        ("writing /", "touch /x".to_owned()),
        ("writing /etc", "touch /etc/x || echo x >> /etc/passwd".to_owned()),
        ("writing /dev", "touch /dev/x".to_owned()),
        ("writing /proc", "echo 1 > /proc/sys/kernel/panic || echo x > /proc/sysrq-trigger".to_owned()),
        ("the disk", "ls /dev/vda || ls /dev/sda || cat /dev/mem || cat /dev/kmsg".to_owned()),
        ("a device", "mknod /tmp/null c 1 3".to_owned()),
        ("mounting", "mount -t tmpfs x /tmp || mount --bind / /tmp".to_owned()),
        ("unmounting", "umount /app || umount -l /tmp".to_owned()),
        ("user namespaces", "unshare -U true || unshare -r true".to_owned()),
        ("other namespaces", "unshare -n true || unshare -p -f true || unshare -m true".to_owned()),
        ("entering", "nsenter -t 1 -m true || nsenter -t 1 -n true".to_owned()),
        ("chroot", "chroot / true".to_owned()),
        ("becoming root", "su -c true || sudo -n true || setpriv --reuid 0 true".to_owned()),
        ("the log of the kernel", "dmesg".to_owned()),
        ("the host name", "hostname other".to_owned()),
        ("the clock", "date -s @0".to_owned()),
        ("tracing", "strace -p 1 || /usr/bin/python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16,1,0,0)!=0)'".to_owned()),
        ("a keyring", "/usr/bin/python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(250,0,-4,1)<0)'".to_owned()),
        ("bpf", "/usr/bin/python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(321,0,0,0)>=0 or ctypes.get_errno()!=1)' && false".to_owned()),
        ("io_uring", "/usr/bin/python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None,use_errno=True).syscall(425,1,0)>=0 or 1)'".to_owned()),
        ("a larger limit", "ulimit -n 1048576".to_owned()),
        ("core dumps", "ulimit -c unlimited".to_owned()),
    ];
    let script: String = attempts
        .iter()
        .map(|(name, attempt)| {
            format!("if ( {attempt} ) >/dev/null 2>&1; then echo 'DONE {name}'; else echo 'held {name}'; fi\n")
        })
        .collect();
    let lines = world.output(&spec("escape.web.1.a1", &script)).await;
    let held: Vec<String> = attempts.iter().map(|(name, _)| format!("held {name}")).collect();
    assert_eq!(lines, held);
    world.end().await;
}

#[tokio::test]
async fn rights_are_gone_for_good() {
    let world = World::new();
    let lines = world
        .output(&spec(
            "rights.web.1.a1",
            "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; id -u; id -g; hostname; ls /proc/self/fd; pwd",
        ))
        .await;
    assert_eq!(
        lines,
        [
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "10001",
            "10001",
            "shop-pr-1",
            // Its three streams, and the folder that ls reads.
            "0",
            "1",
            "2",
            "3",
            "/app",
        ]
    );
    world.end().await;
}

#[tokio::test]
async fn php_finds_its_extensions_and_sees_no_settings_of_servers() {
    if !std::path::Path::new("/usr/bin/php").exists() {
        return;
    }
    let said = std::process::Command::new("php").arg("-m").output().expect("php runs");
    let world = World::new();
    let log = world.output(&spec("php.web.1.a1", "php -m; ls -d /etc/php/*/*")).await;
    for module in String::from_utf8_lossy(&said.stdout).lines() {
        assert!(log.iter().any(|line| line == module), "{module} is not loaded: {log:?}");
    }
    let seen: Vec<&String> = log.iter().filter(|line| line.starts_with("/etc/php/")).collect();
    let known = |line: &&String| ["/cli", "/cgi", "/mods-available"].iter().any(|end| line.ends_with(end));
    assert!(!seen.is_empty() && seen.iter().all(known), "{seen:?}");
    world.end().await;
}

#[tokio::test]
async fn outside_the_sandbox_it_is_no_root() {
    let world = World::new();
    let process = spec("uid.web.1.a1", "echo ready; sleep 7171717");
    world.platform.start(&process).await.expect("it starts");
    world.says(&process.id, "ready").await;
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&line).contains("7171717") {
            continue;
        }
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        assert!(uids.split_ascii_whitespace().all(|uid| uid != "0"), "{line:?} {uids}");
        seen += 1;
    }
    assert!(seen >= 2, "bubblewrap and its command were seen");
    world.end().await;
}

#[tokio::test]
async fn an_isolated_process_reaches_no_network() {
    let world = World::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a decoy");
    listener.set_nonblocking(true).expect("a decoy");
    let port = listener.local_addr().expect("an address").port();
    let abstract_name = format!("landfall-decoy-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&abstract_name);
    let decoy = std::os::unix::net::UnixListener::bind_addr(&address.expect("an address")).expect("a decoy");
    decoy.set_nonblocking(true).expect("a decoy");
    let script = format!(
        "import socket\n\
         for host in ['127.0.0.1', '169.254.169.254', '10.0.0.1', '1.1.1.1', '::1']:\n\
        \x20   try:\n\
        \x20       socket.create_connection((host, {port}), 2); print('reached', host)\n\
        \x20   except OSError as error:\n\
        \x20       print('refused')\n\
         try:\n\
        \x20   s = socket.socket(socket.AF_UNIX); s.connect('\\0{abstract_name}'); print('reached')\n\
         except OSError:\n\
        \x20   print('refused')\n"
    );
    let mut process = spec("net.web.1.a1", "/usr/bin/python3 -c \"$SCRIPT\"; tail -n +3 /proc/net/dev | cut -d: -f1");
    process.environment.insert("SCRIPT".to_owned(), script);
    let lines = world.output(&process).await;
    assert_eq!(lines, ["refused", "refused", "refused", "refused", "refused", "refused", "    lo"]);
    assert!(listener.accept().is_err() && decoy.accept().is_err(), "no decoy was reached");

    // The same attempt succeeds where the wall is taken down.
    let mut open = process.clone();
    open.id = id("net.web.2.a1");
    open.network = Network::Host;
    let lines = world.output(&open).await;
    assert_eq!(lines[0], "reached 127.0.0.1");
    world.end().await;
}

#[tokio::test]
async fn temporary_files_are_private_and_vanish() {
    let world = World::new();
    let write =
        "echo mine > /tmp/mine; echo mine > /app/mine; echo mine > /dev/shm/mine; echo mine > /var/tmp/too; ls /tmp";
    assert_eq!(world.output(&spec("tmp.web.1.a1", write)).await, ["mine", "too"]);
    assert_eq!(
        world.output(&spec("tmp.web.2.a1", "ls -A /tmp /app /dev/shm | grep -v ^/ | tr -d '\\n'")).await,
        [] as [&str; 0]
    );
    world.end().await;
}

#[tokio::test]
async fn binds_and_folders_are_seen_as_they_were_asked_for() {
    let world = World::new();
    let (cache, tools, code) =
        (world.folder.path().join("cache"), world.folder.path().join("tools"), world.folder.path().join("code"));
    for folder in [&cache, &tools, &code] {
        std::fs::create_dir(folder).expect("a folder");
    }
    std::fs::write(tools.join("tool"), "tool").expect("a file");
    std::os::unix::fs::symlink("/etc/hostname", code.join("link")).expect("a link");
    let before = std::fs::metadata("/etc/hostname").ok().map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata));
    let mut build = spec(
        "binds.build.1.a1",
        "cat /tools/tool; echo; touch /tools/x 2>/dev/null || echo read-only; echo kept > /cache/kept; echo built > /app/built; \
         mkdir -p sub/.profile.d; ls -l /app | wc -l",
    );
    build.code = Code::Folder { path: code.clone() };
    build.binds.push(Bind { host: tools, inside: "/tools".into(), writable: false });
    build.binds.push(Bind { host: cache.clone(), inside: "/cache".into(), writable: true });
    assert_eq!(world.output(&build).await, ["tool", "read-only", "4"]);
    assert_eq!(std::fs::read_to_string(cache.join("kept")).expect("a file"), "kept\n");
    assert_eq!(std::fs::read_to_string(code.join("built")).expect("a file"), "built\n");
    let after = std::fs::metadata("/etc/hostname").ok().map(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata));
    assert_eq!(before, after, "a link's target is not given away");
    world.end().await;
}

#[tokio::test]
async fn profile_scripts_are_sourced_before_the_command() {
    let world = World::new();
    let digest = world
        .publish(&[
            (".profile.d/10-first.sh", "export GREETING=hello\n"),
            (".profile.d/20-second.sh", "GREETING=\"$GREETING world\"\n"),
        ])
        .await;
    let mut process = spec("profile.run.1.a1", "echo $GREETING $profile");
    process.code = Code::Slug(digest);
    assert_eq!(world.output(&process).await, ["hello world"]);
    world.end().await;
}
