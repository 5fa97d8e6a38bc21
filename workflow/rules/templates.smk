# Known crystals as templates: their index, and what training learns from them.


rule index_templates:
    input:
        train=campaigns.at("build_crysdb", "crysdb/train.parquet"),
    output:
        about="results/{campaign}/templates/index/index.json",
        crystals="results/{campaign}/templates/index/templates.parquet",
        arrays="results/{campaign}/templates/index/index.safetensors",
    log:
        "logs/{campaign}/index_templates.log",
    benchmark:
        "results/{campaign}/timings/index_templates.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        crysdb=subpath(input.train, parent=True),
        out=subpath(output.about, parent=True),
        settings=campaigns.settings("index_templates"),
        code=stage_code_hash("index_templates"),
    shell:
        "dao-pipeline index-templates --config {params.config:q} --crysdb {params.crysdb:q} --out {params.out:q}"
        " > {log:q} 2>&1"


rule pair_templates:
    input:
        index=campaigns.stage_input("index_templates"),
    output:
        "results/{campaign}/templates/pairs.parquet",
    log:
        "logs/{campaign}/pair_templates.log",
    benchmark:
        "results/{campaign}/timings/pair_templates.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        index=campaigns.at("index_templates", "templates/index"),
        settings=campaigns.settings("pair_templates"),
        code=stage_code_hash("pair_templates"),
    shell:
        "dao-pipeline pair-templates --config {params.config:q} --index {params.index:q} --out {output:q}"
        " > {log:q} 2>&1"
