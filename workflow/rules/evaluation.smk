# Were the known crystals of the test split found? Only asked where the compositions come from there.


rule evaluate:
    input:
        screened=campaigns.at("screen_candidates", "candidates/screened.parquet"),
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
        test=campaigns.at("build_crysdb", "crysdb/test.parquet"),
        energy_model=campaigns.model("train_energy_model"),
    output:
        samples="results/{campaign}/evaluation/samples.parquet",
        targets="results/{campaign}/evaluation/targets.parquet",
        summary="results/{campaign}/evaluation/summary.parquet",
        by_distance="results/{campaign}/evaluation/by_distance.parquet",
    log:
        "logs/{campaign}/evaluate.log",
    benchmark:
        "results/{campaign}/timings/evaluate.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.test, parent=True),
        energy_model=campaigns.model_option("--energy-model", "train_energy_model"),
        out=subpath(output.summary, parent=True),
        settings=campaigns.settings("evaluate"),
        code=stage_code_hash("evaluate"),
    shell:
        "dao-pipeline evaluate --config {params.config:q} --screened {input.screened:q} --crysdb {params.crysdb:q}"
        " {params.energy_model} --out {params.out:q} > {log:q} 2>&1"


# The variants of a campaign are campaigns of their own to all rules above (workflow_support.Campaigns).
rule ablate:
    input:
        campaigns.ablated,
    output:
        summary="results/{campaign}/ablation/summary.parquet",
        table="results/{campaign}/ablation/table.md",
    log:
        "logs/{campaign}/ablate.log",
    benchmark:
        "results/{campaign}/timings/ablate.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        variants=campaigns.ablated_folders,
        out=subpath(output.summary, parent=True),
        settings=campaigns.settings("ablate"),
        code=stage_code_hash("ablate"),
    shell:
        "dao-pipeline ablate --config {params.config:q} {params.variants} --out {params.out:q} > {log:q} 2>&1"
