"""A server in a thread that keeps objects as Google Cloud Storage's JSON API does, in memory.

It speaks what gcsfs and TensorStore use: listing, metadata, media with ranges and generations,
uploads in one piece, in two parts and resumable ones, copies, moves, deletions, conditions on
generations.
"""

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Store:
    """Buckets and their objects; names of buckets that may not be touched."""

    def __init__(self, *buckets: str, forbidden: tuple[str, ...] = ()) -> None:
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {name: {} for name in buckets}
        self.forbidden = forbidden
        self.generation = 1_000_000
        self.uploads: dict[str, tuple[str, str, bytes]] = {}
        self.lock = threading.Lock()

    def put(self, bucket: str, name: str, data: bytes) -> None:
        self.generation += 1
        self.buckets[bucket][name] = (data, self.generation)

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        data, generation = self.buckets[bucket][name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "id": f"{bucket}/{name}/{generation}",
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "etag": str(generation),
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer must not wait for its acknowledgement
    wbufsize = -1
    store: Store

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.write_body(body)

    def write_body(self, body: bytes) -> None:
        self.wfile.write(body)

    def answer_json(self, values: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(values).encode(), Content_Type="application/json", **headers)

    def fail(self, status: int, message: str) -> None:
        self.answer_json({"error": {"code": status, "message": message}}, status)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        body = self.read_body()
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.store.lock:
            self.route(url.path, query, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?/?", path)
        if found is None:
            return self.fail(404, f"no such path: {path}")
        upload, bucket, rest = found[1] == "/upload", found[2], found[3]
        if bucket in self.store.forbidden:
            return self.fail(403, f"the account has no access to {bucket}")
        if bucket not in self.store.buckets:
            return self.fail(404, "The specified bucket does not exist.")
        if upload:
            return self.upload(bucket, query, body)
        if rest and "/rewriteTo/b/" in rest:
            return self.copy(bucket, rest)
        if rest and "/moveTo/o/" in rest:
            return self.move(bucket, *map(unquote, rest.split("/moveTo/o/")))
        if rest:
            return self.one(bucket, unquote(rest), query)
        if path.rstrip("/").endswith("/o"):
            return self.listing(bucket, query)
        return self.answer_json({"kind": "storage#bucket", "name": bucket, "id": bucket})

    def refused(self, bucket: str, name: str, query: dict[str, str]) -> bool:
        """Answers 412 where a condition on the generation does not hold."""
        wanted = query.get("ifGenerationMatch")
        now = self.store.buckets[bucket].get(name, (b"", 0))[1]
        if wanted is not None and int(wanted) != now:
            self.fail(412, "conditionNotMet")
            return True
        return False

    def upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind, name = query.get("uploadType"), query.get("name", "")
        if "upload_id" in query:
            return self.resume(query["upload_id"], body)
        if kind == "resumable":
            name = name or json.loads(body)["name"]
            number = str(len(self.store.uploads))
            self.store.uploads[number] = (bucket, name, b"")
            host = self.headers["Host"]
            place = f"http://{host}/upload/storage/v1/b/{bucket}/o?upload_id={number}"
            return self.answer_json({}, Location=place)
        if kind == "multipart":
            mark = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
            description, data = body.split(b"--" + mark)[1:3]
            name = json.loads(re.split(rb"\r?\n\r?\n", description, maxsplit=1)[1])["name"]
            body = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[1]
            body = body.removesuffix(b"\n").removesuffix(b"\r")
        if self.refused(bucket, name, query):
            return None
        self.store.put(bucket, name, body)
        return self.answer_json(self.store.describe(bucket, name))

    def resume(self, number: str, body: bytes) -> None:
        bucket, name, before = self.store.uploads[number]
        data = before + body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*" or (total and len(data) < int(total)):
            self.store.uploads[number] = bucket, name, data
            return self.answer(308, Range=f"bytes=0-{len(data) - 1}")
        self.store.put(bucket, name, data)
        return self.answer_json(self.store.describe(bucket, name))

    def copy(self, bucket: str, rest: str) -> None:
        source, target = rest.split("/rewriteTo/b/")
        other, name = target.split("/o/")
        if unquote(source) not in self.store.buckets[bucket]:
            return self.fail(404, "No such object")
        self.store.put(other, unquote(name), self.store.buckets[bucket][unquote(source)][0])
        resource = self.store.describe(other, unquote(name))
        return self.answer_json(
            {"kind": "storage#rewriteResponse", "done": True, "resource": resource}
        )

    def move(self, bucket: str, source: str, target: str) -> None:
        if source not in self.store.buckets[bucket]:
            return self.fail(404, f"No such object: {bucket}/{source}")
        self.store.put(bucket, target, self.store.buckets[bucket].pop(source)[0])
        return self.answer_json(self.store.describe(bucket, target))

    def one(self, bucket: str, name: str, query: dict[str, str]) -> None:
        objects = self.store.buckets[bucket]
        if name not in objects:
            return self.fail(404, f"No such object: {bucket}/{name}")
        data, generation = objects[name]
        if self.command == "DELETE":
            if not self.refused(bucket, name, query):
                del objects[name]
                self.answer(204)
            return None
        if query.get("alt") != "media":
            return self.answer_json(self.store.describe(bucket, name))
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        if self.refused(bucket, name, query):
            return None
        extra = {"x_goog_generation": str(generation), "ETag": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self.answer(200, data, **extra)
        first = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
        last = min(int(wanted[2]) if wanted[1] and wanted[2] else len(data) - 1, len(data) - 1)
        if first >= len(data):
            return self.answer(416, Content_Range=f"bytes */{len(data)}")
        span = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], Content_Range=span, **extra)

    def listing(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.store.buckets[bucket]):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                prefixes.add(prefix + head + cut)
            else:
                items.append(self.store.describe(bucket, name))
        self.answer_json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, as ArrayRecord's does, is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve(store: Store, *, handler: type[Handler] = Handler) -> Iterator[str]:
    """Serves a store inside the `with`, at the address it gives."""
    server = _Server(("localhost", 0), type("OwnHandler", (handler,), {"store": store}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
