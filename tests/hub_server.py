"""A server on the loopback address that speaks the part of the Hub's API that downloads use.

Repositories are folders: `<root>/models/<name>` and `<root>/datasets/<name>`; a branch `b` of one is `<name>@b` beside
it.
"""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


def commit_of(branch: str) -> str:
    """Return the commit that a branch is at, the same for ever; "" is the main one."""
    return hashlib.sha1(branch.encode()).hexdigest() if branch else COMMIT


class HubHandler(BaseHTTPRequestHandler):
    """Answers repository info, tree, paths-info and resolve requests."""

    root: Path
    requests: list[str]

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("api/"):
            self.answer_api(path.split("/")[1:], body)
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            kind, name = ("datasets", name[len("datasets/") :]) if name.startswith("datasets/") else ("models", name)
            revision, _, file = rest.partition("/")
            self.send_file(self.folder(kind, name, revision), file, commit_of(self.branch(kind, name, revision)))
        else:
            self.missing("RepoNotFound")

    def answer_api(self, parts: list[str], body: bytes) -> None:
        kind, name, action = parts[0], "/".join(parts[1:3]), parts[3:]
        revision = action[1] if action[1:] else "main"
        repo = self.folder(kind, name, revision)
        if kind not in ("models", "datasets") or not repo.is_dir():
            self.missing("RepoNotFound")
        elif not action or action[0] == "revision":
            siblings = [{"rfilename": entry["path"]} for entry in self.entries(repo)]
            sha = commit_of(self.branch(kind, name, revision))
            self.send_json({"id": name, "sha": sha, "siblings": siblings, "private": False, "tags": []})
        elif action[0] == "tree":
            folder = "/".join(action[2:])
            inside = [entry for entry in self.entries(repo) if entry["path"].startswith(folder)]
            self.send_json(inside) if inside or not folder else self.missing("EntryNotFound")
        elif action[0] == "paths-info":
            wanted = json.loads(body).get("paths", []) if body.startswith(b"{") else body.decode().split("paths=")[1:]
            names = {unquote(path).rstrip("&") for path in wanted}
            self.send_json([entry for entry in self.entries(repo) if entry["path"] in names])
        else:
            self.missing("EntryNotFound")

    def branch(self, kind: str, name: str, revision: str) -> str:
        """Return the branch that a name of a branch or a commit stands for; "" for the main one."""
        beside = (self.root / kind / name).parent.glob(f"{name.rpartition('/')[2]}@*")
        branches = [path.name.partition("@")[2] for path in beside]
        return next((branch for branch in branches if revision in (branch, commit_of(branch))), "")

    def folder(self, kind: str, name: str, revision: str) -> Path:
        """Return the folder with the files of a revision; what is no branch is the main one."""
        branch = self.branch(kind, name, revision)
        return self.root / kind / (f"{name}@{branch}" if branch else name)

    def entries(self, repo: Path) -> list[dict]:
        files = sorted(path for path in repo.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": str(path.relative_to(repo)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def send_file(self, repo: Path, name: str, commit: str) -> None:
        path = repo / name
        if not repo.is_dir():
            self.missing("RepoNotFound")
        elif not path.is_file():
            self.missing("EntryNotFound")
        else:
            content = path.read_bytes()
            etag = hashlib.sha1(content).hexdigest()
            self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def send_json(self, value) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code: str) -> None:
        self.send(404, b"{}", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(root: Path):
    """Serve `root`; yield the endpoint's address and the list of requests."""
    handler = type("Handler", (HubHandler,), {"root": root, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.requests
    finally:
        server.shutdown()
        thread.join()
