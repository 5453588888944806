"""Answers what tests ask for on $PORT; every answer names the process that gave it."""

import json
import os
import signal
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import page
import probe

BOOT = uuid.uuid4().hex


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one piece: two small writes would wait for the other side's acknowledgement.
    wbufsize = -1

    def answer(self, body, status=200, kind="text/plain; charset=utf-8"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Boot", BOOT)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def do_GET(self):
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if url.path == "/":
            release = os.environ.get("HEROKU_RELEASE_VERSION", "?")
            commit = os.environ.get("HEROKU_BUILD_COMMIT", "?")[:7]
            self.answer(page.render(os.environ.get("GREETED", "nobody"), release, commit).encode(), kind="text/html")
        elif url.path == "/probe":
            seen = probe.look(
                asked.get("folder", []), asked.get("file", []), asked.get("write", []),
                [int(port) for port in asked.get("port", [])],
            )
            self.answer(json.dumps(seen).encode(), kind="application/json")
        elif url.path == "/slow":
            time.sleep(float(asked["seconds"][0]))
            self.answer(b"slept")
        elif url.path == "/events":
            self.events(int(asked["count"][0]), float(asked["pause"][0]))
        elif url.path == "/socket":
            self.echo()
        elif url.path == "/die":
            # A request for another process's death does nothing here: the router may pass it on to us.
            if asked.get("boot", [BOOT])[0] == BOOT:
                os._exit(7)
            self.answer(b"somebody else")
        else:
            self.answer(b"there is nothing here", 404)

    def events(self, count, pause):
        """Server-sent events, each in a chunk of its own."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("X-Boot", BOOT)
        self.end_headers()
        self.wfile.flush()
        for number in range(count):
            event = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
            time.sleep(pause)
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def echo(self):
        """What a WebSocket is to a router: another protocol in both directions, until the client ends it."""
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", self.headers.get("Upgrade", "websocket"))
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while line := self.rfile.readline():
            self.wfile.write(line)
            self.wfile.flush()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(body)

    def log_message(self, format, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    # Read when the server is made. With the usual 5, connections that come at once are cut off by the system.
    request_queue_size = 128


server = Server(("0.0.0.0", int(os.environ["PORT"])), Handler)


def stop(*_):
    print("asked to stop", flush=True)
    threading.Thread(target=server.shutdown).start()


signal.signal(signal.SIGTERM, stop)
print(f"listening on {server.server_port} as {BOOT}", flush=True)
server.serve_forever()
print("stopped", flush=True)
os._exit(0)
