"""What a process can see and do from inside: everything is tried, nothing is kept back."""

import errno
import os
import socket


def outcome(attempt):
    """`yes`, or the name of the error."""
    try:
        return attempt() or "yes"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return type(error).__name__


def write(path):
    with open(path, "w") as file:
        file.write("x")
    os.remove(path)


def connect(port):
    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def processes():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found[name] = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError as error:
                found[name] = errno.errorcode.get(error.errno, "?")
    return found


def environments():
    """What stands in the environments of all processes that can be seen."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    found[name] = file.read().replace(b"\0", b"\n").decode(errors="replace")
            except OSError as error:
                found[name] = errno.errorcode.get(error.errno, "?")
    return found


def look(folders, files, writes, ports):
    return {
        "environment": dict(os.environ),
        "environments": environments(),
        "root": sorted(os.listdir("/")),
        "home": sorted(os.listdir("/app")),
        "temporary": sorted(os.listdir("/tmp")),
        "processes": processes(),
        "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "groups": os.getgroups(),
        "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")],
        "folders": {path: outcome(lambda path=path: None if os.listdir(path) else "empty") for path in folders},
        "files": {path: outcome(lambda path=path: None if open(path, "rb").read(1) else "empty") for path in files},
        "writes": {path: outcome(lambda path=path: write(path)) for path in writes},
        "ports": {str(port): outcome(lambda port=port: connect(port)) for port in ports},
        "descriptors": sorted(
            link for link in (outcome(lambda name=name: os.readlink(f"/proc/self/fd/{name}")) for name in os.listdir("/proc/self/fd"))
        ),
    }
