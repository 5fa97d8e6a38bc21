# DAO-P: its training, and the relaxation of unstable training crystals with it.
#
# `work` folders hold checkpoints and finished parts. They are no outputs, because Snakemake deletes the outputs of
# a failed job; so a retried or rerun job resumes there.


rule train_energy_model:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        val=campaigns.at("build_crysdb", "crysdb/val.parquet"),
    output:
        weights="results/{campaign}/models/dao_p/model.safetensors",
        config="results/{campaign}/models/dao_p/config.json",
        metrics="results/{campaign}/models/dao_p/metrics.parquet",
    log:
        "logs/{campaign}/train_energy_model.log",
    benchmark:
        "results/{campaign}/timings/train_energy_model.tsv"
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
        work="work/{campaign}/train_energy_model",
        settings=campaigns.settings("train_energy_model"),
        code=stage_code_hash("train_energy_model"),
    shell:
        "dao-pipeline train-energy-model --config {params.config:q} --crysdb {params.crysdb:q}"
        " --out {params.out:q} --work {params.work:q} > {log:q} 2>&1"


rule relax_dataset:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        model=campaigns.at("train_energy_model", "models/dao_p/model.safetensors"),
    output:
        "results/{campaign}/relaxed/shard-{job}.parquet",
    log:
        "logs/{campaign}/relax_dataset-{job}.log",
    benchmark:
        "results/{campaign}/timings/relax_dataset-{job}.tsv"
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
        crysdb=subpath(input.train, parent=True),
        model=subpath(input.model, parent=True),
        work="work/{campaign}/relax_dataset/job-{job}",
        settings=campaigns.settings("relax_dataset"),
        code=stage_code_hash("relax_dataset"),
    shell:
        "dao-pipeline relax-dataset --config {params.config:q} --crysdb {params.crysdb:q} --model {params.model:q}"
        " --job {wildcards.job} --out {output:q} --work {params.work:q} > {log:q} 2>&1"
