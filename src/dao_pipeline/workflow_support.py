"""What the Snakefile needs: the campaigns of a run, the files of each stage, and what makes a stage rerun.

Every job parses the Snakefile again, so nothing heavy (torch, pymatgen) may be imported from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from dao_pipeline.candidates.compositions import asked_compositions, count_compositions
from dao_pipeline.candidates.plan import planned_shards, shard_file
from dao_pipeline.cluster.jobs import end_orphans, retry_outside, use_site
from dao_pipeline.cluster.site import Site
from dao_pipeline.config import STAGE_SETTINGS, Campaign, Resources, expand_path, stage_settings
from dao_pipeline.config.read import deep_merge, parse_campaign, read_yaml, variants
from dao_pipeline.errors import UserError

DEFAULT_CAMPAIGN = Path("config/demo.yaml")
COMPUTE_KINDS = ("cpu", "training", "sampling", "dft")
Kind = Literal["cpu", "training", "sampling", "dft"]

# Campaigns ----------------------------------------------------------------------------------------------------


def load_campaigns(
    config: Mapping[str, Any], configfiles: Sequence[Path] = (), default: Path = DEFAULT_CAMPAIGN
) -> dict[str, Campaign]:
    """The campaigns that a Snakemake command line asks for, by origin: the files they were read from.

    ``configfiles`` are the files given with ``--configfile``: together they are one campaign, later files over
    earlier ones. A key ``campaigns`` (in ``config`` or in such a file) is a campaign file or a list of them,
    each a campaign of its own. Without either, ``default`` is the campaign. All other keys of ``config``
    (``--config``) are merged over every campaign.

    Raises UserError, with every problem of every campaign, for files that cannot be read, wrong keys and values.
    """
    common: dict[str, Any] = {}
    for path in configfiles:
        common = deep_merge(common, read_yaml(path))
    listed = config.get("campaigns", common.pop("campaigns", None))
    overrides = {key: _with_nulls(value) for key, value in config.items() if key != "campaigns"}
    common = deep_merge(common, overrides)
    note = " with --config" if overrides else ""
    if listed is not None:
        values = {str(path): deep_merge(read_yaml(path), common) for path in _campaign_files(listed)}
    elif configfiles:
        values = {" + ".join(str(_short(path)) for path in configfiles): common}
    else:
        values = {str(default): deep_merge(read_yaml(default), common)}
    campaigns, problems = {}, []
    for origin, given in values.items():
        try:
            campaigns[origin] = parse_campaign(given, origin + note)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return campaigns


def _with_nulls(value: Any) -> Any:
    """What ``--config`` gave, where Snakemake reads ``null`` inside brackets as text."""
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    return None if value in ("null", "~") else value


def _campaign_files(listed: object) -> list[Path]:
    files = [listed] if isinstance(listed, str) else listed
    if not isinstance(files, list) or not files or not all(isinstance(item, str) for item in files):
        raise UserError(
            f"campaigns = {listed!r}: expected a campaign file or a list of them, "
            """e.g. --config campaigns="[config/demo.yaml, config/campaigns/mp20_small.yaml]"."""
        )
    return [Path(item) for item in files]


def _short(path: Path) -> Path:
    """``path`` relative to the working directory where that is shorter to read."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


# Files, settings and resources of the rules ---------------------------------------------------------------------


class Campaigns(Mapping[str, Campaign]):
    """The campaigns of a run, and every question that a rule asks about them.

    Methods that take a stage or a kind of resources return a function of wildcards, as Snakemake wants it;
    so no rule can read another campaign's configuration.

    The variants of an ablation are campaigns of their own, named CAMPAIGN/ablation/VARIANT: the same rules make
    them. They are no targets, and what several of them would make alike is made once (``owner``).

    site: the cluster that jobs run on; its limits bound what they ask for. Without one nothing does.
    submits: this Snakemake is the one that submits jobs to it.
    """

    def __init__(self, campaigns: Mapping[str, Campaign], site: Site | None = None, submits: bool = False) -> None:
        self._campaigns = dict(campaigns)
        self._site, self._submits = site or Site(), submits
        self._variants = {name: list(variants(c, name).values()) for name, c in campaigns.items()}
        self._all = self._campaigns | {v.name: v for found in self._variants.values() for v in found}
        self._made_from: dict[tuple[str, str], str] = {}

    def __getitem__(self, name: str) -> Campaign:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._campaigns)

    def __len__(self) -> int:
        return len(self._campaigns)

    @property
    def pattern(self) -> str:
        """Regular expression of the wildcard ``campaign``."""
        return "|".join(re.escape(name) for name in self._all)

    def owner(self, stage: str, name: str) -> Campaign:
        """The campaign in whose folder ``stage`` of the campaign ``name`` is made.

        It is itself, unless ``name`` is a variant in which the stage has the same settings and inputs as in its
        campaign or in an earlier variant.
        """
        if name in self._campaigns:
            return self[name]
        base = name.removesuffix(f"/ablation/{name.rpartition('/')[2]}")
        wanted = self.made_from(stage, name)
        others = (base, *(variant.name for variant in self._variants[base]))
        return next(self[other] for other in others if self.made_from(stage, other) == wanted)

    def made_from(self, stage: str, name: str) -> str:
        """Hash of what a stage is made from: its settings, and those of all that it reads."""
        if (stage, name) not in self._made_from:
            campaign = self[name]
            read = [self.made_from(other, name) for other in _read_by(campaign, stage)]
            made = bool(stage_files(campaign, stage))  # who does without a stage lends no other its files
            text = json.dumps([stage, _used(campaign, stage), read, made], sort_keys=True)
            self._made_from[stage, name] = hashlib.sha256(text.encode()).hexdigest()
        return self._made_from[stage, name]

    def at(self, stage: str, path: str) -> Callable[[Any], str]:
        """A file of ``stage``, given by its path in the folder of a campaign; wildcards in braces.

        Of DAO-P, where the campaign names one, that in its directory.
        """

        def of(wildcards: Any) -> str:
            given = self[wildcards.campaign].energy_model.pretrained
            if stage == "train_energy_model" and given:
                return f"{expand_path(given)}/{Path(path).name}"
            folder = self.owner(stage, wildcards.campaign).name
            return f"results/{folder}/{path.format(**dict(wildcards.items()))}"

        return of

    # params

    def settings(self, stage: str) -> Callable[[Any], str]:
        """The configuration values that ``stage`` uses, as JSON: other edits do not rerun it."""

        def of(wildcards: Any) -> str:
            return json.dumps(_used(self[wildcards.campaign], stage), sort_keys=True)

        return of

    def shard(self, wildcards: Any) -> str:
        """What a round of a shard holds, as JSON: when a campaign grows, what is full stays as it is."""
        return planned_shard(self[wildcards.campaign], int(wildcards.shard), int(wildcards.round))

    # threads and resources

    def resources(self, kind: Kind, wildcards: Any) -> Resources:
        """What a kind of stage asks of the machine in this campaign."""
        found = getattr(self[wildcards.campaign].compute, kind)
        assert isinstance(found, Resources)
        return found

    def threads(self, kind: Kind) -> Callable[[Any], int]:
        """Cores of a job."""
        return lambda wildcards: self.resources(kind, wildcards).threads

    def gpus(self, kind: Kind) -> Callable[[Any], int | None]:
        """GPUs of a job; None, which is no resource at all, for 0 and where the site wants ``gres``."""
        return lambda wildcards: self._site.gpus(self.resources(kind, wildcards))

    def gpu_model(self, kind: Kind) -> Callable[[Any], str | None]:
        """Model of these GPUs, if the site names one."""
        return lambda wildcards: self._site.model(self.resources(kind, wildcards))

    def gres(self, kind: Kind) -> Callable[[Any], str | None]:
        """GPUs of a job where the site wants them asked for as generic resources."""
        return lambda wildcards: self._site.gres(self.resources(kind, wildcards))

    def mem_mb(self, kind: Kind) -> Callable[[Any, int], int]:
        """Megabytes of a job; more at each attempt, as far as a partition gives them."""
        return lambda wildcards, attempt: self._site.bounded(self.resources(kind, wildcards), attempt)[0]

    def runtime(self, kind: Kind) -> Callable[[Any, int], int]:
        """Minutes of a job; more at each attempt, as far as a partition gives them."""
        return lambda wildcards, attempt: self._site.bounded(self.resources(kind, wildcards), attempt)[1]

    # inputs

    def raw_source(self, wildcards: Any) -> list[str]:
        """The campaign's own files of crystals, so that an edit of one reruns the download."""
        sources = [source for _, source in self[wildcards.campaign].data.each()]
        return [str(expand_path(source.path)) for source in sources if source.source == "file" and source.path]

    def excluded(self, wildcards: Any) -> list[str]:
        """Tables whose compositions are kept out of training."""
        return [str(expand_path(path)) for path in self[wildcards.campaign].crysdb.exclude]

    def finetuning_table(self, wildcards: Any) -> list[str]:
        """The campaign's own table for fine-tuning."""
        path = self[wildcards.campaign].finetune.path
        return [str(expand_path(path))] if path else []

    def hull_entries(self, wildcards: Any) -> list[str]:
        """The campaign's own table of phases for hulls by a model; an edit of it screens anew."""
        path = self[wildcards.campaign].screen.hull.entries
        return [] if path in (None, "crysdb") else [str(expand_path(path))]

    def reference_phases(self, wildcards: Any) -> list[str]:
        """The campaign's own table of reference phases for hulls by DFT."""
        path = self[wildcards.campaign].compare_dft.phases
        return [str(expand_path(path))] if path else []

    def dft_baselines(self, wildcards: Any) -> list[str]:
        """Tables of DFT results from elsewhere, and of known crystals to compare with."""
        settings = self[wildcards.campaign].compare_dft
        paths = [baseline.path for baseline in settings.baselines]
        return [str(expand_path(path)) for path in (*paths, settings.known) if path]

    def property_table(self, wildcards: Any) -> list[str]:
        """The campaign's own table of crystals with labels."""
        path = self[wildcards.campaign].property.path
        return [str(expand_path(path))] if path else []

    def pretrained(self, wildcards: Any) -> list[str]:
        """Weights that fine-tuning starts from: the last stage of pretraining, a given model, or none."""
        campaign = self[wildcards.campaign]
        if given := campaign.generator.pretrained:
            return [f"{expand_path(given)}/model.safetensors"]
        if not campaign.pretrain.stages:
            return []
        stage = f"stage{campaign.pretrain.stages}"
        return [self.at(f"pretrain_generator_{stage}", f"models/dao_g/{stage}/model.safetensors")(wildcards)]

    def model(self, stage: str) -> Callable[[Any], list[str]]:
        """Weights of the model that ``stage`` trains, or of the one given in its place; nothing where the campaign
        does without."""
        return lambda wildcards: [f"{folder}/model.safetensors" for folder in self._model_folder(stage, wildcards)]

    def model_option(self, name: str, stage: str) -> Callable[[Any], str]:
        """The command-line option that names that model's directory; empty where the campaign does without."""
        return lambda wildcards: "".join(
            f"{name} {shlex.quote(folder)}" for folder in self._model_folder(stage, wildcards)
        )

    def _model_folder(self, stage: str, wildcards: Any) -> list[str]:
        campaign, folder = self[wildcards.campaign], MODEL_FOLDERS[stage]
        given = {"train_energy_model": campaign.energy_model.pretrained, "train_ranker": campaign.ranking.model}
        if text := given.get(stage):
            return [str(expand_path(text))]
        return [self.at(stage, folder)(wildcards)] if stage_files(campaign, stage) else []

    def weighing_model(self, wildcards: Any) -> list[str]:
        """DAO-P's weights, where the ranker weighs its energies."""
        return self.model("train_energy_model")(wildcards) if self[wildcards.campaign].ranking.energy else []

    def weighing_option(self, wildcards: Any) -> str:
        """What ``train-ranker`` is told about DAO-P."""
        files = self.weighing_model(wildcards)
        return self.model_option("--energy-model", "train_energy_model")(wildcards) if files else ""

    def init(self, wildcards: Any) -> str:
        """The option that names those weights' folder."""
        return "".join(f"--init {shlex.quote(str(Path(file).parent))}" for file in self.pretrained(wildcards))

    def proposed(self, wildcards: Any) -> list[str]:
        """The templates of a round's candidates, where the campaign makes some from templates."""
        if not self[wildcards.campaign].generate.templates:
            return []
        return [self.at("propose_templates", "candidates/templates/shard-{shard}-{round}.parquet")(wildcards)]

    def rounds(self, stage: str, folder: str) -> Callable[[Any], list[str]]:
        """Files of all rounds of a shard."""

        def of(wildcards: Any) -> list[str]:
            owner = self.owner(stage, wildcards.campaign)
            names = (shard_file(int(wildcards.shard), number) for number in range(owner.generate.rounds))
            return [f"results/{owner.name}/{folder}/{name}" for name in names]

        return of

    def named_candidate(self, wildcards: Any) -> str:
        """Id of a DFT job's candidate, where the campaign names it: an edit of the list reruns what changed."""
        named = _named_candidates(self[wildcards.campaign])
        return named[int(wildcards.number)] if named else ""

    def stage_input(self, stage: str) -> Callable[[Any], list[str]]:
        """All files of ``stage`` in one campaign."""
        return lambda wildcards: stage_files(self.owner(stage, wildcards.campaign), stage)

    def ablated(self, wildcards: Any) -> list[str]:
        """What is known of each variant: which known crystals it found, and how its generator was trained."""
        names = [variant.name for variant in self._variants[wildcards.campaign]]
        return [file for name in names for file in self._ablated(name)]

    def _ablated(self, name: str) -> tuple[str, str]:
        evaluation, generator = (self.owner(stage, name).name for stage in ("evaluate", "finetune_generator"))
        return (
            f"results/{evaluation}/evaluation/targets.parquet",
            f"results/{generator}/models/dao_g/finetuned/config.json",
        )

    def ablated_folders(self, wildcards: Any) -> str:
        """The options that name each variant's folders of these files."""
        options = []
        for variant in self._variants[wildcards.campaign]:
            folders = (str(Path(file).parent) for file in self._ablated(variant.name))
            options.append(f"--variant {shlex.quote('='.join([variant.name.split('/')[-1], *folders]))}")
        return " ".join(options)

    def report_input(self, wildcards: Any) -> list[str]:
        """All results that the report shows."""
        campaign = self[wildcards.campaign]
        return [path for stage in REPORTED for path in stage_files(campaign, stage)]

    # targets

    def stage(self, stage: str) -> list[str]:
        """All files of ``stage`` in all campaigns."""
        return [path for campaign in self.values() for path in stage_files(campaign, stage)]

    # before the first job

    def prepare(self) -> None:
        """Write what jobs read besides their inputs, and put away what they must not read.

        The configuration with every default filled in, and the compositions that it asks for, are no rule's
        output: a file that jobs depend on would either rerun every stage at every edit or, as ``ancient``, hide
        other reasons to run from Snakemake.
        """
        from dao_pipeline.candidates.asked import resolve
        from dao_pipeline.config.write import write_resolved

        if self._submits:
            end_orphans(Path.cwd())
        for name, campaign in self._all.items():
            write_resolved(campaign, Path(f"results/{name}/config.yaml"))
            if not campaign.generate.known:
                resolve(campaign, write=True)
            set_aside(campaign)


def _used(campaign: Campaign, stage: str) -> dict[str, Any]:
    """What a stage uses besides its inputs: settings, and of the plan the cells that they and files ask for."""
    used = stage_settings(campaign, stage)
    if stage == "plan_candidates" and not campaign.generate.known:
        from dao_pipeline.candidates.asked import asked_hash

        used["asked"] = asked_hash(campaign)
    return used


def option(name: str, files: Sequence[str]) -> str:
    """A command-line option with the file of an input that a campaign may do without; empty without it."""
    return f"{name} {shlex.quote(str(files[0]))}" if files else ""


def folder_option(name: str, files: Sequence[str]) -> str:
    """The same with the folder of the files of a stage."""
    return f"{name} {shlex.quote(str(Path(files[0]).parent))}" if files else ""


def set_aside(campaign: Campaign) -> None:
    """Move shards that the campaign no longer has, because it shrank, from results/ to work/<campaign>/earlier/.

    Stages read whole folders of shards, and of the timings of their jobs, which go with them. Nothing is deleted.
    """
    results = Path("results", campaign.name)
    for stage in FAN_OUT:
        wanted = [Path(file) for file in stage_files(campaign, stage)]
        if not wanted:
            continue
        kind = wanted[0].name.partition("-")[0]
        timed = {results / "timings" / f"{stage}-{path.stem.partition('-')[2]}.tsv" for path in wanted}
        shards = set(wanted[0].parent.glob(f"{kind}-*.parquet")) - set(wanted)
        timings = set((results / "timings").glob(f"{stage}-*.tsv")) - timed
        for path in sorted(shards | timings):
            target = Path("work", campaign.name, "earlier", path.relative_to(results))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            print(f"{path} is not part of the campaign any more: moved to {target}", file=sys.stderr)


MODEL_FOLDERS = {
    "train_energy_model": "models/dao_p",
    "finetune_generator": "models/dao_g/finetuned",
    "train_ranker": "models/ranker",
}
"""Where stages write the models that candidates are made and judged with."""

MODEL_FILES = ("model.safetensors", "config.json", "metrics.parquet")
STAGES = tuple(STAGE_SETTINGS)
REPORTED = (
    "build_crysdb",
    "train_energy_model",
    "relax_dataset",
    "pretrain_generator_stage1",
    "pretrain_generator_stage2",
    "finetune_generator",
    "plan_candidates",
    "generate_candidates",
    "screen_candidates",
    "evaluate",
    "validate_qe",
    "compare_dft",
)
"""Stages whose files the report reads."""

FAN_OUT = (
    "relax_dataset",
    "plan_shard",
    "propose_templates",
    "generate_candidates",
    "screen_shard",
    "validate_qe",
)
"""Rules that write one file per job into a folder."""

RULES_OF_STAGE = {
    "pretrain_generator": ("pretrain_generator_stage1", "pretrain_generator_stage2"),
    "screen_candidates": ("screen_shard", "screen_candidates"),
}
"""Stages that are more than one rule."""


_BESIDE = {"plan_candidates": ("plan_shard",)}
"""Rules without settings of their own, with the stage that they stand beside."""

RULES = tuple(rule for stage in STAGE_SETTINGS for rule in (*_BESIDE.get(stage, ()), stage))
"""Rules of the workflow in the order of the stages."""


def stage_jobs(campaign: Campaign, rule: str) -> int:
    """Jobs of a rule, if none of its files were there yet."""
    files = stage_files(campaign, rule)
    return len(files) if rule in FAN_OUT else min(1, len(files))


def _read_by(campaign: Campaign, stage: str) -> tuple[str, ...]:
    """The stages whose files ``stage`` reads, up to the evaluation; what those read is not repeated."""
    stages = _pretraining(campaign)
    pairs = ("pair_templates",) if campaign.generator.template_paths > 0 else ()
    proposed = ("propose_templates",) if campaign.generate.templates > 0 else ()
    energies = ("train_energy_model",) if campaign.energy_model.enabled else ()
    match stage:
        case "download":
            return ()
        case "pair_templates":
            return ("index_templates",)
        case "propose_templates":
            return ("plan_candidates", "index_templates")
        case "pretrain_generator_stage1":
            return ("build_crysdb", *pairs)
        case "relax_dataset":
            return ("train_energy_model",)
        case "screen_shard":
            ranker = ("train_ranker",) if campaign.trains_ranker() else ()
            return ("plan_candidates", "generate_candidates", "sort_references", *energies, *ranker)
        case "screen_candidates":
            return ("plan_candidates", "screen_shard")
        case "train_ranker":
            return ("build_crysdb", "index_templates", *(energies if campaign.ranking.energy else ()))
        case "pretrain_generator_stage2":
            return ("relax_dataset", "pretrain_generator_stage1", *pairs)
        case "finetune_generator":
            return (f"pretrain_generator_stage{stages}" if stages else "build_crysdb", *pairs)
        case "generate_candidates":
            generator = ("finetune_generator",) if campaign.generator.enabled else ()
            return ("plan_candidates", *energies, *generator, *proposed)
        case "evaluate":
            return ("screen_candidates",)
        case "build_crysdb":
            return ("download",)
        case _:
            return ("build_crysdb",)


def stage_files(campaign: Campaign, stage: str) -> list[str]:
    """What ``stage``, or the rule ``plan_shard``, writes for ``campaign``; nothing if it does without it."""
    base = f"results/{campaign.name}"
    stages = _pretraining(campaign)
    match stage:
        case "download":
            files = ["raw/crystals.parquet", "raw/rejected.parquet"]
        case "build_crysdb":
            files = [f"crysdb/{name}.parquet" for name in ("train", "val", "test", "rejected")]
        case "train_energy_model":
            own = campaign.energy_model.enabled and campaign.energy_model.pretrained is None
            files = [f"models/dao_p/{name}" for name in MODEL_FILES] if own else []
        case "index_templates":
            names = ("index.json", "templates.parquet", "index.safetensors")
            uses = (campaign.generate.templates, campaign.generator.template_paths, campaign.trains_ranker())
            files = [f"templates/index/{name}" for name in names] if any(uses) else []
        case "pair_templates":
            files = ["templates/pairs.parquet"] if campaign.generator.template_paths > 0 else []
        case "propose_templates":
            rounds = _rounds(campaign) if campaign.generate.templates > 0 else []
            files = [f"candidates/templates/{name}" for name in rounds]
        case "relax_dataset":
            jobs = campaign.relax.jobs if stages == 2 else 0
            files = [f"relaxed/shard-{job:03d}.parquet" for job in range(jobs)]
        case "pretrain_generator_stage1" | "pretrain_generator_stage2":
            folder = stage.removeprefix("pretrain_generator_")
            files = [f"models/dao_g/{folder}/{name}" for name in MODEL_FILES] if stages >= int(stage[-1]) else []
        case "finetune_generator":
            own = campaign.generator.enabled
            files = [f"models/dao_g/finetuned/{name}" for name in MODEL_FILES] if own else []
        case "plan_candidates":
            files = ["candidates/plan.parquet"]
        case "plan_shard":
            files = [f"candidates/planned/{name}" for name in _rounds(campaign)]
        case "generate_candidates":
            files = [f"candidates/generated/{name}" for name in _rounds(campaign)]
        case "train_ranker":
            tables = ("known.parquet", "examples.parquet")
            own = campaign.trains_ranker()
            files = [f"models/ranker/{name}" for name in (*MODEL_FILES, *tables)] if own else []
        case "sort_references":
            files = ["candidates/references.parquet"]
        case "screen_shard":
            files = [f"candidates/screened/shard-{shard:05d}.parquet" for shard in range(planned_shards(campaign))]
        case "screen_candidates":
            files = ["candidates/screened.parquet", "candidates/top.zip"]
        case "evaluate":
            results = ("samples", "targets", "summary", "by_distance")
            files = [f"evaluation/{name}.parquet" for name in results] if campaign.generate.known else []
        case "finetune_property":
            wanted = campaign.property.enabled
            files = [f"models/property/{name}" for name in (*MODEL_FILES, "rejected.parquet")] if wanted else []
        case "predict_property":
            files = ["properties/predictions.parquet"] if campaign.property.enabled else []
        case "validate_qe":
            named = _named_candidates(campaign) if campaign.qe.enabled else []
            number = count_compositions(campaign) * campaign.qe.top_k if named is None else len(named)
            files = [f"validation/candidate-{n:04d}.parquet" for n in range(number)]
        case "reference_energies":
            files = ["references/phases.parquet"] if campaign.qe.enabled and campaign.compare_dft.elements else []
        case "compare_dft":
            compared = campaign.qe.enabled or campaign.compare_dft.baselines
            names = ("candidates", "compositions", "summary")
            files = [f"comparison/{name}.parquet" for name in names] if compared else []
        case "ablate":
            files = (
                [f"ablation/{name}" for name in ("summary.parquet", "table.md")]
                if campaign.ablation.variants
                else []
            )
        case "report":
            files = ["report/index.html"]
        case _:
            raise ValueError(f"{stage!r} is no stage; stages are {', '.join(STAGES)}")
    return [f"{base}/{name}" for name in files]


def _pretraining(campaign: Campaign) -> int:
    """Stages of pretraining that the campaign runs."""
    own = campaign.generator.enabled and campaign.generator.pretrained is None
    return campaign.pretrain.stages if own else 0


def _rounds(campaign: Campaign) -> list[str]:
    """Names of the files of all rounds of all shards."""
    shards, rounds = range(planned_shards(campaign)), range(campaign.generate.rounds)
    return [shard_file(shard, number) for shard in shards for number in rounds]


def _named_candidates(campaign: Campaign) -> list[str] | None:
    """Candidates that the campaign names for DFT; None: those of high rank."""
    if campaign.qe.candidates is None:
        return None
    from dao_pipeline.qe.select import named_candidates

    return named_candidates(campaign.qe)


def planned_shard(campaign: Campaign, shard: int, round_number: int) -> str:
    """What a round of a shard of candidates holds, as JSON, from what the campaign asks for alone.

    Equal texts mean equal rows of the plan as long as the training and test splits are the same.
    """
    generate = campaign.generate
    start, first = shard * generate.shard_compositions, round_number * generate.round_samples
    stop = min(start + generate.shard_compositions, count_compositions(campaign))
    asked = asked_compositions(campaign, start, stop)
    return json.dumps(
        {
            "compositions": ["test split", stop] if asked is None else [c.composition for c in asked],
            "samples": [first, min(first + generate.round_samples, generate.samples)],
            "blocks": [generate.shard_compositions, generate.round_samples],
            "template_share": generate.template_share,
            "max_atoms": generate.max_atoms,
        }
    )


# Snakemake ----------------------------------------------------------------------------------------------------


def open_campaigns(workflow: Any) -> Campaigns:
    """The campaigns of this Snakemake run, checked; ends with a message if one is not sound."""
    _prefer_this_environment()
    submits = workflow.resource_settings.nodes is not None and not workflow.remote_exec
    if submits:
        # A cluster run: `cores` of the default profile are this machine's, and must not limit the jobs' threads.
        workflow.global_resources["_cores"] = None
    default = _short(Path(str(workflow.basedir)) / DEFAULT_CAMPAIGN)
    try:
        settings = workflow.config_settings
        campaigns = load_campaigns(settings.config, settings.configfiles, default)
        if workflow.is_main_process:  # jobs were checked before they were started
            from dao_pipeline.preflight import check_loaded

            check_loaded(campaigns)
        site = use_site(workflow, campaigns) if submits or workflow.remote_exec else None
    except UserError as error:
        # An exception would be printed with a traceback and the Snakefile's line, which are not to blame.
        raise SystemExit(f"error: {error}\nNo job was started.") from None
    return Campaigns({campaign.name: campaign for campaign in campaigns.values()}, site, submits)


def _prefer_this_environment() -> None:
    """Let jobs find the ``dao-pipeline`` that is installed beside this Python, activated or not."""
    folder = str(Path(sys.executable).parent)
    paths = os.environ.get("PATH", "").split(os.pathsep)
    if paths[0] != folder and (Path(folder) / "dao-pipeline").exists():
        os.environ["PATH"] = os.pathsep.join([folder, *paths])


def name_stages(workflow: Any, campaigns: Campaigns) -> None:
    """Let ``snakemake STAGE`` mean the files of that stage in all campaigns.

    The rules of the stages carry the stages' names, so that ``-R``, ``--until``, ``--omit-from``,
    ``--set-threads`` and so on take them; but Snakemake refuses a rule with wildcards as a target. So the names
    are replaced by files after the command line is read and before the graph is built.
    """
    if workflow.remote_exec:
        retry_outside(workflow)
    prepare = workflow._prepare_dag

    @wraps(prepare)
    def prepare_named(*args: Any, **kwargs: Any) -> Any:
        settings = workflow.dag_settings
        settings.targets = _target_files(settings.targets, campaigns, workflow.is_rule)
        for option in ("forcerun", "until", "omit_from"):
            setattr(settings, option, _rule_names(getattr(settings, option)))
        return prepare(*args, **kwargs)

    workflow._prepare_dag = prepare_named


def _target_files(targets: Iterable[str], campaigns: Campaigns, is_rule: Callable[[str], bool]) -> frozenset[str]:
    files: list[str] = []
    for target in targets:
        if target in STAGES or target in RULES_OF_STAGE:
            files.extend(_stage_target(target, campaigns))
        elif target.isidentifier() and not is_rule(target):
            # No file of the workflow looks like that, so it is a misspelt stage.
            stages = [*RULES_OF_STAGE, *(stage for stage in STAGES if stage not in _parts())]
            similar = get_close_matches(target, stages, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"stages are {', '.join(stages)}."
            raise SystemExit(f"error: there is no stage {target!r}; {hint}\nNo job was started.")
        else:
            files.append(target)
    return frozenset(files)


def _parts() -> set[str]:
    return {rule for rules in RULES_OF_STAGE.values() for rule in rules}


def _stage_target(stage: str, campaigns: Campaigns) -> list[str]:
    files = [path for rule in RULES_OF_STAGE.get(stage, (stage,)) for path in campaigns.stage(rule)]
    if not files:
        raise SystemExit(
            f"error: no campaign of {', '.join(campaigns)} has a stage {stage}: {_WHY_NOT[stage]}.\n"
            "No job was started."
        )
    return files


def _rule_names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(rule for name in names for rule in RULES_OF_STAGE.get(name, (name,)))


_NO_TEMPLATES = "generate.template_share leaves none of generate.samples to templates"
_PRETRAINED = (
    "generator.pretrained names a model that is pretrained already, pretrain.stages leaves it out, or "
    "generator.enabled is false"
)
_WHY_NOT = {
    "train_energy_model": "energy_model.pretrained names a DAO-P, or energy_model.enabled is false",
    "index_templates": f"{_NO_TEMPLATES}, so is generator.template_paths, and no ranker is trained",
    "finetune_generator": "generator.enabled is false",
    "pair_templates": "generator.template_paths is 0",
    "propose_templates": _NO_TEMPLATES,
    "relax_dataset": _PRETRAINED,
    "pretrain_generator": _PRETRAINED,
    "pretrain_generator_stage1": _PRETRAINED,
    "pretrain_generator_stage2": _PRETRAINED,
    "evaluate": "compositions are given, so there are no known crystals to compare with",
    "train_ranker": "ranking.enabled is false, or null without templates, or ranking.model names a ranker",
    "finetune_property": "property.enabled is false",
    "predict_property": "property.enabled is false",
    "validate_qe": "qe.enabled is false",
    "reference_energies": "qe.enabled or compare_dft.elements is false",
    "compare_dft": "qe.enabled is false, and compare_dft.baselines names no other results",
    "ablate": "ablation.variants is empty",
}
