"""What the real `wandb` client makes of a run that flow wrote: reads its file, and syncs it to a server on loopback that
answers as the client needs it and prints what it was told.

    python verify.py RUN.wandb        (needs: pip install wandb==0.31.0)
"""

import gzip
import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

BLOCK = 32768


def records(data):
    assert data[:7] == b":W&B\xe1\xbe\x00", data[:7]
    at, whole = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = {"exitcode": None, "limits": {}}
        if self.path == "/graphql":
            asked = json.loads(body)
            name, given = asked.get("operationName"), asked.get("variables") or {}
            self.told.append((name, given))
            answer = {"data": {}}
            if name == "RunResumeStatus":
                answer = {"data": {"model": {"id": "p", "name": "ja", "bucket": None}}}
            elif name == "UpsertBucket":
                project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "team"}}
                bucket = {"id": "b", "name": given["name"], "displayName": given["displayName"], "project": project}
                answer = {"data": {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}}
        elif self.path.startswith("/files/"):
            self.told.append((self.path, json.loads(body)))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST


def main():
    path = Path(sys.argv[1])
    found = list(records(path.read_bytes()))
    kinds = [record.WhichOneof("record_type") for record in found]
    run = found[1].run
    print(f"{len(found)} records: {', '.join(f'{kinds.count(kind)} {kind}' for kind in dict.fromkeys(kinds))}")
    print(f"run {run.run_id} of {run.project}: {run.display_name}, group {run.run_group}, tags {list(run.tags)}")
    print("parameters:", {item.key: item.value_json[:30] for item in run.config.update})
    last = [record for record in found if record.WhichOneof("record_type") == "history"][-1].history
    print("last step:", last.step.num, {"/".join(item.nested_key): item.value_json for item in last.item})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, f"offline-run-20261121_160707-{run.run_id}")
        folder.mkdir()
        shutil.copy(path, folder)
        port = server.server_address[1]
        env = os.environ | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "HOME": root}
        for how in [["sync"], ["beta", "sync", "--live", "--yes", "--no-skip-synced"]]:
            Server.told.clear()
            command = [str(Path(sys.executable).with_name("wandb")), *how, str(folder)]
            ended = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=120)
            print(f"wandb {' '.join(how)}: exit {ended.returncode}")
            for what, given in Server.told:
                if what == "UpsertBucket" and given.get("displayName"):
                    config = {key: value["value"] for key, value in json.loads(given["config"]).items()}
                    print("  server is told of", given["name"], given["displayName"], given["groupName"], given["tags"])
                    print("  with the parameters", sorted(key for key in config if key != "_wandb"))
                elif what.startswith("/files/"):
                    files = given.get("files", {})
                    history = files.get("wandb-history.jsonl", {}).get("content", [])
                    summary = files.get("wandb-summary.json", {}).get("content", [])
                    if history:
                        print(f"  {len(history)} steps, the last of them {history[-1]}")
                    if summary:
                        print("  summary", {k: v for k, v in json.loads(summary[-1]).items() if k != "_wandb"})


main()
