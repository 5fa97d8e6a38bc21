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


# A campaign that grows gets a new plan and more shards. Full shards stay as they are: each depends on its own part of
# the plan, which is written anew only if what `shard` says changes.
rule plan_shard:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
    output:
        "results/{campaign}/candidates/planned/shard-{shard}.parquet",
    log:
        "logs/{campaign}/plan_shard-{shard}.log",
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
        " --out {output:q} > {log:q} 2>&1"


rule propose_templates:
    input:
        plan=campaigns.at("plan_candidates", "candidates/planned/shard-{shard}.parquet"),
        index=campaigns.stage_input("index_templates"),
    output:
        "results/{campaign}/candidates/templates/shard-{shard}.parquet",
    log:
        "logs/{campaign}/propose_templates-{shard}.log",
    benchmark:
        "results/{campaign}/timings/propose_templates-{shard}.tsv"
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
        plan=campaigns.at("plan_candidates", "candidates/planned/shard-{shard}.parquet"),
        templates=campaigns.proposed,
        generator=campaigns.at(
            "finetune_generator", "models/dao_g/finetuned/model.safetensors"
        ),
        energy_model=campaigns.at(
            "train_energy_model", "models/dao_p/model.safetensors"
        ),
    output:
        "results/{campaign}/candidates/generated/shard-{shard}.parquet",
    log:
        "logs/{campaign}/generate_candidates-{shard}.log",
    benchmark:
        "results/{campaign}/timings/generate_candidates-{shard}.tsv"
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
        generator=subpath(input.generator, parent=True),
        energy_model=subpath(input.energy_model, parent=True),
        work="work/{campaign}/generate_candidates/shard-{shard}",
        templates=lambda wildcards, input: option("--templates", input.templates),
        settings=campaigns.settings("generate_candidates"),
        code=stage_code_hash("generate_candidates"),
    shell:
        "dao-pipeline generate-candidates --config {params.config:q} --plan {input.plan:q} --shard {wildcards.shard}"
        " --generator {params.generator:q} --energy-model {params.energy_model:q} {params.templates}"
        " --out {output:q} --work {params.work:q} > {log:q} 2>&1"


# Only in campaigns that rank by probability (ranking.enabled).
rule train_ranker:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
        energy_model=campaigns.at(
            "train_energy_model", "models/dao_p/model.safetensors"
        ),
    output:
        weights="results/{campaign}/models/ranker/model.safetensors",
        config="results/{campaign}/models/ranker/config.json",
        metrics="results/{campaign}/models/ranker/metrics.parquet",
        known="results/{campaign}/models/ranker/known.parquet",
        examples_train="results/{campaign}/models/ranker/examples_train.parquet",
        examples_val="results/{campaign}/models/ranker/examples_val.parquet",
    log:
        "logs/{campaign}/train_ranker.log",
    benchmark:
        "results/{campaign}/timings/train_ranker.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        energy_model=subpath(input.energy_model, parent=True),
        out=subpath(output.weights, parent=True),
        settings=campaigns.settings("train_ranker"),
        code=stage_code_hash("train_ranker"),
    shell:
        "dao-pipeline train-ranker --config {params.config:q} --crysdb {params.crysdb:q}"
        " --energy-model {params.energy_model:q} --out {params.out:q} > {log:q} 2>&1"


rule screen_candidates:
    input:
        plan=campaigns.at("plan_candidates", "candidates/plan.parquet"),
        generated=campaigns.stage_input("generate_candidates"),
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        energy_model=campaigns.at(
            "train_energy_model", "models/dao_p/model.safetensors"
        ),
        ranker=campaigns.ranker,
    output:
        screened="results/{campaign}/candidates/screened.parquet",
        cifs="results/{campaign}/candidates/top.zip",
    log:
        "logs/{campaign}/screen_candidates.log",
    benchmark:
        "results/{campaign}/timings/screen_candidates.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        generated=campaigns.at("generate_candidates", "candidates/generated"),
        crysdb=subpath(input.train, parent=True),
        energy_model=subpath(input.energy_model, parent=True),
        ranker=campaigns.ranker_option,
        settings=campaigns.settings("screen_candidates"),
        code=stage_code_hash("screen_candidates"),
    shell:
        "dao-pipeline screen-candidates --config {params.config:q} --plan {input.plan:q}"
        " --generated {params.generated:q} --crysdb {params.crysdb:q} --energy-model {params.energy_model:q}"
        " {params.ranker} --out {output.screened:q} > {log:q} 2>&1"
