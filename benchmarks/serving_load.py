r"""How fast the server answers 32 clients at once, against one at a time, and how soon it is ready.

    OMP_NUM_THREADS=1 python benchmarks/serving_load.py --out benchmarks/results/serving_load.json

Starts `cervicyte serve` as a user does, in a process of its own, with the model that ships; from the start of
the process to the first yes of /api/v1/ready is the cold start. Then 32 clients send drawn cells, each its
own, one after another without a pause: first only one of them, then all at once. Every answer is held against
the one that the same image had alone.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from cervicyte.datasets.classes import SIPAKMED_CLASSES
from cervicyte.datasets.synthetic import draw_cell
from cervicyte.provenance import provenance, write_json

CLIENTS = 32
MOST_SECONDS_TO_READY = 6.0  # the project's goal
PATIENCE = 600  # seconds
CLOSE = 1e-3  # of a probability: batches of another size sum in another order
Timed = tuple[float, dict[str, float]]


def drawn_cells(count: int) -> list[bytes]:
    names = [one.name for one in SIPAKMED_CLASSES]
    files = []
    for number in range(count):
        data = io.BytesIO()
        cell = draw_cell(names[number % len(names)], np.random.default_rng(number))
        Image.fromarray(cell.image).save(data, "PNG")
        files.append(data.getvalue())
    return files


def started(port: int) -> tuple[subprocess.Popen[bytes], float]:
    """Start the server; return it and the seconds until it was ready."""
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "cervicyte", "serve", "--no-browser", "--port", str(port)],
        stdout=subprocess.DEVNULL,
    )
    while time.perf_counter() - begun < PATIENCE and server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/v1/ready", timeout=PATIENCE).status_code == 200:
                return server, time.perf_counter() - begun
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    server.kill()
    raise SystemExit("The server did not become ready.")


def processor_seconds(process: int) -> float | None:
    """Return how long a process has been at work, in all its threads; other load lengthens it little."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def ask(client: httpx.AsyncClient, path: str, content: bytes) -> Timed:
    begun = time.perf_counter()
    while True:
        response = await client.post(f"/api/v1/{path}", files={"images": ("cell.png", content)})
        if response.status_code != 503:
            break
        await asyncio.sleep(float(response.headers["Retry-After"]))
    response.raise_for_status()
    (result,) = response.json()["results"]
    return time.perf_counter() - begun, result["probabilities"]


async def load(port: int, path: str, files: list[bytes], clients: int, rounds: int) -> list[list[Timed]]:
    """Return what each of the files was answered in each round, sent by so many clients at once."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, limits=limits
    ) as client:

        async def one_client(number: int) -> list[tuple[int, Timed]]:
            return [
                (at, await ask(client, path, files[at]))
                for _ in range(rounds)
                for at in range(number, len(files), clients)
            ]

        answers: list[list[Timed]] = [[] for _ in files]
        for group in await asyncio.gather(*map(one_client, range(clients))):
            for at, timed in group:
                answers[at].append(timed)
    return answers


def figures(answers: list[list[Timed]], wall: float) -> dict[str, float]:
    seconds = [taken for group in answers for taken, _ in group]
    p50, p95 = np.percentile(seconds, [50, 95])
    return {
        "requests": len(seconds),
        "p50_s": round(float(p50), 4),
        "p95_s": round(float(p95), 4),
        "requests_per_s": round(len(seconds) / wall, 2),
    }


def measure(port: int, path: str, files: list[bytes], rounds: int) -> dict[str, object]:
    begun = time.perf_counter()
    alone = asyncio.run(load(port, path, files, 1, 1))
    between = time.perf_counter()
    together = asyncio.run(load(port, path, files, CLIENTS, rounds))
    ended = time.perf_counter()
    furthest = max(
        abs(probabilities[name] - expected[name])
        for group, ((_, expected),) in zip(together, alone, strict=True)
        for _, probabilities in group
        for name in expected
    )
    if furthest > CLOSE:
        raise SystemExit(f"An answer under load is not the one that its image had alone: {furthest}")
    return {
        "one_at_a_time": figures(alone, between - begun),
        "at_once": figures(together, ended - between),
        "largest_difference_of_a_probability": round(furthest, 7),
    }


def memory_mib(process: int) -> float | None:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the server does under load.")
    parser.add_argument("--rounds", type=int, default=5, help="requests of each client")
    parser.add_argument("--starts", type=int, default=3, help="cold starts")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    load_before = round(os.getloadavg()[0], 2)
    files = drawn_cells(CLIENTS)
    starts, at_work = [], []
    for _ in range(arguments.starts):
        port = free_port()
        server, seconds = started(port)
        starts.append(round(seconds, 2))
        at_work.append(processor_seconds(server.pid))
        if len(starts) < arguments.starts:
            server.terminate()
            server.wait()
    print(
        f"Ready after {starts} s, {at_work} s of a processor (goal: at most {MOST_SECONDS_TO_READY:g} s)",
        flush=True,
    )
    try:
        found = {"predict": measure(port, "predict", files, arguments.rounds)}
        before = memory_mib(server.pid)
        found["explain"] = measure(port, "explain", files, 1)
        measure(port, "predict", files, arguments.rounds)
        after = memory_mib(server.pid)
    finally:
        server.terminate()
        server.wait()
    for path, one in found.items():
        print(path, one, flush=True)
    if arguments.out is not None:
        command = shlex.join(["python", *sys.argv])
        threads = os.environ.get("OMP_NUM_THREADS")
        command = f"OMP_NUM_THREADS={threads} {command}" if threads else command
        content = {
            "clients": CLIENTS,
            "threads": threads,
            "load_average_1_min": load_before,
            "seconds_to_ready": starts,
            "processor_seconds_to_ready": at_work,
            "goal_seconds_to_ready": MOST_SECONDS_TO_READY,
            "memory_mib": {"after_predictions": before, "after_all": after},
            **found,
        }
        write_json(arguments.out, {"provenance": provenance(command), **content})


if __name__ == "__main__":
    main()
