"""A model goes to the hub in one commit, and what the hub refuses is said in plain words. The hub is a server here."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest

from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.publishing.export import export
from ensemw2s.publishing.push import prepare, push


class _Hub(BaseHTTPRequestHandler):
    """What of the hub's API an upload of small files asks for; `server.status` is the answer to everything else."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        if self.server.status != 200:
            return self._reply({"error": "no such thing here"}, self.server.status)
        if self.path == "/api/repos/create":
            return self._reply({"url": f"{self.server.address}/me/mine", "id": "me/mine", "name": "me/mine"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._reply({"files": files})
        if "/commit/" in self.path:
            return self._reply(
                {"commitUrl": f"{self.server.address}/me/mine/commit/1", "commitOid": "1", "hookOutput": ""}
            )
        return self._reply({"errors": [], "warnings": []})

    def _reply(self, value: object, status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        server.asked, server.status = [], 200
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        reach(monkeypatch, server.address)
        yield server
        server.shutdown()


def reach(monkeypatch, address: str, token: str | None = "hf_mine") -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)


def test_a_folder_goes_there_in_one_commit_with_its_card(hub, run, tmp_path):
    export(run, tmp_path / "out")
    upload = prepare(tmp_path / "out")
    assert push(upload, "me/mine", revision="trial").endswith("/me/mine/commit/1")
    made = next(json.loads(body) for path, _, body in hub.asked if path == "/api/repos/create")
    assert (made["name"], made["organization"], made["visibility"]) == ("mine", "me", "private")
    assert {token for _, token, _ in hub.asked} == {"Bearer hf_mine"}
    [commit] = [body for path, _, body in hub.asked if path.startswith("/api/models/me/mine/commit/trial")]
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
    assert sent == {name: (tmp_path / "out" / name).read_bytes() for name in upload.files}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= sent.keys()


def test_a_folder_without_a_card_gets_one_and_no_private_files_go_along(hub, run):
    (run / "ensemble/.complete.json").write_text("{}")
    upload = prepare(run / "ensemble")
    assert upload.card is not None
    push(upload, "me/mine", public=True)
    assert json.loads(hub.asked[0][2])["visibility"] == "public"
    commit = next(body for path, _, body in hub.asked if "/commit/main" in path).decode()
    assert '"README.md"' in commit
    assert ".complete.json" not in commit


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, ConfigError, "the hub does not know you: log in with `hf auth login`, or set HF_TOKEN"),
        (403, ConfigError, "you may not write to me/mine with this token"),
        (404, ConfigError, r"refuses me/mine \(404\)"),
        (400, ConfigError, r"refuses me/mine \(400\): .*no such thing here"),
        (501, ResourceError, r"answers with an error \(501\)"),
    ],
)
def test_what_the_hub_refuses_is_said_in_plain_words(hub, base, status, kind, said):
    hub.status = status
    with pytest.raises(kind, match=said):
        push(prepare(base), "me/mine")


def test_a_hub_that_is_not_there_and_a_name_that_is_none_are_said(base, free_port, monkeypatch):
    reach(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ResourceError, match="the hub cannot be reached"):
        push(prepare(base), "me/mine")
    with pytest.raises(ConfigError, match="is no name of a repository"):
        push(prepare(base), "a/b/c")


def test_what_others_could_not_load_is_refused(run):
    with pytest.raises(ConfigError, match="is a run"):
        prepare(run)
    with pytest.raises(ConfigError, match="adapters on a base that others do not have"):
        prepare(run / "students/student_ensemw2s")
    with pytest.raises(ConfigError, match="holds no model"):
        prepare(run / "rounds")
