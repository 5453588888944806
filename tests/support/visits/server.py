"""Counts its visitors in its database and its cache, and tries what it is asked to."""

import glob
import json
import os
import socket
import ssl
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PSQL = sorted(glob.glob("/usr/lib/postgresql/*/bin/psql"))[-1]


def sql(statement, url=None):
    command = [PSQL, url or os.environ["DATABASE_URL"], "-v", "ON_ERROR_STOP=1", "-Atqc", statement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else "error: " + done.stderr.strip()


def redis(*words):
    place = urlsplit(os.environ["REDIS_URL"])
    with socket.create_connection((place.hostname, place.port), timeout=10) as stream:
        if place.scheme == "rediss":
            trusted = ssl.create_default_context(cafile=os.environ["REDIS_CA"])
            stream = trusted.wrap_socket(stream, server_hostname=place.hostname)
        answers = stream.makefile("rb")

        def ask(*words):
            parts = [f"*{len(words)}\r\n"] + [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            stream.sendall("".join(parts).encode())
            line = answers.readline().decode().strip()
            if line.startswith("$") and line != "$-1":
                return answers.readline().decode().strip()
            return line

        login = [place.username, place.password] if place.username else [place.password]
        said = ask("AUTH", *login)
        return ask(*words) if said == "+OK" else said


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if asked.path == "/" and "x-forwarded-for" not in self.headers:
            # The router looks whether it lives; that is no visit.
            answer = "well"
        elif asked.path == "/":
            sql("INSERT INTO visits DEFAULT VALUES")
            answer = "visits: " + sql("SELECT count(*) FROM visits")
            if "REDIS_URL" in os.environ:
                answer += ", hits: " + redis("INCR", os.environ.get("REDIS_PREFIX", "") + "hits")
        elif asked.path == "/sql":
            answer = sql(query["q"], query.get("url"))
        elif asked.path == "/redis":
            answer = redis(*query["q"].split(" "))
        else:
            answer = json.dumps(dict(os.environ))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
