# From a source of crystals to clean, labelled and split tables.
#
# In all rules: `settings` and `code` are what makes the stage rerun. The resolved configuration is an input that
# must exist (every command reads it), but its rewriting reruns nothing: hence `ancient`.


rule resolve_config:
    output:
        "results/{campaign}/config.yaml",
    log:
        "logs/{campaign}/resolve_config.log",
    conda:
        "dao-pipeline"
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        files=campaigns.config_options,
        overrides=campaigns.overrides,
        everything=campaigns.everything,
    shell:
        "dao-pipeline resolve-config {params.files:q} --overrides {params.overrides:q} --out {output:q} > {log:q} 2>&1"


rule download:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        source=campaigns.raw_source,
    output:
        crystals="results/{campaign}/raw/crystals.parquet",
        rejected="results/{campaign}/raw/rejected.parquet",
    log:
        "logs/{campaign}/download.log",
    benchmark:
        "results/{campaign}/timings/download.tsv"
    conda:
        "dao-pipeline"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        settings=campaigns.settings("download"),
        code=stage_code_hash("download"),
    shell:
        "dao-pipeline download --config {input.config:q} --out {output.crystals:q} > {log:q} 2>&1"


rule build_crysdb:
    input:
        config=ancient("results/{campaign}/config.yaml"),
        raw="results/{campaign}/raw/crystals.parquet",
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
        "dao-pipeline"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        out=subpath(output.train, parent=True),
        settings=campaigns.settings("build_crysdb"),
        code=stage_code_hash("build_crysdb"),
    shell:
        "dao-pipeline build-crysdb --config {input.config:q} --raw {input.raw:q} --out {params.out:q} > {log:q} 2>&1"
