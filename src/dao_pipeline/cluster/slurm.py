"""The Slurm that ``dao-pipeline doctor`` finds, against what the site's file says of it."""

from __future__ import annotations

import json
import math
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dao_pipeline.cluster.site import Partition, Site
from dao_pipeline.cluster.verdict import Verdict, fail, ok, warn

COMMANDS = ("sinfo", "sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")
ANSWER_SECONDS = 30
SEEN_SECONDS = 60.0
"""A file that a node has written must be seen by then: latency-wait of the profile."""
SITE = "site.yaml"


@dataclass(frozen=True)
class Actual:
    """A partition as sinfo shows it: its largest node, and all models of GPU."""

    name: str
    default: bool
    minutes: float
    mem_mb: float
    cpus: float
    gpus: dict[str, int]
    """Most GPUs of one node, by model; the model is empty where the site names none."""


def run(*command: str, seconds: float = ANSWER_SECONDS) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer in {seconds:.0f} s"
    except OSError as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def look_at_slurm() -> Iterator[Verdict]:
    """Is there a Slurm, and does it answer?"""
    if missing := [command for command in COMMANDS if shutil.which(command) is None]:
        remedy = "run this on a login node of the cluster, or load its Slurm module"
        yield fail("Slurm", f"{', '.join(missing)} not found", remedy)
        return
    code, text, errors = run("scontrol", "ping")
    if code or "UP" not in text:
        remedy = "the cluster's controller is down or out of reach: ask its administrators"
        yield fail("Slurm", _first_line(errors or text), remedy)
        return
    yield ok("Slurm", _first_line(run("sinfo", "--version")[1]))
    code, _, errors = run("sacct", "-X", "-n", "-o", "JobID")
    if code:
        remedy = "Snakemake falls back to squeue; set slurm-status-command: squeue in slurm/config.yaml"
        yield warn("sacct", _first_line(errors), remedy)
    else:
        yield ok("sacct", "answers")


def partitions() -> dict[str, Actual]:
    """The cluster's partitions; none where sinfo fails."""
    code, text, _ = run("sinfo", "-h", "-e", "-o", "%P|%l|%m|%c|%G")
    found: dict[str, Actual] = {}
    for line in text.splitlines() if code == 0 else []:
        name, limit, memory, cpus, gres = line.split("|", 4)
        actual = Actual(
            name.rstrip("*"), name.endswith("*"), minutes(limit), _number(memory), _number(cpus), _gpus(gres)
        )
        found[actual.name] = _largest(found.get(actual.name, actual), actual)
    return found


def _largest(a: Actual, b: Actual) -> Actual:
    gpus = {model: max(a.gpus.get(model, 0), b.gpus.get(model, 0)) for model in {*a.gpus, *b.gpus}}
    return Actual(a.name, a.default, a.minutes, max(a.mem_mb, b.mem_mb), max(a.cpus, b.cpus), gpus)


def minutes(limit: str) -> float:
    """Minutes of one of Slurm's times: [days-]hours:minutes:seconds, or infinite."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not found:
        return math.inf
    days, hours, mins, seconds = (int(part or 0) for part in found.groups())
    return 1440 * days + 60 * hours + mins + seconds / 60


def _number(text: str) -> float:
    return float(re.sub(r"\D", "", text) or 0)  # "190000+": nodes differ


def _gpus(gres: str) -> dict[str, int]:
    """gpu:a100:4(S:0-1),gpu:v100:2 -> {a100: 4, v100: 2}; gpu:4 -> {"": 4}."""
    found: dict[str, int] = {}
    for model, count in re.findall(r"gpu(?::([A-Za-z0-9_.-]+?))?:(\d+)(?![\w.-]*:)", gres):
        found[model] = max(found.get(model, 0), int(count))
    return found


def look_at_partitions(site: Site, actual: dict[str, Actual]) -> Iterator[Verdict]:
    """The partitions that the site's file names, or the default one, and their limits."""
    if not actual:
        return
    if not site.partitions:
        defaults = [name for name, partition in actual.items() if partition.default]
        if defaults:
            yield ok("partition", f"{defaults[0]}, the default, takes all jobs; {SITE} names none")
        else:
            remedy = f"name some in {SITE}; there are {', '.join(actual)}"
            yield fail("partition", f"{SITE} names none, and there is no default", remedy)
    for name, stated in site.partitions.items():
        if name not in actual:
            remedy = f"correct {SITE}; there are {', '.join(actual)}"
            yield fail(f"partition {name}", "the cluster has no such partition", remedy)
            continue
        wrong = list(_too_much(stated, actual[name]))
        if wrong:
            yield fail(f"partition {name}", "; ".join(wrong), f"lower them in {SITE}: such jobs never start")
        else:
            yield ok(f"partition {name}", _shown(stated))


def _too_much(stated: Partition, actual: Actual) -> Iterator[str]:
    pairs = (
        ("max_runtime", stated.max_runtime, actual.minutes, "minutes"),
        ("max_mem_mb", stated.max_mem_mb, actual.mem_mb, "MB per node"),
        ("max_threads", stated.max_threads, actual.cpus, "cores per node"),
        ("max_gpu", stated.max_gpu, sum(actual.gpus.values()), "GPUs per node"),
    )
    for key, said, there, unit in pairs:
        if said != math.inf and said > there:
            yield f"{key} is {said:.0f}, the partition has {there:.0f} {unit}"
    for model in stated.available_gpu_models or []:
        if model not in actual.gpus:
            yield f"no GPU model {model}, but {', '.join(m or 'an unnamed one' for m in actual.gpus) or 'none'}"


def _shown(partition: Partition) -> str:
    limits = {key: v for key, v in partition.model_dump(exclude_unset=True).items() if v is not None}
    shown = [f"{key} {' '.join(v) if isinstance(v, list) else f'{v:g}'}" for key, v in limits.items()]
    return ", ".join(shown) or "no limits stated"


def _asked(site: Site) -> dict[str | None, Partition]:
    """The partitions that jobs go to; None is the default one."""
    return {name: limits for name, limits in site.partitions.items()} or {None: Partition()}  # noqa: C416


def look_at_requests(site: Site) -> Iterator[Verdict]:
    """Would sbatch take the largest jobs that may be asked for? Nothing is submitted."""
    for name, limits in _asked(site).items():
        subject = f"sbatch to {name or 'the default partition'}"
        command = ["sbatch", "--test-only", *request(site, name, limits), "--wrap", "true"]
        code, text, errors = run(*command)
        said = _first_line(errors or text).removeprefix("sbatch: ").removeprefix("error: ")
        if code:
            yield fail(subject, said, f"the request was: {shlex.join(command)}; correct {SITE}")
        else:
            yield ok(subject, said)


def request(site: Site, name: str | None, limits: Partition, least: bool = False) -> list[str]:
    """Options of sbatch or srun for a job of this site: the largest that the limits allow, or the least."""
    options = [*(["--partition", name] if name else []), *(["--account", site.account] if site.account else [])]
    options += ["--qos", site.qos] if site.qos else []
    gpus = min(limits.max_gpu, 1) if least else limits.max_gpu
    if gpus:
        model = [site.gpu_model] if site.gpu_model else []
        if site.gpu_request == "gpus":
            options.append("--gpus=" + ":".join([*model, str(gpus)]))
        else:
            options.append("--gres=" + ":".join(["gpu", *model, str(gpus)]))
    wanted = {"cpus-per-task": 1.0, "mem": 1000.0, "time": 2.0}
    if not least:
        wanted = {"cpus-per-task": limits.max_threads, "mem": limits.max_mem_mb, "time": limits.max_runtime}
    options += [f"--{option}={value:.0f}" for option, value in wanted.items() if value != math.inf]
    return [*options, "--ntasks=1", *site.sbatch]


def look_at_nodes(site: Site, folder: Path, torch: str, patience: int) -> Iterator[Verdict]:
    """Start a tiny job on a node of each partition, and see what it sees."""
    for name, limits in _asked(site).items():
        subject = f"node of {name or 'the default partition'}"
        token = f".doctor-{secrets.token_hex(8)}"
        (folder / token).touch()
        try:
            yield from _ask_node(site, name, limits, folder, token, subject, torch, patience)
        finally:
            for left in folder.glob(f"{token}*"):
                left.unlink(missing_ok=True)


def _ask_node(
    site: Site,
    name: str | None,
    limits: Partition,
    folder: Path,
    token: str,
    subject: str,
    torch: str,
    patience: int,
) -> Iterator[Verdict]:
    script = (
        f"{site.prefix()}{shlex.join([sys.executable, '-m', 'dao_pipeline.cluster.node', str(folder), token])}"
    )
    command = ["srun", f"--immediate={patience}", *request(site, name, limits, least=True), "bash", "-c", script]
    code, text, errors = run(*command, seconds=patience + 150)
    if code and "Unable to allocate resources" in errors and "Immediate execution impossible" in errors:
        yield warn(subject, f"none was free within {patience} s", "try again later, or --wait SECONDS")
        return
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        remedy = f"the command was: {shlex.join(command)}; correct {SITE}, above all setup and scratch"
        yield fail(subject, _first_line(errors or text or "no answer"), remedy)
        return
    yield from judge_node(found, limits, folder, token, subject, torch)


def judge_node(
    found: dict[str, Any],
    limits: Partition,
    folder: Path,
    token: str,
    subject: str,
    torch: str,
    patience: float = SEEN_SECONDS,
) -> Iterator[Verdict]:
    """What a node's answer says of it. patience: seconds until its file must be seen here."""
    yield ok(subject, f"{found['node']}, Python {found['python']}, torch {found.get('torch', 'missing')}")
    start = time.monotonic()
    while not (seen := (folder / f"{token}.answer").is_file()) and time.monotonic() - start < patience:
        time.sleep(0.2)
    delay = time.monotonic() - start
    if not found["sees_token"] or not seen:
        what = found.get("write_error") or f"{folder} is not the same folder there and here"
        yield fail(f"{subject}: files", what, "clone the project to a file system that all nodes share")
    elif delay > SEEN_SECONDS / 2:
        yield warn(f"{subject}: files", f"seen here {delay:.0f} s late", "raise latency-wait in slurm/config.yaml")
    else:
        yield ok(f"{subject}: files", f"shared; seen here after {delay:.1f} s")
    if found["tmpdir_writable"]:
        yield ok(f"{subject}: scratch", found["tmpdir"])
    else:
        yield fail(f"{subject}: scratch", "no temporary folder is writable", f"correct scratch in {SITE}")
    if "torch_error" in found or found.get("torch") != torch:
        what = found.get("torch_error") or f"torch {found['torch']}, here {torch}"
        yield fail(f"{subject}: torch", what, "jobs must find the environment that Snakemake runs in")
    if limits.max_gpu:
        gpus = found.get("gpus") or []
        if not gpus:
            why = (
                "torch is a build for CPUs" if found.get("cuda") is None else f"CUDA {found['cuda']} finds no GPU"
            )
            yield fail(f"{subject}: GPU", why, "install the build of torch for this driver (nvidia-smi shows it)")
        elif not all(gpu["works"] for gpu in gpus):
            yield fail(f"{subject}: GPU", f"{gpus[0]['name']} computes wrongly", "tell the administrators")
        else:
            yield ok(f"{subject}: GPU", f"{gpus[0]['name']}, {gpus[0]['gb']} GB, CUDA {found['cuda']}")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no answer")[:300]
