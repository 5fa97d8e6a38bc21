# Were the known crystals of the test split found? Only asked where the compositions come from there.


rule evaluate:
    input:
        screened="results/{campaign}/candidates/screened.parquet",
        train="results/{campaign}/crysdb/train.parquet",
        test="results/{campaign}/crysdb/test.parquet",
        energy_model="results/{campaign}/models/dao_p/model.safetensors",
    output:
        samples="results/{campaign}/evaluation/samples.parquet",
        targets="results/{campaign}/evaluation/targets.parquet",
        summary="results/{campaign}/evaluation/summary.parquet",
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
        energy_model=subpath(input.energy_model, parent=True),
        out=subpath(output.summary, parent=True),
        settings=campaigns.settings("evaluate"),
        code=stage_code_hash("evaluate"),
    shell:
        "dao-pipeline evaluate --config {params.config:q} --screened {input.screened:q} --crysdb {params.crysdb:q}"
        " --energy-model {params.energy_model:q} --out {params.out:q} > {log:q} 2>&1"
