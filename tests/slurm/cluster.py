"""A Slurm cluster of one node, with accounting: daemons in a folder of their own, without systemd.

    python -m tests.slurm.cluster start     (root; installs Debian's packages where they are missing)
    eval "$(python -m tests.slurm.cluster env)"     so that sinfo, sbatch and snakemake find it
    python -m tests.slurm.cluster status
    python -m tests.slurm.cluster stop

Ports, sockets, keys, database and logs are the cluster's own, so a Slurm or MariaDB that the machine has is not
touched. Two GPUs are made up: they can be asked for and are counted, and no device stands behind them. Jobs that
use more memory than they asked for are killed by Slurm itself, since containers often have no cgroups for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
FOLDER = Path(os.environ.get("DAO_TEST_SLURM", "/tmp/dao-pipeline-slurm"))
PORTS = {"mariadb": 23306, "slurmctld": 26817, "slurmd": 26818, "slurmdbd": 26819}
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
"""In the order in which they start."""

CONFIGURATION = Path("/etc/slurm/slurm.conf")
"""Where Slurm's commands look inside jobs, for Snakemake takes SLURM_CONF out of their environment: we link it."""

GPUS, GPU_MODEL = 2, "fake"
ACCOUNT, PARTITION, GPU_PARTITION = "materials", "cpu", "gpu"
MAX_MINUTES, GPU_MAX_MINUTES = 30, 20
WAIT = 60.0
"""Seconds that a daemon may take to answer or to end."""


class Unavailable(Exception):  # noqa: N818 - it is a state of the machine
    """No cluster can run here; the text says why."""


def install() -> None:
    """Install what is missing.

    Raises Unavailable where that is not possible.
    """
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        raise Unavailable("the daemons of a Slurm cluster need root")
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{', '.join(missing)} not found, and no apt-get to install {', '.join(PACKAGES)}")
    # in runlevel 1 no package starts its service
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (("update",), ("install", "-y", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(
            ["apt-get", "-qq", *arguments], env=quiet, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unavailable(f"apt-get {arguments[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise Unavailable(f"{', '.join(missing)} not found after installing {', '.join(PACKAGES)}")


@dataclass(frozen=True)
class Cluster:
    """The daemons and files in ``folder``."""

    folder: Path = FOLDER

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this cluster and no other."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SRUN"))}
        path = inherited["PATH"]
        return inherited | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": path if "/usr/sbin" in path.split(os.pathsep) else f"{path}{os.pathsep}/usr/sbin",
        }

    # daemons

    def start(self) -> None:
        """Start what does not run yet and wait until the node takes jobs."""
        install()
        if CONFIGURATION.exists() and CONFIGURATION.resolve() != (self.folder / "slurm.conf").resolve():
            raise Unavailable(f"this machine has a Slurm of its own ({CONFIGURATION})")
        if shutil.disk_usage("/tmp").free < 1e9:
            raise Unavailable("less than 1 GB free in /tmp for the database")
        for name in ("run", "log", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._configure()
        self._start_munge()
        self._start_database()
        self.start_daemon("slurmdbd", "slurmdbd")
        self._wait("slurmdbd", lambda: self._answers("sacctmgr", "-n", "show", "cluster"))
        self._register()
        self.start_controller()
        self.start_daemon("slurmd", "slurmd", "-N", _host())
        self._wait("slurmd", self.idle)

    def stop(self) -> None:
        """End all daemons, the last started first, and remove the folder."""
        if (self.folder / "slurm.conf").exists() and self.pid("slurmctld"):
            self.run("scancel", "--user=root", check=False)
            self._wait("jobs", lambda: not self.run("squeue", "-h", check=False), fatal=False)
        for daemon in reversed(DAEMONS):
            self.stop_daemon(daemon)
        self._end_strays()
        if CONFIGURATION.is_symlink() and CONFIGURATION.readlink() == self.folder / "slurm.conf":
            CONFIGURATION.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_strays(self) -> None:
        """End what is left of jobs: without cgroups, Slurm loses sight of a process whose parent has ended."""
        mine = {f"SLURM_CONF={self.folder}/slurm.conf".encode()}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
                if mine <= {*variables} and any(v.startswith(b"SLURM_JOB_ID=") for v in variables):
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:  # gone, or another's
                continue

    def status(self) -> dict[str, int | None]:
        """Process id of each daemon, None where it does not run."""
        return {daemon: self.pid(daemon) for daemon in DAEMONS}

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self.start_daemon("slurmctld", "slurmctld")
        self._wait("slurmctld", lambda: self._answers("scontrol", "ping"))

    def start_daemon(self, daemon: str, *command: str) -> None:
        """Start a daemon that puts itself into the background, unless it runs."""
        if self.pid(daemon) is None:
            self.run(*command)

    def stop_daemon(self, daemon: str, number: int = signal.SIGTERM) -> None:
        """End a daemon and wait for it."""
        pid = self.pid(daemon)
        if pid is None:
            return
        os.kill(pid, number)
        if not self._wait(daemon, lambda: self.pid(daemon) is None, fatal=False):
            os.kill(pid, signal.SIGKILL)
            self._wait(daemon, lambda: self.pid(daemon) is None)

    def pid(self, daemon: str) -> int | None:
        """Process id of a daemon of this folder."""
        try:
            pid = int((self.folder / f"run/{daemon}.pid").read_text())
            # the number may be another process's by now
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return pid if name == daemon[:15] and state != "Z" else None

    # commands

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a command of this cluster."""
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=WAIT,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def idle(self) -> bool:
        """Whether the node takes jobs."""
        return self.run("sinfo", "-h", "-o", "%T", "-p", PARTITION, check=False).strip() in (
            "idle",
            "mixed",
            "allocated",
        )

    def _answers(self, *command: str) -> bool:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=WAIT
        )
        return done.returncode == 0 and "DOWN" not in done.stdout

    def _wait(self, what: str, ready: Callable[[], bool], fatal: bool = True) -> bool:
        start = time.monotonic()
        while not ready():
            if time.monotonic() - start > WAIT:
                if not fatal:
                    return False
                logs = {log.name: log.read_text(errors="replace")[-1500:] for log in self.folder.glob("log/*")}
                raise RuntimeError(f"{what} is not ready after {WAIT:.0f} s; logs: {logs}")
            time.sleep(0.2)
        return True

    # parts

    def _configure(self) -> None:
        if (self.folder / "slurm.conf").exists():  # running daemons keep their configuration
            return
        names = {"folder": self.folder, "host": _host(), "ports": PORTS, "cpus": os.cpu_count()}
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**names))
        for number in range(GPUS):  # slurmd wants to see a file for each, whatever it is
            (self.folder / f"gpu{number}").touch()
        files = f"{self.folder}/gpu[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(f"Name=gpu Type={GPU_MODEL} File={files}\n")
        secret = self.folder / "slurmdbd.conf"
        secret.touch(mode=0o600)
        secret.write_text(SLURMDBD_CONF.format(**names))
        CONFIGURATION.unlink(missing_ok=True)  # of a folder that is gone
        CONFIGURATION.symlink_to(self.folder / "slurm.conf")

    def _start_munge(self) -> None:
        run, key = self.folder / "run", self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o400)
            key.write_bytes(os.urandom(128))
        files = {
            "key": key,
            "socket": run / "munge",
            "pid": run / "munged.pid",
            "log": self.folder / "log/munged.log",
        }
        options = [
            f"--{name}-file={path}" if name != "socket" else f"--socket={path}" for name, path in files.items()
        ]
        self.start_daemon("munged", "munged", "--force", f"--seed-file={run}/munge.seed", *options)

    def _start_database(self) -> None:
        data, run = self.folder / "database", self.folder / "run"
        if not data.exists():
            self.run("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db")
        if self.pid("mariadbd") is None:
            with (self.folder / "log/mariadb.log").open("a") as log:
                subprocess.Popen(
                    [
                        *("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"),
                        *(f"--socket={run}/mariadb", f"--pid-file={run}/mariadbd.pid"),
                        *("--bind-address=127.0.0.1", f"--port={PORTS['mariadb']}", "--skip-name-resolve"),
                        *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=2"),
                    ],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        client = ("mariadb", "--no-defaults", f"--socket={run}/mariadb")
        self._wait("mariadbd", lambda: self._answers(*client, "-e", "select 1"))
        self.run(
            *client,
            "-e",
            "create database if not exists slurm_acct_db;"
            "create user if not exists slurm@'127.0.0.1' identified by 'slurm';"
            "grant all on slurm_acct_db.* to slurm@'127.0.0.1';",
        )

    def _register(self) -> None:
        """The accounting's cluster, account and user; sacctmgr ends with 1 where there is nothing to add."""
        self.run("sacctmgr", "-i", "add", "cluster", "daotest", check=False)
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, check=False)
        self.run("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}", check=False)


def _host() -> str:
    return socket.gethostname().partition(".")[0]


SLURM_CONF = f"""\
ClusterName=daotest
SlurmctldHost={{host}}(127.0.0.1)
SlurmctldPort={{ports[slurmctld]}}
SlurmdPort={{ports[slurmd]}}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={{folder}}/run/munge
SlurmctldPidFile={{folder}}/run/slurmctld.pid
SlurmdPidFile={{folder}}/run/slurmd.pid
SlurmctldLogFile={{folder}}/log/slurmctld.log
SlurmdLogFile={{folder}}/log/slurmd.log
StateSaveLocation={{folder}}/state
SlurmdSpoolDir={{folder}}/spool
# no cgroups: processes are followed by their parents, memory is looked at every two seconds
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill,UsePss
AccountingStorageType=accounting_storage/slurmdbd
# by name: slurmdbd does not take itself for another's 127.0.0.1
AccountingStorageHost={{host}}
AccountingStoragePort={{ports[slurmdbd]}}
# munge's socket, not a password
AccountingStoragePass={{folder}}/run/munge
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
KillWait=20
MinJobAge=300
SchedulerParameters=bf_interval=5
NodeName={{host}} NodeAddr=127.0.0.1 CPUs={{cpus}} RealMemory=8000 Gres=gpu:{GPU_MODEL}:{GPUS} State=UNKNOWN
PartitionName={PARTITION} Nodes={{host}} Default=YES MaxTime={MAX_MINUTES} DefMemPerNode=1000 State=UP
PartitionName={GPU_PARTITION} Nodes={{host}} MaxTime={GPU_MAX_MINUTES} DefMemPerNode=1000 State=UP
"""

SLURMDBD_CONF = """\
DbdHost={host}
DbdPort={ports[slurmdbd]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[mariadb]}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def main(arguments: list[str]) -> int:
    """Carry out a command; its exit code."""
    cluster = Cluster()
    match arguments:
        case ["start"]:
            try:
                cluster.start()
            except Unavailable as reason:
                print(f"no cluster: {reason}")
                return 1
            print(cluster.run("sinfo", "-o", "%P %a %l %D %T %G"), end="")
        case ["stop"]:
            cluster.stop()
        case ["status"]:
            found = cluster.status()
            for daemon, pid in found.items():
                print(f"{daemon}: {pid or 'does not run'}")
            return 0 if all(found.values()) else 1
        case ["env"]:
            print(f"export SLURM_CONF='{cluster.environment['SLURM_CONF']}' PATH='{cluster.environment['PATH']}'")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
