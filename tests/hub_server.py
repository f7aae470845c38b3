"""The Hugging Face hub on loopback: the calls of `HfApi.create_repo` and `HfApi.upload_folder`.

    with HubServer() as hub:
        ...  # HF_ENDPOINT=hub.address, HF_TOKEN=hub.token; then hub.repositories

Weights go through the LFS batch call and a PUT, everything else in the commit, as on the hub when the client has
no Xet. A commit may name only files that have arrived. Its metadata must be YAML that the hub's own class reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import ModelCard

OWNER = "me"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class HubServer:
    """A hub with one user, ``me``.

    Attributes:
        refuse: a part of a path, and the status of the reply to requests for such paths.
        lfs: whether weights go by LFS; otherwise the commit has everything.
    """

    token: str = "hf_right"
    refuse: tuple[str, int] | None = None
    lfs: bool = True
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                hub.calls.append(f"{self.command} {self.path}")
                # Uploads go to a secret address, without the token.
                known = self.headers.get("Authorization") == f"Bearer {hub.token}" or self.path.startswith("/lfs/")
                if hub.refuse is not None and hub.refuse[0] in self.path:
                    status, said = hub.refuse[1], {"error": "not today"}
                elif known:
                    status, said = hub.reply(self.command, self.path, body)
                else:
                    status, said = 401, {"error": "Invalid username or password."}
                data = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if status >= 400:
                    self.send_header("X-Error-Message", said["error"])
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reply(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(body))
        if (method, path) == ("POST", "/api/validate-yaml"):
            ModelCard(json.loads(body)["content"])
            return 200, {"errors": [], "warnings": []}
        if method == "PUT" and (found := re.fullmatch(r"/lfs/(\w+)", path)):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.stored[found[1]] = body
            return 200, {}
        found = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(|/preupload/main|/commit/main|\.git/.*)", path)
        if found is None or found[1] not in self.repositories:
            return 404, {"error": "Repository not found"}
        repository = self.repositories[found[1]]
        if found[2].endswith("/preupload/main"):
            return 200, {"files": [self._mode(file) for file in json.loads(body)["files"]]}
        if found[2] == ".git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            return 200, {
                "transfer": "basic",
                "objects": [{**o, "actions": {"upload": {"href": f"{self.address}/lfs/{o['oid']}"}}} for o in objects],
            }
        if found[2].endswith("/commit/main"):
            return self._commit(found[1], repository, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": found[1], "private": repository.private, "sha": "0" * 40, "siblings": [], "tags": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if not name.startswith(f"{OWNER}/"):
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        made = {"url": f"{self.address}/{name}", "id": name}
        if name in self.repositories:
            return 409, {**made, "error": "You already created this model repo"}
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return 200, made

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        lfs = self.lfs and file["path"].endswith(".safetensors")
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.stored[value["oid"]]
            else:
                raise AssertionError(line["key"])
        return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40}
