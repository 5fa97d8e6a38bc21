# From compositions to ranked candidates.


rule plan_candidates:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        train="results/{campaign}/crysdb/train.parquet",
        test="results/{campaign}/crysdb/test.parquet",
    output:
        "results/{campaign}/candidates/plan.parquet",
    log:
        "logs/{campaign}/plan_candidates.log",
    benchmark:
        "results/{campaign}/timings/plan_candidates.tsv"
    conda:
        "dao-pipeline"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        crysdb=subpath(input.train, parent=True),
        settings=campaigns.settings("plan_candidates"),
        code=stage_code_hash("plan_candidates"),
    shell:
        "dao-pipeline plan-candidates --config {input.config:q} --crysdb {params.crysdb:q} --out {output:q} > {log:q} 2>&1"


# A campaign that grows gets a new plan and more shards; full shards stay as they are. So the plan is no trigger,
# what it says about this shard is.
rule generate_candidates:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        plan=ancient("results/{campaign}/candidates/plan.parquet"),
        generator="results/{campaign}/models/dao_g/finetuned/model.safetensors",
        energy_model="results/{campaign}/models/dao_p/model.safetensors",
    output:
        "results/{campaign}/candidates/generated/shard-{shard}.parquet",
    log:
        "logs/{campaign}/generate_candidates-{shard}.log",
    benchmark:
        "results/{campaign}/timings/generate_candidates-{shard}.tsv"
    retries: 2
    conda:
        "dao-pipeline-gpu"
    threads: campaigns.threads("sampling")
    resources:
        gpu=campaigns.gpus("sampling"),
        mem_mb=campaigns.mem_mb("sampling"),
        runtime=campaigns.runtime("sampling"),
    params:
        generator=subpath(input.generator, parent=True),
        energy_model=subpath(input.energy_model, parent=True),
        work="work/{campaign}/generate_candidates/shard-{shard}",
        shard=campaigns.shard_plan,
        settings=campaigns.settings("generate_candidates"),
        code=stage_code_hash("plan_candidates", "generate_candidates"),
    shell:
        "dao-pipeline generate-candidates --config {input.config:q} --plan {input.plan:q} --shard {wildcards.shard}"
        " --generator {params.generator:q} --energy-model {params.energy_model:q}"
        " --out {output:q} --work {params.work:q} > {log:q} 2>&1"


rule screen_candidates:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        plan="results/{campaign}/candidates/plan.parquet",
        generated=campaigns.stage_input("generate_candidates"),
        train="results/{campaign}/crysdb/train.parquet",
        val="results/{campaign}/crysdb/val.parquet",
        energy_model="results/{campaign}/models/dao_p/model.safetensors",
    output:
        screened="results/{campaign}/candidates/screened.parquet",
        cifs="results/{campaign}/candidates/top.zip",
    log:
        "logs/{campaign}/screen_candidates.log",
    benchmark:
        "results/{campaign}/timings/screen_candidates.tsv"
    conda:
        "dao-pipeline"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        generated="results/{campaign}/candidates/generated",
        crysdb=subpath(input.train, parent=True),
        energy_model=subpath(input.energy_model, parent=True),
        settings=campaigns.settings("screen_candidates"),
        code=stage_code_hash("screen_candidates"),
    shell:
        "dao-pipeline screen-candidates --config {input.config:q} --plan {input.plan:q}"
        " --generated {params.generated:q} --crysdb {params.crysdb:q} --energy-model {params.energy_model:q}"
        " --out {output.screened:q} > {log:q} 2>&1"
