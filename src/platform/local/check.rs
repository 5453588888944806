//! What the machine has for the sandbox, found by running a process in one: a wall that is only read about may be
//! missing.

use super::{Inner, Local};
use crate::domain::ProcessId;
use crate::platform::cgroups::{Controller, Version};
use crate::platform::contract::{
    Capacity, Code, Exit, Finding, Limits, LogCursor, Network, PlatformError, Spec, State,
};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// A sandbox stands in about 20 ms; a machine that is busy gets this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says one word for each wall that stands.
const PROBE: &str = r#"
status=$(cat /proc/self/status)
case "$status" in *"CapEff:	0000000000000000"*) echo capabilities;; esac
case "$status" in *"NoNewPrivs:	1"*) echo privileges;; esac
case "$status" in *"Seccomp:	2"*) echo calls;; esac
unshare -U true 2>/dev/null || echo namespaces
[ "$(ls /sys/class/net 2>/dev/null)" ] || [ "$(tail -n +3 /proc/net/dev | wc -l)" = 1 ] && echo network
touch /usr/landfall-probe 2>/dev/null || echo system
[ -e "$HIDDEN" ] || echo files
[ -e /root ] || [ -e /home ] || echo homes
touch /app/probe && echo code
case "$(tr '\0' ' ' < /proc/1/cmdline)" in *bwrap*) echo processes;; esac
grep -q ' /app overlay ' /proc/mounts && echo overlay
echo end
"#;

pub async fn check(local: &Local) -> Vec<Finding> {
    let inner = &local.inner;
    let mut findings = Vec::new();
    let bubblewrap = &inner.sandbox.bubblewrap;
    let present = bubblewrap.exists();
    findings.push(Finding {
        name: "bubblewrap".to_owned(),
        ok: present,
        wall: true,
        detail: if present { format!("{} is there", bubblewrap.display()) } else { "bwrap was not found".to_owned() },
        remedy: if present { String::new() } else { "apt-get install bubblewrap".to_owned() },
    });
    findings.push(user_namespaces());
    findings.extend(limits(inner));
    if present {
        findings.push(match probe(local).await {
            Ok(detail) => finding("sandbox", true, true, &detail, ""),
            Err((detail, remedy)) => finding("sandbox", false, true, &detail, &remedy),
        });
    }
    findings
}

fn finding(name: &str, ok: bool, wall: bool, detail: &str, remedy: &str) -> Finding {
    Finding { name: name.to_owned(), ok, wall, detail: detail.to_owned(), remedy: remedy.to_owned() }
}

fn user_namespaces() -> Finding {
    let read = |file: &str| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    let name = "user namespaces";
    if read("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return finding(name, false, true, "the kernel allows none", "sysctl -w user.max_user_namespaces=15000");
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        let remedy = "sysctl -w kernel.unprivileged_userns_clone=1";
        return finding(name, false, true, "only root may make them", remedy);
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        // Ubuntu 24.04: bwrap needs a profile of its own, which the probe shows to be there or not.
        let remedy =
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or AppArmor profiles for bwrap and landfall";
        return finding(name, true, true, "AppArmor allows them to programs with a profile", remedy);
    }
    finding(name, true, true, "allowed", "")
}

fn limits(inner: &Inner) -> Vec<Finding> {
    let version = match inner.groups.version {
        Version::One => "control groups (version 1)",
        Version::Two => "control groups (version 2)",
        Version::None => "no control group may be written",
    };
    let remedy = "run landfall as root, or as a systemd unit with Delegate=yes and KillMode=process";
    [
        (Controller::Memory, "memory limit", "watched by the supervisor every 250 ms"),
        (Controller::Pids, "process limit", "RLIMIT_NPROC in a user namespace of its own"),
        (Controller::Cpu, "processor limit", "none, but a lower priority"),
    ]
    .into_iter()
    .map(|(controller, name, instead)| {
        if inner.groups.has(controller) {
            finding(name, true, false, &format!("held by {version}"), "")
        } else {
            finding(name, true, false, &format!("{instead}: {version}"), remedy)
        }
    })
    .collect()
}

/// Runs one process and reads what it found. The error is what is missing and what mends it.
async fn probe(local: &Local) -> Result<String, (String, String)> {
    let failed = |error: PlatformError| (format!("the probe could not run: {error}"), String::new());
    // One of its own for each check, because an id is started once.
    let name = format!("landfall-check-{}-{}", std::process::id(), local.inner.clock.now().0);
    let id: ProcessId = name.parse().map_err(|_| ("the probe has no name".to_owned(), String::new()))?;
    let hidden = local.inner.data_dir.display().to_string();
    let spec = Spec {
        id: id.clone(),
        labels: BTreeMap::from([("landfall".to_owned(), "check".to_owned())]),
        name: "check.1".to_owned(),
        code: Code::None,
        command: PROBE.to_owned(),
        environment: BTreeMap::from([("HIDDEN".to_owned(), hidden)]),
        limits: Limits::default(),
        network: Network::Isolated,
        port: None,
        time_limit: Some(PATIENCE),
        grace: Duration::from_secs(1),
        binds: Vec::new(),
        services: Vec::new(),
        walls: crate::platform::Walls::Sandbox,
        masked: Vec::new(),
    };
    local.start(&spec).await.map_err(failed)?;
    let began = Instant::now();
    let exit = loop {
        let list = local.list().await.map_err(failed)?;
        match list.into_iter().find(|status| status.id == id).map(|status| status.state) {
            Some(State::Exited { why, .. }) => break why,
            _ if began.elapsed() > PATIENCE + Duration::from_secs(5) => break Exit::TimeLimit,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let page = local.logs(&id, LogCursor::default(), 1000).await;
    local.stop(&id).await.map_err(failed)?;
    let _ = local.remove(&id).await;
    let words: Vec<String> = page.map_err(failed)?.lines.into_iter().map(|line| line.text).collect();
    if let Exit::CouldNotStart(reason) = &exit {
        return Err((format!("the sandbox does not stand: {reason}"), remedy_for(reason)));
    }
    let walls = [
        ("capabilities", "no rights of root"),
        ("privileges", "no new privileges"),
        ("calls", "a system call filter"),
        ("namespaces", "no user namespaces of its own"),
        ("network", "a network of its own"),
        ("system", "a read-only system"),
        ("files", "a hidden data folder"),
        ("homes", "hidden home folders"),
        ("code", "a writable /app"),
        ("processes", "only its own processes"),
        ("end", "a whole run"),
    ];
    let missing: Vec<&str> =
        walls.iter().filter(|(word, _)| !words.iter().any(|said| said == word)).map(|(_, wall)| *wall).collect();
    if missing.is_empty() {
        Ok("all walls stand".to_owned())
    } else {
        Err((
            format!("a process in the sandbox ({exit}) misses {}: it said {words:?}", missing.join(", ")),
            String::new(),
        ))
    }
}

fn remedy_for(reason: &str) -> String {
    if reason.contains("user namespace") || reason.contains("uid map") || reason.contains("mount") {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000; in a container also \
         --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
            .to_owned()
    } else {
        String::new()
    }
}

pub fn capacity(inner: &Inner) -> Result<Capacity, PlatformError> {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    let disk = nix::sys::statvfs::statvfs(&inner.data_dir)
        .map_err(|error| PlatformError::Io { doing: "measuring the disk".to_owned(), source: error.into() })?;
    let processes = super::records::list(inner)?.iter().filter(|status| !status.state.is_over()).count() as u64;
    #[expect(clippy::useless_conversion, reason = "the width of these numbers differs between processors")]
    Ok(Capacity {
        processors: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        memory_total: bytes("MemTotal:").unwrap_or(0),
        memory_available: bytes("MemAvailable:").unwrap_or(0),
        disk_total: u64::from(disk.blocks()) * u64::from(disk.fragment_size()),
        disk_available: u64::from(disk.blocks_available()) * u64::from(disk.fragment_size()),
        processes,
    })
}
