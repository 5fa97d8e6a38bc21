# From compositions to ranked candidates.


rule plan_candidates:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
    output:
        "results/{campaign}/candidates/plan.parquet",
    log:
        "logs/{campaign}/plan_candidates.log",
    benchmark:
        "results/{campaign}/timings/plan_candidates.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        settings=campaigns.settings("plan_candidates"),
        code=stage_code_hash("plan_candidates"),
    shell:
        "dao-pipeline plan-candidates --config {params.config:q} --crysdb {params.crysdb:q} --out {output:q} > {log:q} 2>&1"


# A campaign that grows gets a new plan, and more shards (for more compositions) or more rounds of each (for more
# samples). Full ones stay as they are: each depends on its own part of the plan, which is written anew only if what
# `shard` says changes. To make a shard's jobs one job of a cluster, see `groups` in workflow/profiles/slurm.
rule plan_shard:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
    output:
        "results/{campaign}/candidates/planned/shard-{shard}-{round}.parquet",
    log:
        "logs/{campaign}/plan_shard-{shard}-{round}.log",
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        shard=campaigns.shard,
        code=stage_code_hash("plan_candidates"),
    shell:
        "dao-pipeline plan-candidates --config {params.config:q} --crysdb {params.crysdb:q} --shard {wildcards.shard}"
        " --round {wildcards.round} --out {output:q} > {log:q} 2>&1"


rule propose_templates:
    input:
        plan=campaigns.at(
            "plan_candidates", "candidates/planned/shard-{shard}-{round}.parquet"
        ),
        index=campaigns.stage_input("index_templates"),
    output:
        "results/{campaign}/candidates/templates/shard-{shard}-{round}.parquet",
    log:
        "logs/{campaign}/propose_templates-{shard}-{round}.log",
    benchmark:
        "results/{campaign}/timings/propose_templates-{shard}-{round}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        index=campaigns.at("index_templates", "templates/index"),
        settings=campaigns.settings("propose_templates"),
        code=stage_code_hash("propose_templates"),
    shell:
        "dao-pipeline propose-templates --config {params.config:q} --plan {input.plan:q} --index {params.index:q}"
        " --out {output:q} > {log:q} 2>&1"


rule generate_candidates:
    input:
        plan=campaigns.at(
            "plan_candidates", "candidates/planned/shard-{shard}-{round}.parquet"
        ),
        templates=campaigns.proposed,
        generator=campaigns.model("finetune_generator"),
        energy_model=campaigns.model("train_energy_model"),
    output:
        "results/{campaign}/candidates/generated/shard-{shard}-{round}.parquet",
    log:
        "logs/{campaign}/generate_candidates-{shard}-{round}.log",
    benchmark:
        "results/{campaign}/timings/generate_candidates-{shard}-{round}.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("sampling")
    resources:
        gpu=campaigns.gpus("sampling"),
        gpu_model=campaigns.gpu_model("sampling"),
        gres=campaigns.gres("sampling"),
        mem_mb=campaigns.mem_mb("sampling"),
        runtime=campaigns.runtime("sampling"),
    params:
        config="results/{campaign}/config.yaml",
        generator=campaigns.model_option("--generator", "finetune_generator"),
        energy_model=campaigns.model_option("--energy-model", "train_energy_model"),
        work="work/{campaign}/generate_candidates/shard-{shard}-{round}",
        templates=lambda wildcards, input: option("--templates", input.templates),
        settings=campaigns.settings("generate_candidates"),
        code=stage_code_hash("generate_candidates"),
    shell:
        "dao-pipeline generate-candidates --config {params.config:q} --plan {input.plan:q}"
        " {params.generator} {params.energy_model} {params.templates}"
        " --out {output:q} --work {params.work:q} > {log:q} 2>&1"


# Only in campaigns that rank by probability (ranking.enabled; by default those that use templates).
rule train_ranker:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
        index=campaigns.stage_input("index_templates"),
        energy_model=campaigns.weighing_model,
    output:
        weights="results/{campaign}/models/ranker/model.safetensors",
        config="results/{campaign}/models/ranker/config.json",
        metrics="results/{campaign}/models/ranker/metrics.parquet",
        known="results/{campaign}/models/ranker/known.parquet",
        examples="results/{campaign}/models/ranker/examples.parquet",
    log:
        "logs/{campaign}/train_ranker.log",
    benchmark:
        "results/{campaign}/timings/train_ranker.tsv"
    retries: 2
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        index=campaigns.at("index_templates", "templates/index"),
        energy_model=campaigns.weighing_option,
        out=subpath(output.weights, parent=True),
        work="work/{campaign}/train_ranker",
        settings=campaigns.settings("train_ranker"),
        code=stage_code_hash("train_ranker"),
    shell:
        "dao-pipeline train-ranker --config {params.config:q} --crysdb {params.crysdb:q}"
        " --templates {params.index:q} {params.energy_model} --out {params.out:q} --work {params.work:q}"
        " > {log:q} 2>&1"


rule sort_references:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
    output:
        "results/{campaign}/candidates/references.parquet",
    log:
        "logs/{campaign}/sort_references.log",
    benchmark:
        "results/{campaign}/timings/sort_references.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        crysdb=subpath(input.train, parent=True),
        settings=campaigns.settings("sort_references"),
        code=stage_code_hash("sort_references"),
    shell:
        "dao-pipeline sort-references --crysdb {params.crysdb:q} --out {output:q} > {log:q} 2>&1"


rule screen_shard:
    input:
        planned=campaigns.rounds("plan_candidates", "candidates/planned"),
        generated=campaigns.rounds("generate_candidates", "candidates/generated"),
        references=campaigns.at("sort_references", "candidates/references.parquet"),
        hull=campaigns.hull_entries,
        energy_model=campaigns.model("train_energy_model"),
        ranker=campaigns.model("train_ranker"),
    output:
        "results/{campaign}/candidates/screened/shard-{shard}.parquet",
    log:
        "logs/{campaign}/screen_shard-{shard}.log",
    benchmark:
        "results/{campaign}/timings/screen_shard-{shard}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        planned=campaigns.at("plan_candidates", "candidates/planned"),
        generated=campaigns.at("generate_candidates", "candidates/generated"),
        energy_model=campaigns.model_option("--energy-model", "train_energy_model"),
        ranker=campaigns.model_option("--ranker", "train_ranker"),
        work="work/{campaign}/screen_shard/shard-{shard}",
        settings=campaigns.settings("screen_shard"),
        code=stage_code_hash("screen_shard"),
    shell:
        "dao-pipeline screen-shard --config {params.config:q} --planned {params.planned:q}"
        " --generated {params.generated:q} --shard {wildcards.shard} --references {input.references:q}"
        " {params.energy_model} {params.ranker} --out {output:q} --work {params.work:q} > {log:q} 2>&1"


rule screen_candidates:
    input:
        plan=campaigns.at("plan_candidates", "candidates/plan.parquet"),
        screened=campaigns.stage_input("screen_shard"),
    output:
        screened="results/{campaign}/candidates/screened.parquet",
        cifs="results/{campaign}/candidates/top.zip",
    log:
        "logs/{campaign}/screen_candidates.log",
    benchmark:
        "results/{campaign}/timings/screen_candidates.tsv"
    conda:
        "../../envs/pipeline.yaml"
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        screened=campaigns.at("screen_shard", "candidates/screened"),
        settings=campaigns.settings("screen_candidates"),
        code=stage_code_hash("screen_candidates"),
    shell:
        "dao-pipeline screen-candidates --config {params.config:q} --plan {input.plan:q}"
        " --screened {params.screened:q} --out {output.screened:q} > {log:q} 2>&1"
