# DAO-G: two stages of pretraining, and fine-tuning on stable crystals.


rule pretrain_generator_stage1:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        pairs=campaigns.stage_input("pair_templates"),
    output:
        weights="results/{campaign}/models/dao_g/stage1/model.safetensors",
        config="results/{campaign}/models/dao_g/stage1/config.json",
        metrics="results/{campaign}/models/dao_g/stage1/metrics.parquet",
    log:
        "logs/{campaign}/pretrain_generator_stage1.log",
    benchmark:
        "results/{campaign}/timings/pretrain_generator_stage1.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("training")
    resources:
        gpu=campaigns.gpus("training"),
        gpu_model=campaigns.gpu_model("training"),
        gres=campaigns.gres("training"),
        mem_mb=campaigns.mem_mb("training"),
        runtime=campaigns.runtime("training"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        out=subpath(output.weights, parent=True),
        work="work/{campaign}/pretrain_generator_stage1",
        pairs=lambda wildcards, input: option("--pairs", input.pairs),
        settings=campaigns.settings("pretrain_generator_stage1"),
        code=stage_code_hash("pretrain_generator_stage1"),
    shell:
        "dao-pipeline pretrain-generator --stage 1 --config {params.config:q} --crysdb {params.crysdb:q}"
        " --out {params.out:q} --work {params.work:q} {params.pairs} > {log:q} 2>&1"


rule pretrain_generator_stage2:
    input:
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        relaxed=campaigns.stage_input("relax_dataset"),
        init=campaigns.at(
            "pretrain_generator_stage1", "models/dao_g/stage1/model.safetensors"
        ),
        pairs=campaigns.stage_input("pair_templates"),
    output:
        weights="results/{campaign}/models/dao_g/stage2/model.safetensors",
        config="results/{campaign}/models/dao_g/stage2/config.json",
        metrics="results/{campaign}/models/dao_g/stage2/metrics.parquet",
    log:
        "logs/{campaign}/pretrain_generator_stage2.log",
    benchmark:
        "results/{campaign}/timings/pretrain_generator_stage2.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("training")
    resources:
        gpu=campaigns.gpus("training"),
        gpu_model=campaigns.gpu_model("training"),
        gres=campaigns.gres("training"),
        mem_mb=campaigns.mem_mb("training"),
        runtime=campaigns.runtime("training"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.val, parent=True),
        relaxed=campaigns.at("relax_dataset", "relaxed"),
        init=subpath(input.init, parent=True),
        out=subpath(output.weights, parent=True),
        work="work/{campaign}/pretrain_generator_stage2",
        pairs=lambda wildcards, input: option("--pairs", input.pairs),
        settings=campaigns.settings("pretrain_generator_stage2"),
        code=stage_code_hash("pretrain_generator_stage2"),
    shell:
        "dao-pipeline pretrain-generator --stage 2 --config {params.config:q} --crysdb {params.crysdb:q}"
        " --relaxed {params.relaxed:q} --init {params.init:q}"
        " --out {params.out:q} --work {params.work:q} {params.pairs} > {log:q} 2>&1"


rule finetune_generator:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
        table=campaigns.finetuning_table,
        init=campaigns.pretrained,
        pairs=campaigns.stage_input("pair_templates"),
    output:
        weights="results/{campaign}/models/dao_g/finetuned/model.safetensors",
        config="results/{campaign}/models/dao_g/finetuned/config.json",
        metrics="results/{campaign}/models/dao_g/finetuned/metrics.parquet",
    log:
        "logs/{campaign}/finetune_generator.log",
    benchmark:
        "results/{campaign}/timings/finetune_generator.tsv"
    retries: 2
    conda:
        "../../envs/gpu.yaml"
    threads: campaigns.threads("training")
    resources:
        gpu=campaigns.gpus("training"),
        gpu_model=campaigns.gpu_model("training"),
        gres=campaigns.gres("training"),
        mem_mb=campaigns.mem_mb("training"),
        runtime=campaigns.runtime("training"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        init=campaigns.init,
        out=subpath(output.weights, parent=True),
        work="work/{campaign}/finetune_generator",
        pairs=lambda wildcards, input: option("--pairs", input.pairs),
        settings=campaigns.settings("finetune_generator"),
        code=stage_code_hash("finetune_generator"),
    shell:
        "dao-pipeline finetune-generator --config {params.config:q} --crysdb {params.crysdb:q} {params.init}"
        " --out {params.out:q} --work {params.work:q} {params.pairs} > {log:q} 2>&1"
