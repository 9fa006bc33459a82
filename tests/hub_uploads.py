"""A server like `hub_server`'s that takes models and data sets as well: what is committed lands in a folder.

It asks for a token that may write, takes large files by LFS, refuses metadata that the Hub refuses, and can be told to
fail.
"""

import base64
import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from hf_gradkit.publishing.sources import HUB_NAME
from hub_server import HubHandler, commit_of

LARGE = (".safetensors", ".bin", ".parquet", ".png")  # go by LFS, as by the Hub's own .gitattributes
TOKENS = {"t": "write", "reads": "read"}  # what the holder of each may do


@dataclass
class Fault:
    """A request that fails.

    Attributes:
        request: part of "METHOD path".
        answer: a status, or "drop" to close the connection without a word.
        times: how often, from the first such request on.
    """

    request: str
    answer: int | str
    times: int = 1000


@dataclass
class Hub:
    """A running server.

    Attributes:
        endpoint: its address.
        root: the folder with its repositories.
        requests: what was asked, "METHOD path" each.
        faults: what fails.
        created: what each repository was created with.
        messages: of the commits.
    """

    endpoint: str
    root: Path
    requests: list[str]
    faults: list[Fault] = field(default_factory=list)
    created: dict[str, Any] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def files(self, name: str, kind: str = "models") -> dict[str, bytes]:
        """Return the files of a repository with their content; `owner/name@branch` for a branch."""
        folder = self.root / kind / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class UploadHandler(HubHandler):
    """Answers what `create_repo`, `create_branch` and `upload_folder` ask, besides downloads."""

    hub: Hub

    @property
    def address(self) -> str:
        """What this server is called."""
        return f"http://{self.headers['Host']}"

    def do_PUT(self):
        self.answer()

    def answer(self) -> None:
        path = unquote(self.path).partition("?")[0].strip("/")
        for fault in self.hub.faults:
            if fault.times > 0 and fault.request in f"{self.command} {path}":
                fault.times -= 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.requests.append(f"{self.command} {path}")
                self.close_connection = True
                return None if fault.answer == "drop" else self.send(fault.answer, b'{"error": "told to fail"}', {})
        if path.startswith("lfs/"):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            assert hashlib.sha256(content).hexdigest() == path[4:]
            (self.root / "lfs").mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
            return self.send(200, b"", {})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer_batch(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        return super().answer()

    def answer_batch(self, request: dict) -> None:
        objects = []
        for wanted in request["objects"]:
            there = (self.root / "lfs" / wanted["oid"]).is_file()
            actions = {} if there else {"actions": {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}}}
            objects.append({**wanted, **actions})
        self.send_json({"transfer": "basic", "objects": objects})

    def answer_api(self, parts: list[str], body: bytes) -> None:
        asks = parts == ["validate-yaml"] or "paths-info" in parts
        if self.command == "POST" and not asks and not self.may_write():
            return None
        if parts == ["repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["validate-yaml"]:
            return self.send_json({"errors": metadata_errors(json.loads(body)["content"]), "warnings": []})
        if parts[3:4] == ["branch"]:
            kind, name = parts[0], "/".join(parts[1:3])
            shutil.copytree(self.root / kind / name, self.root / kind / f"{name}@{parts[4]}")
            return self.send_json({})
        if parts[3:4] == ["preupload"]:
            return self.send_json({"files": [self.mode_of(file["path"]) for file in json.loads(body)["files"]]})
        if parts[3:4] == ["commit"]:
            return self.commit(parts[0], "/".join(parts[1:3]), parts[4], body)
        return super().answer_api(parts, body)

    def may_write(self) -> bool:
        right = TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if right is None:
            self.send(401, b'{"error": "Invalid username or password."}', {})
        elif right == "read":
            self.send(403, b'{"error": "You have read access but not the required permissions"}', {})
        return right == "write"

    def create(self, request: dict) -> None:
        name = f"{request.get('organization') or 'someone'}/{request['name']}"
        kind = f"{request.get('type') or 'model'}s"
        address = f"{self.address}/{'' if kind == 'models' else kind + '/'}{name}"
        if (self.root / kind / name).is_dir():
            return self.send(409, json.dumps({"error": "exists", "url": address}).encode(), {})
        (self.root / kind / name).mkdir(parents=True)
        self.hub.created[name] = request
        return self.send_json({"url": address, "id": name})

    def mode_of(self, path: str) -> dict:
        return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}

    def commit(self, kind: str, name: str, revision: str, body: bytes) -> None:
        folder = self.folder(kind, name, revision)
        if not folder.is_dir() or (revision != "main" and not self.branch(kind, name, revision)):
            return self.missing("RevisionNotFound")
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if entry["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                shutil.copy(self.root / "lfs" / value["oid"], path)
        commit = commit_of(self.branch(kind, name, revision))
        address = f"{self.address}/{kind}/{name}/commit/{commit}"
        return self.send_json({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})


def metadata_errors(content: str) -> list[dict[str, str]]:
    """Return what the Hub would refuse in a page's metadata: what is no YAML, and names that cannot be on the Hub."""
    try:
        metadata = yaml.safe_load(content[4:].partition("\n---")[0]) if content.startswith("---\n") else {}
    except yaml.YAMLError as error:
        return [{"message": str(error)}]
    errors = []
    for key in ("base_model", "datasets"):
        named = metadata.get(key) or []
        for name in [named] if isinstance(named, str) else named:
            if not HUB_NAME.match(str(name)):
                errors.append({"message": f'"{key}" with value {name!r} is not valid'})
    return errors


@contextmanager
def hub_that_takes(root: Path):
    """Serve `root` and take what is uploaded; yield the [`Hub`]."""
    hub = Hub("", root, [])
    handler = type("Handler", (UploadHandler,), {"root": root, "requests": hub.requests, "hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def client_of(hub: Hub, monkeypatch: Any, token: str | None = "t"):
    """Let huggingface_hub's client in this process talk to a server, as its environment variables would."""
    from huggingface_hub import constants

    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": hub.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    # Large files go by LFS here: xet's own storage is no part of this server.
    values |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
    with monkeypatch.context() as patch:
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.setenv("HF_HUB_CACHE", str(hub.root / "cache"))
        patch.setattr(constants, "HF_HUB_CACHE", str(hub.root / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(hub.root / "no-token"))
        patch.setenv("HF_TOKEN", token) if token else patch.delenv("HF_TOKEN", raising=False)
        yield


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """Return the environment in which another process talks to a server."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": "t",
        "CI": "1",  # TRL sends no telemetry
    }
