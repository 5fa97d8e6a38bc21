# From a source of crystals to clean, labelled and split tables.
#
# In all rules, `settings` and `code` are what makes a stage rerun. `config` is the resolved configuration, written
# when Snakemake starts (see Snakefile): were it an input, any edit would rerun every stage.


rule download:
    input:
        source=campaigns.raw_source,
    output:
        crystals="results/{campaign}/raw/crystals.parquet",
        rejected="results/{campaign}/raw/rejected.parquet",
    log:
        "logs/{campaign}/download.log",
    benchmark:
        "results/{campaign}/timings/download.tsv"
    retries: 2
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        work="work/{campaign}/download",
        settings=campaigns.settings("download"),
        code=stage_code_hash("download"),
    shell:
        "dao-pipeline download --config {params.config:q} --out {output.crystals:q} --work {params.work:q}"
        " > {log:q} 2>&1"


rule build_crysdb:
    input:
        raw=campaigns.at("download", "raw/crystals.parquet"),
        exclude=campaigns.excluded,
    output:
        train="results/{campaign}/crysdb/train.parquet",
        val="results/{campaign}/crysdb/val.parquet",
        test="results/{campaign}/crysdb/test.parquet",
        rejected="results/{campaign}/crysdb/rejected.parquet",
    log:
        "logs/{campaign}/build_crysdb.log",
    benchmark:
        "results/{campaign}/timings/build_crysdb.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        out=subpath(output.train, parent=True),
        settings=campaigns.settings("build_crysdb"),
        code=stage_code_hash("build_crysdb"),
    shell:
        "dao-pipeline build-crysdb --config {params.config:q} --raw {input.raw:q} --out {params.out:q} > {log:q} 2>&1"
