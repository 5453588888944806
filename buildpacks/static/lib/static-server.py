"""Serves a folder of files on $PORT: content types, index.html, 404.html, and what static.json says.

static.json, all keys optional: "root" (the folder to serve), "clean_urls" (/about serves about.html), "routes"
({"/**": "index.html"}: what to serve where there is no file), "error_page", "redirects" ({"/old": {"url": "/new",
"status": 301}}), "headers" ({"/**": {"Name": "value"}}).

Files are told apart by their content (ETag), never by their times: a slug's files may all have the same.
"""

import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TYPES = {
    "html": "text/html; charset=utf-8", "htm": "text/html; charset=utf-8", "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8", "mjs": "text/javascript; charset=utf-8",
    "json": "application/json; charset=utf-8", "map": "application/json; charset=utf-8",
    "webmanifest": "application/manifest+json; charset=utf-8", "xml": "application/xml; charset=utf-8",
    "txt": "text/plain; charset=utf-8", "md": "text/markdown; charset=utf-8", "csv": "text/csv; charset=utf-8",
    "svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif",
    "webp": "image/webp", "avif": "image/avif", "ico": "image/x-icon", "bmp": "image/bmp", "pdf": "application/pdf",
    "woff": "font/woff", "woff2": "font/woff2", "ttf": "font/ttf", "otf": "font/otf", "wasm": "application/wasm",
    "mp4": "video/mp4", "webm": "video/webm", "ogv": "video/ogg", "mp3": "audio/mpeg", "ogg": "audio/ogg",
    "wav": "audio/wav", "zip": "application/zip", "gz": "application/gzip",
}
# In the root of a repository these say how it is deployed; they are no part of the site.
NOT_SERVED = {"static.json", "app.json", "Procfile"}
CHUNK = 1 << 16


def pattern(glob):
    """`*` is a part of one name, `**` any number of them."""
    parts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join({"**": ".*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts) + r"\Z")


class Site:
    def __init__(self, folder):
        settings = {}
        try:
            with open(os.path.join(folder, "static.json"), encoding="utf-8") as file:
                settings = json.load(file)
        except FileNotFoundError:
            pass
        if not isinstance(settings, dict):
            raise ValueError("it is not an object")
        root = settings.get("root")
        if root is None:
            # Heroku's own default, then what a repository most often has.
            candidates = ["public_html", "public", "."]
            root = next(name for name in candidates if name == "." or os.path.isdir(os.path.join(folder, name)))
            if root == "public" and not os.path.isfile(os.path.join(folder, "public", "index.html")):
                root = "." if os.path.isfile(os.path.join(folder, "index.html")) else "public"
        if not isinstance(root, str):
            raise ValueError('"root" is not a text')
        self.folder = os.path.realpath(folder)
        self.root = os.path.realpath(os.path.join(folder, root))
        if self.root != self.folder and not self.root.startswith(self.folder + os.sep):
            raise ValueError('"root" lies outside of the app')
        if not os.path.isdir(self.root):
            raise ValueError(f'"root" is {root}, which is not a folder')
        self.clean_urls = settings.get("clean_urls") is True
        self.error_page = settings.get("error_page")
        self.routes = [(pattern(glob), page) for glob, page in self.table(settings, "routes", str)]
        self.redirects = []
        for glob, rule in self.table(settings, "redirects", dict):
            url, status = rule.get("url"), rule.get("status", 301)
            if not isinstance(url, str) or re.search(r"[\x00-\x20\x7f]", url) or status not in (301, 302, 303, 307, 308):
                raise ValueError(f'"redirects" has no usable url and status for {glob}')
            self.redirects.append((pattern(glob), url, status))
        self.headers = []
        for glob, rules in self.table(settings, "headers", dict):
            for name, value in rules.items():
                if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]+", name) or re.search(r"[\x00-\x1f\x7f]", value):
                    raise ValueError(f'"headers" has an unusable header for {glob}')
                self.headers.append((pattern(glob), name, value))
        self.tags = {}
        self.lock = threading.Lock()

    @staticmethod
    def table(settings, key, kind):
        table = settings.get(key, {})
        if not isinstance(table, dict) or not all(isinstance(value, kind) for value in table.values()):
            raise ValueError(f'"{key}" has a wrong shape')
        return table.items()

    def find(self, path):
        """The file at a path of the site: inside the root, also after all links were followed."""
        names = [name for name in path.split("/") if name not in ("", ".")]
        if "\0" in path or any(name == ".." or (name.startswith(".") and name != ".well-known") for name in names):
            return None
        if self.root == self.folder and len(names) == 1 and names[0] in NOT_SERVED:
            return None
        found = os.path.realpath(os.path.join(self.root, *names))
        return found if found == self.root or found.startswith(self.root + os.sep) else None

    def tag(self, file, path):
        status = os.fstat(file.fileno())
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        with self.lock:
            tag = self.tags.get(key)
        if tag is None:
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            file.seek(0)
            tag = f'"{digest.hexdigest()[:32]}"'
            with self.lock:
                if len(self.tags) > 10_000:
                    self.tags.clear()
                self.tags[key] = tag
        return tag, status.st_size


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "static"
    sys_version = ""
    timeout = 75
    disable_nagle_algorithm = True

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def refuse_method(self):
        # A body that nobody reads would be taken for the next request.
        self.close_connection = True
        self.text(405, "method not allowed\n", True, {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = refuse_method

    def answer(self, with_body):
        with self.server.busy:
            try:
                self.route(with_body)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                self.close_connection = True

    def route(self, with_body):
        site = self.server.site
        # Only the path counts, and two slashes at its start would make a redirect name another host.
        raw = "/" + self.path.split("?", 1)[0].split("#", 1)[0].lstrip("/")
        path = urllib.parse.unquote(raw, errors="replace")
        for glob, url, status in site.redirects:
            if glob.match(path):
                return self.text(status, "", with_body, {"Location": url})
        found = site.find(path)
        if found and os.path.isdir(found):
            index = os.path.join(found, "index.html")
            if os.path.isfile(index):
                if not raw.endswith("/"):
                    query = self.path.partition("?")[2]
                    return self.text(301, "", with_body, {"Location": raw + "/" + ("?" + query if query else "")})
                found = site.find(path + "/index.html")
            else:
                found = None
        elif found and not os.path.isfile(found):
            found = site.find(path + ".html") if site.clean_urls and not path.endswith("/") else None
        elif found and path.endswith("/"):
            found = None
        if found and os.path.isfile(found):
            return self.file(200, found, path, with_body)
        for glob, page in site.routes:
            if glob.match(path):
                target = site.find(page)
                if target and os.path.isfile(target):
                    return self.file(200, target, path, with_body)
        for page in (site.error_page, "404.html"):
            target = site.find(page) if isinstance(page, str) else None
            if target and os.path.isfile(target):
                return self.file(404, target, path, with_body)
        return self.text(404, "not found\n", with_body, {})

    def file(self, status, name, path, with_body):
        try:
            file = open(name, "rb")
        except OSError:
            return self.text(404, "not found\n", with_body, {})
        with file:
            tag, size = self.server.site.tag(file, name)
            headers = {
                "Content-Type": TYPES.get(name.rsplit(".", 1)[-1].lower(), "application/octet-stream"),
                "Cache-Control": "no-cache",
                "X-Content-Type-Options": "nosniff",
            }
            for glob, key, value in self.server.site.headers:
                if glob.match(path):
                    headers[key] = value
            start, end = 0, size
            if status == 200:
                headers["ETag"] = tag
                headers["Accept-Ranges"] = "bytes"
                asked = [item.strip().removeprefix("W/") for item in self.headers.get("If-None-Match", "").split(",")]
                if tag in asked or "*" in asked:
                    return self.head(304, {**headers, "Content-Length": None})
                if (part := self.range(size)) is not None and self.headers.get("If-Range", tag) == tag:
                    if part == ():
                        return self.text(416, "", with_body, {"Content-Range": f"bytes */{size}"})
                    start, end = part
                    status = 206
                    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self.head(status, {**headers, "Content-Length": str(end - start)})
            if with_body:
                file.seek(start)
                left = end - start
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)

    def range(self, size):
        """One range of bytes as (start, end), () when it can't be had, None when none was asked for."""
        match = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", self.headers.get("Range", "").strip())
        if not match or match.group(1) == match.group(2) == "":
            return None
        if match.group(1) == "":
            length = min(int(match.group(2)), size)
            return (size - length, size) if length else ()
        start = int(match.group(1))
        end = min(int(match.group(2) or size) + 1, size)
        return (start, end) if start < end else ()

    def text(self, status, text, with_body, headers):
        body = text.encode()
        self.head(status, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **headers})
        if with_body:
            self.wfile.write(body)

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        if self.server.stopping:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def log_message(self, *_):
        """The router writes a line per request already."""


class Busy:
    """How many requests are being answered."""

    def __init__(self):
        self.count, self.condition = 0, threading.Condition()

    def __enter__(self):
        with self.condition:
            self.count += 1

    def __exit__(self, *_):
        with self.condition:
            self.count -= 1
            self.condition.notify_all()

    def wait(self, seconds):
        with self.condition:
            self.condition.wait_for(lambda: self.count == 0, seconds)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    stopping = False

    def __init__(self, address, site):
        self.site, self.busy = site, Busy()
        self.address_family = socket.AF_INET
        super().__init__(address, Handler)

    def server_bind(self):
        # The parent asks DNS for the machine's name here, which nobody needs.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def main():
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    check = sys.argv[1:2] == ["--check"]
    try:
        site = Site(sys.argv[2] if check else folder)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    if check:
        print("Serving " + os.path.join(".", os.path.relpath(site.root, site.folder)))
        return
    server = Server(("0.0.0.0", int(os.environ.get("PORT", "5000"))), site)

    def stop(*_):
        server.stopping = True
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"Serving {os.path.relpath(site.root, folder)} on port {server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.socket.close()
    server.busy.wait(25)
    os._exit(0)


main()
