"""Serves the page on $PORT."""

import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import page


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = page.render(
            os.environ.get("GREETED", "nobody"),
            os.environ.get("HEROKU_RELEASE_VERSION", "?"),
            os.environ.get("HEROKU_BUILD_COMMIT", "?")[:7],
        ).encode()
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        print(self.command, self.path, *arguments[1:2], flush=True)


server = ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler)
server.daemon_threads = True


def stop(*_):
    print("asked to stop", flush=True)
    threading.Thread(target=server.shutdown).start()


signal.signal(signal.SIGTERM, stop)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
sys.exit(0)
