"""A server like `hub_server`'s that takes data sets as well: what is committed lands in a folder."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_server import COMMIT, HubHandler


class UploadHandler(HubHandler):
    """Answers what `create_repo` and `upload_folder` ask, besides downloads."""

    @property
    def address(self) -> str:
        """What this server is called."""
        return f"http://{self.headers['Host']}"

    def answer_api(self, parts: list[str], body: bytes) -> None:
        if parts == ["repos", "create"]:
            request = json.loads(body)
            name = "/".join(filter(None, [request.get("organization"), request["name"]]))
            (self.root / "datasets" / name).mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"{self.address}/datasets/{name}", "id": name})
        elif parts == ["validate-yaml"]:
            self.send_json({"errors": [], "warnings": []})
        elif parts[3:4] == ["preupload"]:
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self.send_json({"files": answer})
        elif parts[3:4] == ["commit"]:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    path = self.root / "datasets" / "/".join(parts[1:3]) / entry["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(entry["value"]["content"]))
            address = f"{self.address}/datasets/{'/'.join(parts[1:3])}/commit/{COMMIT}"
            self.send_json({"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""})
        else:
            super().answer_api(parts, body)


@contextmanager
def hub_that_takes(root: Path):
    """Serve `root` and take what is uploaded; yield the endpoint's address."""
    handler = type("Handler", (UploadHandler,), {"root": root, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
