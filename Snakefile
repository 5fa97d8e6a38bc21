# Crystal structure prediction, from crystals to ranked candidates and a report.
#
#   snakemake                                                  the demo campaign (config/demo.yaml)
#   snakemake --configfile config/campaigns/mp20_small.yaml    another campaign
#   snakemake --config campaigns="[a.yaml, b.yaml]"            several campaigns at once
#   snakemake --config generate='{samples: 5}'                 with another value of a key
#   snakemake generate_candidates                              up to a stage
#   snakemake -R screen_candidates                             a stage anew, and what follows
#   snakemake --profile slurm                                  on a Slurm cluster
#   snakemake -n                                               what would run, and why
from dao_pipeline.stage_code import stage_code_hash
from dao_pipeline.workflow_support import name_stages, open_campaigns, option

campaigns = open_campaigns(workflow)


wildcard_constraints:
    campaign=campaigns.pattern,
    job=r"\d+",
    shard=r"\d+",
    round=r"\d+",
    number=r"\d+",


# Short, or in need of the network that compute nodes often lack: these never become cluster jobs.
localrules:
    all,
    download,
    plan_candidates,
    plan_shard,


rule all:
    default_target: True
    input:
        campaigns.stage("report"),
        campaigns.stage("predict_property"),
        campaigns.stage("ablate"),


include: "workflow/rules/data.smk"
include: "workflow/rules/energy.smk"
include: "workflow/rules/templates.smk"
include: "workflow/rules/generator.smk"
include: "workflow/rules/candidates.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/properties.smk"
include: "workflow/rules/qe.smk"
include: "workflow/rules/report.smk"


name_stages(workflow, campaigns)


onstart:
    campaigns.prepare()
