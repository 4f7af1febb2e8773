"""What it takes to list a folder in an object store: python scripts/benchmark_storage.py [SIZES …]

A real S3 server (moto) runs in this process, on loopback; each listing runs in a process of its own. `seconds` are
mostly the server's; `traced MB` is what Python's allocators gave out at the most, `kept MB` what they still do after.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from text2seg.io.scan import list_images
from text2seg.io.storage import place_of

SIZES = (100, 10_000, 50_000)


def list_one(bucket: str) -> dict[str, float]:
    """List a bucket, after a first small listing that loads and connects what is needed."""
    list_images(place_of("s3://warm-up"))
    tracemalloc.start()
    began = time.perf_counter()
    scan = list_images(place_of(f"s3://{bucket}"))
    seconds = time.perf_counter() - began
    kept, peak = tracemalloc.get_traced_memory()
    return {"objects": len(scan), "seconds": seconds, "peak": peak / 1e6, "kept": kept / 1e6}


def serve(sizes: list[int]) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    own = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    environment = os.environ | own | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket("warm-up", "us-east-1")
    store.put_object("warm-up", "one.jpg", b"x")

    def measure(*arguments: str) -> dict[str, float]:
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        return dict(json.loads(done.stdout))

    print("| objects | seconds | traced MB | kept MB |\n|--------:|--------:|----------:|--------:|")
    for size in sizes:
        store.create_bucket(f"of-{size}", "us-east-1")
        for number in range(size):
            store.put_object(f"of-{size}", f"photos/{number // 1000:04}/IMG_{number:07}.jpg", b"x")
        r = measure("--list", f"of-{size}")
        print(f"| {r['objects']:7,} | {r['seconds']:7.1f} | {r['peak']:9.1f} | {r['kept']:7.1f} |", flush=True)
    server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--list", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print(json.dumps(list_one(options.list)))
    else:
        serve(list(options.sizes))


if __name__ == "__main__":
    main()
