"""Answers requests to 127.0.0.1:9199 with 200, or with 503 if /var/lib/example-exporter/sick exists."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

SICK = Path("/var/lib/example-exporter/sick")


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.send_response(503 if SICK.exists() else 200)
        self.end_headers()


HTTPServer(("127.0.0.1", 9199), Handler).serve_forever()
