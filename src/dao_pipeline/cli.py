"""The command line: one command per stage. Each parses, calls one function and prints a line.

Heavy imports sit inside the commands, so that ``--help`` and Snakemake's parsing stay fast.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from dao_pipeline.cli_tools import TOOLS
from dao_pipeline.config import Campaign
from dao_pipeline.config.read import load_campaign
from dao_pipeline.errors import EXIT_CONTINUE, EXIT_USER_ERROR, ContinueLater, UserError

# Threads that spin for long while they wait slow each other down tenfold when jobs share cores; threads that
# never spin lose a third when they do not. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

app = typer.Typer(
    help="Crystal structure prediction with DAO-P and DAO-G. Lengths are in angstrom, energies in eV/atom.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Option("--config", help="campaign file (YAML)")]
CrysdbDir = Annotated[Path, typer.Option("--crysdb", help="folder with train, val and test.parquet")]
WorkDir = Annotated[
    Path,
    typer.Option("--work", help="folder for checkpoints and finished parts; an interrupted run resumes there"),
]
OutFile = Annotated[Path, typer.Option("--out", help="Parquet file to write")]
OutDir = Annotated[Path, typer.Option("--out", help="folder to write")]
PairsFile = Annotated[
    Path | None, typer.Option(help="table written by pair-templates (generator.template_paths above 0)")
]
IndexDir = Annotated[Path, typer.Option("--index", help="folder written by index-templates")]
ModelDir = Annotated[Path, typer.Option("--model", help="model directory")]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a command whose user errors are printed without a traceback."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        rank = os.environ.get("RANK", "0")  # of several processes of one training, the first one speaks
        level, who = (logging.INFO, "") if rank == "0" else (logging.WARNING, f"[process {rank}] ")
        logging.basicConfig(level=level, format=f"%(asctime)s {who}%(message)s", stream=sys.stderr)
        try:
            function(*args, **kwargs)
        except UserError as error:
            typer.secho(f"{who}error: {error}", fg="red", err=True)
            raise typer.Exit(EXIT_USER_ERROR) from None
        except ContinueLater as request:
            if rank == "0":
                typer.echo(f"interrupted: {request}", err=True)
            raise typer.Exit(EXIT_CONTINUE) from None

    app.command()(guarded)
    return guarded


def _campaign(path: Path) -> Campaign:
    return load_campaign(path)


def _training_campaign(path: Path) -> Campaign:
    """The campaign of a training, in one of its processes: if it wants several, this one starts them and ends."""
    campaign = load_campaign(path)
    processes = campaign.compute.training.num_processes
    if processes > 1 and "RANK" not in os.environ:
        from dao_pipeline.training.launch import launch

        raise typer.Exit(launch(sys.argv[1:], processes))
    return campaign


@command
def download(
    config: ConfigFile,
    out: OutFile,
    work: Annotated[
        Path | None,
        typer.Option(help="where an interrupted run resumes [default: work/NAME/download]"),
    ] = None,
) -> None:
    """Fetch crystals from the campaign's source into one table; rejected.parquet goes beside it."""
    from dao_pipeline.sources.download import download as run

    campaign = _campaign(config)
    run(campaign, out, work or Path("work") / campaign.name / "download")


@command
def build_crysdb(
    config: ConfigFile,
    raw: Annotated[Path, typer.Option(help="table written by download")],
    out: OutDir,
) -> None:
    """Clean, label and split crystals: train, val, test and rejected.parquet."""
    from dao_pipeline.crysdb.build import build_crysdb as run

    run(_campaign(config), raw, out)


@command
def coverage(
    crysdb: Annotated[Path, typer.Argument(help="folder with train, val and test.parquet")],
) -> None:
    """Print what came into CrysDB from each source and what became of it, as a Markdown table."""
    from dao_pipeline.crysdb.coverage import coverage as table

    typer.echo(table(crysdb))


@command
def train_energy_model(config: ConfigFile, crysdb: CrysdbDir, out: OutDir, work: WorkDir) -> None:
    """Train DAO-P: time-conditioned energy of noisy crystals."""
    campaign = _training_campaign(config)
    from dao_pipeline.training.energy_model import train_energy_model as run

    run(campaign, crysdb, out, work)


@command
def relax_dataset(
    config: ConfigFile,
    crysdb: CrysdbDir,
    model: ModelDir,
    out: OutFile,
    work: WorkDir,
    job: Annotated[int, typer.Option(help="number of this job, from 0")] = 0,
) -> None:
    """Relax unstable training crystals with DAO-P; every training crystal has a row in the output."""
    from dao_pipeline.energy.relax_dataset import relax_dataset as run

    run(_campaign(config), crysdb, model, out, work, job)


@command
def index_templates(config: ConfigFile, crysdb: CrysdbDir, out: OutDir) -> None:
    """Index the training crystals as templates for other compositions."""
    from dao_pipeline.templates.build import index_templates as run

    run(_campaign(config), crysdb, out)


@command
def pair_templates(config: ConfigFile, index: IndexDir, out: OutFile) -> None:
    """Lay over each training crystal the template that would be proposed for it."""
    from dao_pipeline.templates.pairs import pair_templates as run

    run(_campaign(config), index, out)


@command
def pretrain_generator(
    config: ConfigFile,
    out: OutDir,
    work: WorkDir,
    stage: Annotated[int, typer.Option(min=1, max=2, help="1: stable and unstable; 2: relaxed set")],
    crysdb: CrysdbDir,
    relaxed: Annotated[Path | None, typer.Option(help="folder written by relax-dataset (stage 2)")] = None,
    init: Annotated[Path | None, typer.Option(help="model directory of stage 1 (stage 2)")] = None,
    pairs: PairsFile = None,
) -> None:
    """Pretrain DAO-G."""
    campaign = _training_campaign(config)
    from dao_pipeline.training.generator import pretrain_generator as run

    run(campaign, crysdb, out, work, stage=stage, relaxed=relaxed, init=init, pairs=pairs)


@command
def finetune_generator(
    config: ConfigFile,
    crysdb: CrysdbDir,
    out: OutDir,
    work: WorkDir,
    init: Annotated[Path | None, typer.Option(help="pretrained model directory; default: random weights")] = None,
    pairs: PairsFile = None,
) -> None:
    """Fine-tune DAO-G on stable crystals, or on the table named in the campaign."""
    campaign = _training_campaign(config)
    from dao_pipeline.training.generator import finetune_generator as run

    run(campaign, crysdb, out, work, init=init, pairs=pairs)


@command
def plan_candidates(
    config: ConfigFile,
    crysdb: CrysdbDir,
    out: OutFile,
    shard: Annotated[int | None, typer.Option(min=0, help="write the rows of this shard only")] = None,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="write the rows of this round only")
    ] = None,
) -> None:
    """Write one row per candidate to make, with its shard and round."""
    from dao_pipeline.candidates.plan import plan_candidates as run

    run(_campaign(config), crysdb, out, shard=shard, round_number=round_number)


@command
def propose_templates(
    config: ConfigFile,
    plan: Annotated[Path, typer.Option(help="table written by plan-candidates")],
    index: IndexDir,
    out: OutFile,
) -> None:
    """Write the known structures that candidates are made from, with the elements of each composition."""
    from dao_pipeline.templates.propose import propose_templates as run

    run(_campaign(config), plan, index, out)


@command
def generate_candidates(
    config: ConfigFile,
    plan: Annotated[Path, typer.Option(help="table written by plan-candidates")],
    out: OutFile,
    work: WorkDir,
    generator: Annotated[
        Path | None, typer.Option(help="DAO-G model directory [default: only templates give crystals]")
    ] = None,
    energy_model: Annotated[Path | None, typer.Option(help="DAO-P model directory, for guidance")] = None,
    templates: Annotated[Path | None, typer.Option(help="table written by propose-templates")] = None,
) -> None:
    """Generate the crystals of a plan, guided by DAO-P, or make them from templates."""
    from dao_pipeline.candidates.generate import generate_candidates as run

    run(_campaign(config), plan, generator, energy_model, out, work, templates)


@command
def trajectory(
    config: ConfigFile,
    plan: Annotated[Path, typer.Option(help="table written by plan-candidates")],
    generator: Annotated[Path, typer.Option(help="DAO-G model directory")],
    energy_model: Annotated[Path, typer.Option(help="DAO-P model directory, for guidance")],
    ids: Annotated[list[str], typer.Option("--id", help="candidate, e.g. cand:0:3; as often as you like")],
    out: OutDir,
    templates: Annotated[Path | None, typer.Option(help="table written by propose-templates")] = None,
) -> None:
    """Draw chosen candidates again and write each step of them as extended XYZ."""
    from dao_pipeline.candidates.trajectory import write_trajectories as run

    for path in run(_campaign(config), plan, generator, energy_model, ids, out, templates):
        typer.echo(path)


@command
def train_ranker(
    config: ConfigFile,
    crysdb: CrysdbDir,
    templates: Annotated[Path, typer.Option(help="folder written by index-templates")],
    out: OutDir,
    work: WorkDir,
    energy_model: Annotated[Path | None, typer.Option(help="DAO-P model directory, for ranking.energy")] = None,
) -> None:
    """Learn how likely each candidate is the ground state of its composition."""
    from dao_pipeline.ranking.train import train_ranker as run

    run(_campaign(config), crysdb, templates, out, work, energy_model)


@command
def sort_references(crysdb: CrysdbDir, out: OutFile) -> None:
    """Write the known crystals sorted by formula, so that those of some formulas are found without reading all."""
    from dao_pipeline.candidates.references import sort_references as run

    run(crysdb, out)


@command
def screen_shard(
    config: ConfigFile,
    planned: Annotated[Path, typer.Option(help="folder of the shards' plans")],
    generated: Annotated[Path, typer.Option(help="folder of the shards' candidates")],
    shard: Annotated[int, typer.Option(min=0, help="number of the shard")],
    references: Annotated[Path, typer.Option(help="known crystals, written by sort-references")],
    out: OutFile,
    energy_model: Annotated[Path | None, typer.Option(help="DAO-P model directory [default: no energies]")] = None,
    ranker: Annotated[
        Path | None, typer.Option(help="directory written by train-ranker [default: rank by predicted energy]")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="folder for finished parts of the second model's work [default: none kept]")
    ] = None,
) -> None:
    """Check, group, rank the candidates of a shard: one row for each planned, whatever happened to it."""
    from dao_pipeline.candidates.screen_shard import screen_shard as run

    run(_campaign(config), planned, generated, shard, references, energy_model, out, ranker, work)


@command
def screen_candidates(
    config: ConfigFile,
    plan: Annotated[Path, typer.Option(help="table written by plan-candidates")],
    screened: Annotated[Path, typer.Option(help="folder of screened shards")],
    out: OutFile,
) -> None:
    """Put the screened shards together, one row per planned candidate; the best go into a zip of CIFs."""
    from dao_pipeline.candidates.screened import screen_candidates as run

    run(_campaign(config), plan, screened, out)


@command
def evaluate(
    config: ConfigFile,
    screened: Annotated[Path, typer.Option(help="table written by screen-candidates")],
    crysdb: CrysdbDir,
    out: OutDir,
    energy_model: Annotated[
        Path | None, typer.Option(help="DAO-P model directory, ranks the baselines [default: no energies]")
    ] = None,
) -> None:
    """Compare candidates with the known crystals of the test split, beside two baselines."""
    from dao_pipeline.evaluation.evaluate import evaluate as run

    run(_campaign(config), screened, crysdb, energy_model, out)


@command
def ablate(
    config: ConfigFile,
    variant: Annotated[
        list[str],
        typer.Option(help="NAME=EVALUATION=GENERATOR, with the folders of both; the first is the reference"),
    ],
    out: OutDir,
) -> None:
    """Compare the variants of a campaign: match rates and RMSE on the same known crystals, as table.md."""
    from dao_pipeline.evaluation.ablation import Variant
    from dao_pipeline.evaluation.ablation import ablate as run

    variants = {}
    for text in variant:
        parts = text.split("=")
        if len(parts) != 3:
            raise UserError(f"--variant {text}: expected NAME=EVALUATION=GENERATOR.")
        variants[parts[0]] = Variant(Path(parts[1]), Path(parts[2]))
    run(_campaign(config), variants, out)


@command
def finetune_property(config: ConfigFile, model: ModelDir, out: OutDir, work: WorkDir) -> None:
    """Fine-tune DAO-P on a property of crystals; rejected.parquet goes beside the model."""
    campaign = _training_campaign(config)
    from dao_pipeline.training.property_model import finetune_property as run

    run(campaign, model, out, work)


@command
def predict_property(
    config: ConfigFile,
    model: ModelDir,
    screened: Annotated[Path, typer.Option(help="table written by screen-candidates")],
    out: OutFile,
) -> None:
    """Predict the property of each candidate with a fine-tuned model."""
    from dao_pipeline.energy.predict_property import predict_property as run

    run(_campaign(config), model, screened, out)


@command
def validate_qe(
    config: ConfigFile,
    screened: Annotated[Path, typer.Option(help="table written by screen-candidates")],
    number: Annotated[int, typer.Option(min=0, help="position among the candidates to compute, from 0")],
    out: OutFile,
    work: WorkDir,
    minutes: Annotated[
        float | None, typer.Option(help="time that this job may take; pw.x stops before, and another job goes on")
    ] = None,
) -> None:
    """Compute one candidate with Quantum ESPRESSO."""
    from dao_pipeline.qe.validate import validate_qe as run

    run(_campaign(config), screened, number, out, work, minutes)


@command
def reference_energies(
    config: ConfigFile,
    validation: Annotated[Path, typer.Option(help="folder written by validate-qe")],
    crysdb: CrysdbDir,
    out: OutFile,
    work: Annotated[Path, typer.Option(help="folder of computed references, which campaigns share")],
    minutes: Annotated[float | None, typer.Option(min=0, help="that this job may take")] = None,
) -> None:
    """Compute elements and reference phases with the settings of the validated candidates."""
    from dao_pipeline.comparison.references import reference_energies as run

    run(_campaign(config), validation, crysdb, out, work, minutes)


@command
def compare_dft(
    config: ConfigFile,
    screened: Annotated[Path, typer.Option(help="table written by screen-candidates")],
    out: OutDir,
    validation: Annotated[Path | None, typer.Option(help="folder written by validate-qe")] = None,
    references: Annotated[Path | None, typer.Option(help="table written by reference-energies")] = None,
    timings: Annotated[Path | None, typer.Option(help="folder of Snakemake's benchmark files")] = None,
    known: Annotated[Path | None, typer.Option(help="table of the crystals that candidates aim at")] = None,
) -> None:
    """Compare candidates with DFT: geometry, order of polymorphs, energies, cost."""
    from dao_pipeline.comparison.compare import compare_dft as run

    run(
        _campaign(config),
        screened,
        out,
        validation=validation,
        references=references,
        timings=timings,
        known=known,
    )


@command
def report(
    config: ConfigFile,
    results: Annotated[Path, typer.Option(help="folder of the campaign")],
    out: Annotated[Path, typer.Option(help="HTML file to write")],
) -> None:
    """Write one self-contained HTML page about whatever stages have run."""
    from dao_pipeline.report.page import write_report as run

    run(_campaign(config), results, out)


@command
def summary(
    results: Annotated[Path, typer.Argument(help="folder of a campaign, e.g. results/demo")],
) -> None:
    """Print the best candidates of a campaign and where its report is."""
    from dao_pipeline.report.summary import print_summary

    print_summary(results)


@command
def check(
    campaigns: Annotated[list[Path], typer.Argument(help="campaign files (YAML)")],
) -> None:
    """Validate campaigns before any job starts: keys, values, files, compositions, elements."""
    from dao_pipeline.preflight import check_campaigns

    for path, campaign in check_campaigns(campaigns).items():
        typer.echo(f"{path}: campaign {campaign.name} is sound")


@command
def doctor(
    campaigns: Annotated[list[Path] | None, typer.Argument(help="campaigns that should run here (YAML)")] = None,
    clone: Annotated[Path, typer.Option(help="folder with the Snakefile")] = Path(),
    site: Annotated[Path | None, typer.Option(help="the site's file [default: slurm/site.yaml]")] = None,
    wait: Annotated[int, typer.Option(help="seconds a node may take to be free; 0: start no job", min=0)] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Look whether all is in place on this site, and say what to mend; ends with 1 if something must be."""
    from dao_pipeline.cluster.doctor import examine, report

    raise typer.Exit(report(examine(clone.resolve(), campaigns or [], site, wait), as_json))


@command
def resolve_config(config: ConfigFile, out: Annotated[Path, typer.Option(help="YAML file to write")]) -> None:
    """Write a campaign with every default filled in."""
    from dao_pipeline.config.write import write_resolved

    write_resolved(_campaign(config), out)


@command
def generate_config(
    out: Annotated[Path, typer.Option(help="folder for default.yaml and schema.json")] = Path("config"),
) -> None:
    """Write the commented default configuration and its JSON schema from the models."""
    from dao_pipeline.config.write import write_config_files

    write_config_files(out)


@command
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="official checkpoint (.ckpt), or its folder with last.ckpt")],
    out: Annotated[Path, typer.Option("--out", help="model directory to write")],
    kind: Annotated[str | None, typer.Option(help="dao_p or dao_g; default: what the hyperparameters say")] = None,
) -> None:
    """Turn an official DAO checkpoint into a model directory; no code in the file is run."""
    from dao_pipeline.model.official import import_checkpoint as run

    if kind not in (None, "dao_p", "dao_g"):
        raise UserError(f"--kind {kind}: no such kind of model; say dao_p or dao_g.")
    for line in run(source, out, kind):  # type: ignore[arg-type]  # checked above
        typer.echo(line)
    typer.echo(f"wrote {out}")


@command
def perturb_crystals(
    crystals: Annotated[Path, typer.Option(help="table of relaxed crystals with labels")],
    out: OutFile,
    work: WorkDir,
    copies: Annotated[int, typer.Option(min=1, help="of each crystal")] = 2,
    displacement: Annotated[
        tuple[float, float],
        typer.Option(min=1e-4, help="smallest and largest root mean square displacement, angstrom"),
    ] = (0.02, 0.3),
    strain: Annotated[float, typer.Option(min=0, max=0.3, help="largest root mean square strain")] = 0.06,
    min_distance: Annotated[
        float, typer.Option(min=0, help="angstrom; copies with closer atoms are left out")
    ] = 0.7,
    max_rise: Annotated[float, typer.Option(min=0, help="eV/atom; copies that cost more are left out")] = 1.0,
    max_atoms: Annotated[int, typer.Option(min=1, help="larger cells are left out")] = 12,
    limit: Annotated[int | None, typer.Option(min=1, help="crystals at most, drawn at random")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
) -> None:
    """Distort crystals and label them with what that costs by CHGNet: a further source of crystals for DAO-P."""
    from dao_pipeline.sources.perturbed import Perturbation
    from dao_pipeline.sources.perturbed import perturb_crystals as run

    if displacement[0] > displacement[1]:
        raise UserError(f"--displacement {displacement[0]} {displacement[1]}: give the smaller one first.")
    settings = Perturbation(
        copies=copies,
        displacement=displacement,
        strain=strain,
        min_distance=min_distance,
        max_rise=max_rise,
        max_atoms=max_atoms,
        limit=limit,
        seed=seed,
    )
    run(crystals, out, work, settings, workers)


@command
def build_embedded(
    out: OutFile,
    work: WorkDir,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
) -> None:
    """Rebuild the embedded crystals: prototypes and substitutions, relaxed and labelled with CHGNet."""
    from dao_pipeline.sources.embedded import build

    build(out, work=work, workers=workers)


for tool in TOOLS:
    command(tool)

if __name__ == "__main__":
    app()
